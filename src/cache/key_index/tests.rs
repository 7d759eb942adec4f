//! The index against an array with one cell a block.

use super::super::geometry::SegIx;
use super::super::key::Kind;
use super::*;
use crate::media::KeyFlags;
use proptest::prelude::*;

fn key(start: u16, len: u16, id: u64, kind: Kind) -> Key {
    Key {
        start,
        len,
        trim: 0,
        whole: len,
        segment: SegIx(3),
        segment_offset: 512,
        generation: id,
        crc: 0,
        kind,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert { start: u16, len: u16, data: bool },
    RemoveExact { pick: usize },
    RemovePlaceholder { pick: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Starts gather around leaf borders, where mistakes live.
    let start = prop_oneof![
        (0..SUBTREE_BLOCKS - 1),
        (0_u16..63, 0_u16..8).prop_map(|(leaf, d)| leaf * LEAF_BLOCKS + LEAF_BLOCKS - 4 + d)
    ];
    let len = prop_oneof![1_u16..=16, 1_u16..=64, 1_u16..=600];
    prop_oneof![
        8 => (start, len, any::<bool>()).prop_map(|(start, len, data)| Step::Insert {
            start: start.min(SUBTREE_BLOCKS - 1),
            len: len.min(SUBTREE_BLOCKS - start.min(SUBTREE_BLOCKS - 1)),
            data,
        }),
        1 => any::<usize>().prop_map(|pick| Step::RemoveExact { pick }),
        1 => any::<usize>().prop_map(|pick| Step::RemovePlaceholder { pick }),
    ]
}

/// What the model knows of a block: which insertion covers it, and which block of it this is.
type Cell = Option<(usize, u16)>;

fn compare(index: &KeyIndex, model: &[Cell], inserted: &[Key], start: u16, end: u16) {
    let mut at = start;
    index.walk(1, start, end, |piece| {
        assert_eq!(piece.start, at, "pieces follow each other");
        assert!(piece.end > piece.start);
        for block in piece.start..piece.end {
            let found = piece.key.map(|k| {
                (
                    usize::try_from(k.generation).unwrap(),
                    k.trim + (block - k.start),
                    k.whole,
                    k.kind,
                )
            });
            let wanted = model[usize::from(block)]
                .map(|(id, at)| (id, at, inserted[id].whole, inserted[id].kind));
            assert_eq!(found, wanted, "block {block}");
        }
        at = piece.end;
    });
    assert_eq!(at, end);
}

fn run(steps: &[Step]) {
    let mut index = KeyIndex::default();
    let mut model: Vec<Cell> = vec![None; usize::from(SUBTREE_BLOCKS)];
    let mut inserted: Vec<Key> = Vec::new();
    for step in steps {
        let mut touched = (0, SUBTREE_BLOCKS);
        match *step {
            Step::Insert { start, len, data } => {
                let kind = if data {
                    Kind::of(KeyFlags::DIRTY)
                } else {
                    Kind::PLACEHOLDER
                };
                let new = key(start, len, inserted.len() as u64, kind);
                index.insert(1, new);
                for block in 0..len {
                    model[usize::from(start + block)] = Some((inserted.len(), block));
                }
                inserted.push(new);
                touched = (
                    start.saturating_sub(200),
                    (start + len).min(SUBTREE_BLOCKS - 200) + 200,
                );
            }
            Step::RemoveExact { pick } | Step::RemovePlaceholder { pick } => {
                let Some(old) = inserted.get(pick % inserted.len().max(1)).copied() else {
                    continue;
                };
                let placeholder = matches!(step, Step::RemovePlaceholder { .. });
                let ident = KeyIdent {
                    segment: old.segment,
                    segment_offset: old.segment_offset,
                    generation: old.generation,
                    has_data: true,
                    again: false,
                };
                if placeholder {
                    index.remove_placeholders(1, old.start, old.end(), old.generation);
                } else {
                    index.remove_exact(1, old.start, old.end(), &ident);
                }
                if old.kind.is_placeholder() == placeholder {
                    for cell in &mut model {
                        if cell.is_some_and(|(id, _)| id as u64 == old.generation) {
                            *cell = None;
                        }
                    }
                }
            }
        }
        compare(&index, &model, &inserted, touched.0, touched.1);
    }
    index.check();
    compare(&index, &model, &inserted, 0, SUBTREE_BLOCKS);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn the_index_agrees_with_an_array(steps in proptest::collection::vec(step(), 1..300)) {
        run(&steps);
    }
}

#[test]
fn a_key_inside_another_splits_it() {
    let mut index = KeyIndex::default();
    index.insert(0, key(0, 64, 1, Kind::of(KeyFlags::DIRTY)));
    index.insert(0, key(10, 4, 2, Kind::of(KeyFlags::DIRTY)));
    let mut pieces = Vec::new();
    index.walk(0, 0, 64, |p| {
        pieces.push((p.start, p.end, p.key.map(|k| (k.generation, k.trim))))
    });
    assert_eq!(
        pieces,
        [
            (0, 10, Some((1, 0))),
            (10, 14, Some((2, 0))),
            (14, 64, Some((1, 14)))
        ]
    );
}

#[test]
fn a_cached_block_of_4_kib_takes_at_most_32_bytes_however_it_came_there() {
    const TREES: usize = 32;
    let pages = TREES * 1024;
    let mut index = KeyIndex::default();
    let put = |index: &mut KeyIndex, page: usize, part: u16, parts: u16| {
        let start = u16::try_from(page % 1024 * 8).unwrap() + part * 8 / parts;
        let new = key(start, 8 / parts, 1, Kind::of(KeyFlags::DIRTY));
        index.insert(page / 1024, new);
    };
    // A third of it at random; then all, for which most leaves have to grow.
    for page in (0..pages / 3).map(|i| i * 7919 % pages) {
        put(&mut index, page, 0, 1);
    }
    for page in (0..pages).map(|i| i * 7919 % pages) {
        put(&mut index, page, 0, 1);
    }
    let a_page = |index: &KeyIndex| index.heap_bytes() / pages;
    assert!(a_page(&index) <= 32, "{}", a_page(&index));
    // Blocks of 512 bytes have a key each; what they took is given back.
    for part in 0..8 {
        for page in 0..pages {
            put(&mut index, page, part, 8);
        }
    }
    assert!(a_page(&index) <= 8 * 32, "{}", a_page(&index));
    for page in 0..pages {
        put(&mut index, page, 0, 1);
    }
    index.check();
    assert!(a_page(&index) <= 64, "{}", a_page(&index));
}
