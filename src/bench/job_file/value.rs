//! Values of a job file: sizes, times, shares, as fio writes them.

use super::{JobDistribution, JobSplit};

/// A whole number, decimal or with `0x`.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => digits_of(digits, 16),
        None => digits_of(text, 10),
    }
}

fn digits_of(text: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` takes a sign.
    let digits = text.chars().all(|c| c.is_ascii_alphanumeric());
    digits.then(|| u64::from_str_radix(text, radix).ok())?
}

/// Number and unit of `text`, the unit in lower case.
fn with_unit(text: &str) -> Option<(u64, String)> {
    if text.starts_with("0x") || text.starts_with("0X") {
        return Some((number(text)?, String::new()));
    }
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (digits, unit) = text.split_at(end.unwrap_or(text.len()));
    Some((number(digits)?, unit.trim().to_ascii_lowercase()))
}

/// Bytes; `k`, `m`, `g`, `t` with or without `b` or `ib` are powers of 1024, as in fio.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (count, unit) = with_unit(text)?;
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    count.checked_mul(1 << shift)
}

/// Nanoseconds, of seconds unless there is a unit.
pub(super) fn duration_ns(text: &str) -> Option<u64> {
    let (count, unit) = with_unit(text)?;
    let ns = match unit.as_str() {
        "us" | "usec" => 1_000,
        "ms" | "msec" => 1_000_000,
        "" | "s" | "sec" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    };
    count.checked_mul(ns)
}

/// 0 to 100.
pub(super) fn percent(text: &str) -> Option<u32> {
    let share = number(text).and_then(|n| u32::try_from(n).ok());
    share.filter(|share| *share <= 100)
}

/// 0 or 1; a key without a value is 1.
pub(super) fn bool_value(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("1") => Some(true),
        Some("0") => Some(false),
        Some(_) => None,
    }
}

/// `4k/60:64k/40`. Those without a share have equal parts of what the others leave.
pub(super) fn split(text: &str) -> Option<Vec<JobSplit>> {
    let mut found = Vec::new();
    let (mut sum, mut open) = (0_u32, 0_u32);
    for piece in text.split(':') {
        let (size, share) = piece.split_once('/').unwrap_or((piece, ""));
        let block_bytes = super::block(size.trim())?;
        let share = share.trim();
        let share = match share {
            "" => None,
            _ => Some(percent(share)?),
        };
        sum += share.unwrap_or(0);
        open += u32::from(share.is_none());
        found.push((block_bytes, share));
        if found.len() > 64 {
            return None;
        }
    }
    let left = 100_u32.checked_sub(sum)?;
    if left > 0 && open == 0 {
        return None;
    }
    // What does not divide goes to the first of them.
    let mut rest = left.checked_rem(open).unwrap_or(0);
    let each = left.checked_div(open).unwrap_or(0);
    let mut take = |share: Option<u32>| match share {
        Some(share) => share,
        None => each + std::mem::take(&mut rest),
    };
    let splits = found.into_iter().map(|(block_bytes, share)| JobSplit {
        block_bytes,
        percent: take(share),
    });
    Some(splits.collect())
}

/// `random`, or `zipf:θ`.
pub(super) fn distribution(text: &str) -> Option<JobDistribution> {
    if text == "random" {
        return Some(JobDistribution::Random);
    }
    let theta: f64 = text.strip_prefix("zipf:")?.trim().parse().ok()?;
    let usable = theta.is_finite() && theta > 0.0 && (theta - 1.0).abs() > 1e-9 && theta <= 100.0;
    usable.then_some(JobDistribution::Zipf { theta })
}
