use super::*;
use proptest::prelude::*;

fn one(lines: &str) -> Result<JobSpec, JobFileError> {
    let file = JobFile::parse(&format!("[job]\n{lines}"))?;
    assert_eq!(file.jobs.len(), 1);
    Ok(file.jobs[0].clone())
}

const GOOD: &str = "\
# what all have in common
[global]
bs=4k
iodepth=32   ; of each
ioengine=libaio
runtime=10
time_based

[hot]
rw=randwrite
filename=cache0
random_distribution=zipf:1.2
numjobs=2
[global]
bs=8k
[mixed]  # a comment
readwrite = randrw
rwmixwrite=30
size=50%
offset=1g
fsync=16
stonewall
ramp_time=500ms
rate_iops=2000
rate_process=poisson
verify=crc32c
sync=dsync
bssplit=4k/60:64k/40
number_ios=0x10
randseed=7
time_based=0
";

#[test]
fn a_file_that_fio_takes_is_read() {
    let file = JobFile::parse(GOOD).unwrap();
    let hot = JobSpec {
        name: "hot".into(),
        line: 9,
        bdev: Some("cache0".into()),
        rw: Some(JobRw::RandWrite),
        block_bytes: Some(4096),
        depth: Some(32),
        jobs: Some(2),
        run_ns: Some(10_000_000_000),
        time_based: Some(true),
        distribution: Some(JobDistribution::Zipf { theta: 1.2 }),
        ..JobSpec::default()
    };
    let split = |block_bytes, percent| JobSplit {
        block_bytes,
        percent,
    };
    let mixed = JobSpec {
        name: "mixed".into(),
        line: 16,
        bdev: None,
        rw: Some(JobRw::RandReadWrite),
        block_bytes: Some(8192),
        block_split: Some(vec![split(4096, 60), split(65536, 40)]),
        depth: Some(32),
        jobs: None,
        size: Some(JobExtent::Percent(50)),
        offset: Some(JobExtent::Bytes(1 << 30)),
        run_ns: Some(10_000_000_000),
        time_based: Some(false),
        ramp_ns: Some(500_000_000),
        requests_max: Some(16),
        read_percent: Some(70),
        rate_iops: Some(2000),
        rate_poisson: Some(true),
        distribution: None,
        flush_every: Some(16),
        fua: Some(true),
        verify: Some(true),
        seed: Some(7),
    };
    assert_eq!(file.jobs, [hot, mixed]);
    let notes: Vec<_> = file.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "line 5: ioengine is ignored: the bdev decides",
            "line 22: stonewall is ignored: jobs run one after the other",
        ]
    );
}

#[test]
fn errors_name_line_key_and_what_is_wanted() {
    for (text, want) in [
        ("", "there is no job in it"),
        ("[global]\nbs=4k\n", "there is no job in it"),
        ("bs=4k\n[a]", "line 1: bs stands before the first section"),
        ("[a]\n\nspeed=11", "line 3: unknown key speed"),
        ("[a]\nspeed", "line 2: unknown key speed"),
        ("[a\n", "line 1: \"[a\" is neither [section] nor key=value"),
        ("[]\n", "line 1: \"[]\" is neither [section] nor key=value"),
        (
            "[a]\n=5\n",
            "line 2: \"=5\" is neither [section] nor key=value",
        ),
        (
            "[a]\nno key=5\n",
            "line 2: \"no key=5\" is neither [section] nor key=value",
        ),
        ("[a]\n[b]\n[a]", "line 3: job a exists in line 1"),
        (
            "[a]\niodepth=0",
            "line 2: iodepth=0: a number from 1 to 65536 is wanted",
        ),
        (
            "[a]\nruntime=5 weeks",
            "line 2: runtime=5 weeks: a time, in seconds or with us, ms, s, m, h, d is wanted",
        ),
    ] {
        assert_eq!(JobFile::parse(text).unwrap_err().to_string(), want);
    }
}

#[test]
fn every_key_refuses_what_it_can_not_have() {
    for line in [
        "rw=",
        "rw=reed",
        "rw",
        "bs=",
        "bs=511",
        "bs=2g",
        "bs=4q",
        "bs=-4k",
        "bs=+4096",
        "bs=4k,8k",
        "bssplit=4k/60",
        "bssplit=4k/60:8k/60",
        "bssplit=4k/101",
        "bssplit=",
        "bssplit=4k/x",
        "iodepth=65537",
        "iodepth=1k",
        "numjobs=0",
        "size=0",
        "size=0%",
        "size=101%",
        "size=1x",
        "size=99999999999t",
        "offset=-1",
        "runtime=",
        "runtime=99999999999999d",
        "time_based=2",
        "ramp_time=x",
        "rwmixread=101",
        "rwmixwrite=-1",
        "rate_iops=0",
        "rate_iops=1,2",
        "rate_process=exp",
        "random_distribution=zipf",
        "random_distribution=zipf:1",
        "random_distribution=zipf:0",
        "random_distribution=zipf:nan",
        "random_distribution=zipf:inf",
        "random_distribution=pareto:0.5",
        "fsync=x",
        "fsync=4294967296",
        "verify=",
        "verify=rot13",
        "sync=2",
        "filename=",
        "filename=a b",
        "number_ios=0",
        "randseed=x",
        "randseed=0x",
    ] {
        let error = one(line).unwrap_err();
        assert!(
            matches!(error, JobFileError::Value { line: 2, .. }),
            "{line}: {error}"
        );
    }
}

#[test]
fn units_are_those_of_fio() {
    let block = |text: &str| one(&format!("bs={text}")).unwrap().block_bytes.unwrap();
    for (text, bytes) in [
        ("512", 512),
        ("4096b", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("4kb", 4096),
        ("1m", 1 << 20),
        ("1g", 1 << 30),
        ("0x1000", 4096),
    ] {
        assert_eq!(block(text), bytes, "{text}");
    }
    let time = |text: &str| one(&format!("runtime={text}")).unwrap().run_ns.unwrap();
    for (text, ns) in [
        ("0", 0),
        ("5us", 5_000),
        ("5ms", 5_000_000),
        ("5", 5_000_000_000),
        ("5s", 5_000_000_000),
        ("2m", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("1d", 86_400_000_000_000),
    ] {
        assert_eq!(time(text), ns, "{text}");
    }
}

#[test]
fn open_shares_of_a_split_are_what_is_left() {
    let shares = |text: &str| -> Vec<u32> {
        let job = one(&format!("bssplit={text}")).unwrap();
        job.block_split.unwrap().iter().map(|s| s.percent).collect()
    };
    assert_eq!(shares("4k/50:8k/:16k/"), [50, 25, 25]);
    assert_eq!(shares("4k:8k:16k"), [34, 33, 33]);
    assert_eq!(shares("4k/100:8k/0"), [100, 0]);
    assert_eq!(shares("4k/100:8k"), [100, 0]);
}

proptest! {
    #[test]
    fn no_text_is_too_odd(text in "(\\[[a-z]{0,3}\\]?|[a-z_]{0,12}=?[0-9a-zµ%:/.; #]{0,12}|\n|\\PC{0,9}){0,12}") {
        if let Err(error) = JobFile::parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// What is near a good line is read or refused with the number of that line.
    #[test]
    fn known_keys_with_any_value(key in 0..24_usize, value in "[-+0-9a-z:/%.]{0,12}|\\PC{0,8}") {
        let key = [
            "rw", "readwrite", "bs", "blocksize", "bssplit", "iodepth", "numjobs", "size", "offset",
            "runtime", "time_based", "ramp_time", "rwmixread", "rwmixwrite", "rate_iops",
            "rate_process", "random_distribution", "fsync", "fdatasync", "verify", "filename",
            "sync", "number_ios", "randseed",
        ][key];
        match JobFile::parse(&format!("[job]\n{key}={value}\n")) {
            Ok(file) => {
                let split = file.jobs[0].block_split.iter().flatten();
                let sum: u32 = split.map(|s| s.percent).sum();
                prop_assert!(sum == 0 || sum == 100);
            }
            Err(JobFileError::Value { line, .. } | JobFileError::Syntax { line, .. }) => {
                prop_assert_eq!(line, 2);
            }
            // A line break in the value begins a new line.
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
