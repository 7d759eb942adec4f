//! fio-style job files: the subset that fio's and SPDK bdevperf's users write most.
//!
//! ```text
//! [global]
//! bs=4k
//! iodepth=32          ; of each job
//! runtime=10
//!
//! [hot]
//! rw=randwrite
//! filename=cache0
//! random_distribution=zipf:1.1
//! ```
//!
//! Keys of `[global]` hold for the sections behind it; a later `[global]` adds to the earlier. What a
//! key means is fio's meaning. A key that is not understood, or a value that can't be had, is an error
//! with its line: a measurement of something else than was asked for is worse than none. Keys that
//! change nothing here (`ioengine`, `direct`, `stonewall` …) are taken with a note.

mod value;

use std::fmt;
use value::{bool_value, bytes, distribution, duration_ns, number, percent, split};

/// Which requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobRw {
    /// Reads in sequence, as fio has it by default.
    #[default]
    Read,
    /// Writes in sequence.
    Write,
    /// Reads and writes in sequence.
    ReadWrite,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Reads and writes anywhere.
    RandReadWrite,
    /// Discards in sequence.
    Trim,
    /// Discards anywhere.
    RandTrim,
}

/// Where random requests go.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum JobDistribution {
    /// Anywhere with the same chance.
    #[default]
    Random,
    /// A Zipf distribution.
    Zipf {
        /// Its exponent, above 0 and not 1.
        theta: f64,
    },
}

/// One size of a split, and its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobSplit {
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Out of a hundred; all of a split add up to that.
    pub percent: u32,
}

/// How much of the device a job uses, or where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobExtent {
    /// Bytes.
    Bytes(u64),
    /// Of the device, out of a hundred.
    Percent(u32),
}

/// One job: what its section and the globals before it say. `None`: nobody said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobSpec {
    /// Its section.
    pub name: String,
    /// The line of its section, from 1.
    pub line: usize,
    /// The bdev: `filename`.
    pub bdev: Option<String>,
    /// `rw`, `readwrite`.
    pub rw: Option<JobRw>,
    /// `bs`, `blocksize`, in bytes.
    pub block_bytes: Option<u32>,
    /// `bssplit`; goes before [`JobSpec::block_bytes`].
    pub block_split: Option<Vec<JobSplit>>,
    /// `iodepth`: requests under way, of each clone.
    pub depth: Option<u32>,
    /// `numjobs`: clones.
    pub jobs: Option<u32>,
    /// `size`.
    pub size: Option<JobExtent>,
    /// `offset`.
    pub offset: Option<JobExtent>,
    /// `runtime`, in nanoseconds.
    pub run_ns: Option<u64>,
    /// `time_based`: goes on when all of `size` is done.
    pub time_based: Option<bool>,
    /// `ramp_time`, in nanoseconds.
    pub ramp_ns: Option<u64>,
    /// `number_ios`: requests at most.
    pub requests_max: Option<u64>,
    /// `rwmixread`, `rwmixwrite`: reads out of a hundred.
    pub read_percent: Option<u32>,
    /// `rate_iops`: requests a second.
    pub rate_iops: Option<u64>,
    /// `rate_process=poisson`.
    pub rate_poisson: Option<bool>,
    /// `random_distribution`.
    pub distribution: Option<JobDistribution>,
    /// `fsync`, `fdatasync`: a flush behind so many writes; 0 for none.
    pub flush_every: Option<u32>,
    /// `sync`: writes are durable by themselves.
    pub fua: Option<bool>,
    /// `verify` is anything but 0.
    pub verify: Option<bool>,
    /// `randseed`.
    pub seed: Option<u64>,
}

/// Something that was taken and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobNote {
    /// Where, from 1.
    pub line: usize,
    /// Which key.
    pub key: String,
    /// Why it changes nothing.
    pub why: &'static str,
}

impl fmt::Display for JobNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}: {} is ignored: {}",
            self.line, self.key, self.why
        )
    }
}

/// A job file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobFile {
    /// Its jobs, in order; at least one.
    pub jobs: Vec<JobSpec>,
    /// What was ignored.
    pub notes: Vec<JobNote>,
}

/// Why a job file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobFileError {
    /// No section, no `key=value`.
    #[error("line {line}: {text:?} is neither [section] nor key=value")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A key before the first section.
    #[error("line {line}: {key} stands before the first section")]
    NoSection {
        /// Where, from 1.
        line: usize,
        /// Which key.
        key: String,
    },
    /// A key that means nothing here.
    #[error("line {line}: unknown key {key}")]
    UnknownKey {
        /// Where, from 1.
        line: usize,
        /// Which key.
        key: String,
    },
    /// A value that the key can't have.
    #[error("line {line}: {key}={value}: {wanted} is wanted")]
    Value {
        /// Where, from 1.
        line: usize,
        /// Which key.
        key: String,
        /// What it was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
    /// Two sections of the same name.
    #[error("line {line}: job {name} exists in line {before}")]
    SameName {
        /// Where, from 1.
        line: usize,
        /// Which.
        name: String,
        /// Where the first one is.
        before: usize,
    },
    /// No section but `[global]`.
    #[error("there is no job in it")]
    NoJob,
}

/// Keys that fio or bdevperf have, and that change nothing here.
const IGNORED: &[(&str, &str)] = &[
    ("stonewall", "jobs run one after the other"),
    ("wait_for_previous", "jobs run one after the other"),
    ("group_reporting", "clones of a job are reported as one"),
    ("ioengine", "the bdev decides"),
    ("direct", "a bdev has no page cache of ours"),
    ("buffered", "a bdev has no page cache of ours"),
    ("thread", "jobs run on reactors"),
    ("norandommap", "random requests are drawn independently"),
    ("randrepeat", "runs repeat with the same seed"),
    ("invalidate", "a bdev has no page cache of ours"),
    ("refill_buffers", "the content of writes does not matter"),
    ("scramble_buffers", "the content of writes does not matter"),
    ("zero_buffers", "the content of writes does not matter"),
    ("exitall", "jobs run one after the other"),
    ("description", "it is for people"),
    ("gtod_reduce", "each request is timed"),
    ("cpus_allowed", "use --cpumask"),
    ("cpumask", "use --cpumask"),
];

/// What a line is.
enum Line<'a> {
    Empty,
    Section(&'a str),
    Key(&'a str, Option<&'a str>),
}

fn classify(text: &str) -> Option<Line<'_>> {
    let text = text.trim();
    if text.is_empty() || text.starts_with(['#', ';']) {
        return Some(Line::Empty);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (name, behind) = rest.split_once(']')?;
        let (name, behind) = (name.trim(), without_comment(behind));
        return (!name.is_empty() && behind.is_empty()).then_some(Line::Section(name));
    }
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key.trim(), Some(without_comment(value))),
        None => (without_comment(text), None),
    };
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (!key.is_empty() && key.chars().all(is_key)).then_some(Line::Key(key, value))
}

/// Up to a `;` or `#` that stands behind a space.
fn without_comment(text: &str) -> &str {
    let marks = text.char_indices().filter(|(_, c)| matches!(c, ';' | '#'));
    let is_comment = |at: usize| {
        text[..at]
            .chars()
            .next_back()
            .is_none_or(char::is_whitespace)
    };
    let end = marks.map(|(at, _)| at).find(|at| is_comment(*at));
    text[..end.unwrap_or(text.len())].trim()
}

impl JobFile {
    /// Reads a job file.
    ///
    /// # Errors
    /// The first line that can't be used, and why.
    pub fn parse(text: &str) -> Result<Self, JobFileError> {
        let mut file = Self::default();
        let mut global = JobSpec::default();
        let mut in_global = None;
        for (line, text) in (1..).zip(text.lines()) {
            match classify(text) {
                None => {
                    let text = text.trim().to_owned();
                    return Err(JobFileError::Syntax { line, text });
                }
                Some(Line::Empty) => {}
                Some(Line::Section("global")) => in_global = Some(true),
                Some(Line::Section(name)) => {
                    file.begin(line, name, &global)?;
                    in_global = Some(false);
                }
                Some(Line::Key(key, value)) => {
                    let job = match (in_global, file.jobs.last_mut()) {
                        (Some(true), _) => &mut global,
                        (Some(false), Some(job)) => job,
                        _ => {
                            let key = key.to_owned();
                            return Err(JobFileError::NoSection { line, key });
                        }
                    };
                    if let Some(note) = set(job, line, key, value)? {
                        file.notes.push(note);
                    }
                }
            }
        }
        if file.jobs.is_empty() {
            return Err(JobFileError::NoJob);
        }
        Ok(file)
    }

    fn begin(&mut self, line: usize, name: &str, global: &JobSpec) -> Result<(), JobFileError> {
        if let Some(before) = self.jobs.iter().find(|job| job.name == name) {
            return Err(JobFileError::SameName {
                line,
                name: name.to_owned(),
                before: before.line,
            });
        }
        self.jobs.push(JobSpec {
            name: name.to_owned(),
            line,
            ..global.clone()
        });
        Ok(())
    }
}

/// Puts `value` where it belongs, or says what is wanted.
fn put<T>(
    place: &mut Option<T>,
    value: Option<T>,
    wanted: &'static str,
) -> Result<(), &'static str> {
    *place = Some(value.ok_or(wanted)?);
    Ok(())
}

/// Sets a key; a note if it changes nothing.
fn set(
    job: &mut JobSpec,
    line: usize,
    key: &str,
    value: Option<&str>,
) -> Result<Option<JobNote>, JobFileError> {
    let text = value.unwrap_or("");
    let done = match key {
        "time_based" => put(&mut job.time_based, bool_value(value), "0 or 1"),
        "sync" => put(&mut job.fua, sync(text), "none, 0, sync, dsync or 1"),
        "verify" => put(&mut job.verify, verify(text), "0 or the name of a checksum"),
        _ => match set_number(job, key, text).or_else(|| set_word(job, key, text)) {
            Some(done) => done,
            None => {
                let known = IGNORED.iter().find(|(known, _)| *known == key);
                let key = key.to_owned();
                return match known {
                    Some((_, why)) => Ok(Some(JobNote { line, key, why })),
                    None => Err(JobFileError::UnknownKey { line, key }),
                };
            }
        },
    };
    done.map(|()| None).map_err(|wanted| JobFileError::Value {
        line,
        key: key.to_owned(),
        value: text.to_owned(),
        wanted,
    })
}

/// Sets a key whose value is a number with or without a unit; nothing if it is none of those.
fn set_number(job: &mut JobSpec, key: &str, text: &str) -> Option<Result<(), &'static str>> {
    const COUNT: &str = "a number from 1 to 65536";
    const TIME: &str = "a time, in seconds or with us, ms, s, m, h, d";
    const BYTES: &str = "bytes, or a percentage of the device";
    let count = || number(text).and_then(|n| u32::try_from(n).ok());
    let small = || count().filter(|n| (1..=65_536).contains(n));
    Some(match key {
        "bs" | "blocksize" => put(&mut job.block_bytes, block(text), "a size from 512 to 1g"),
        "iodepth" | "queue_depth" => put(&mut job.depth, small(), COUNT),
        "numjobs" => put(&mut job.jobs, small(), COUNT),
        "size" => put(&mut job.size, extent(text, 1), BYTES),
        "offset" => put(&mut job.offset, extent(text, 0), BYTES),
        "runtime" | "timeout" => put(&mut job.run_ns, duration_ns(text), TIME),
        "ramp_time" => put(&mut job.ramp_ns, duration_ns(text), TIME),
        "number_ios" => put(&mut job.requests_max, positive(text), "a number above 0"),
        "rwmixread" => put(&mut job.read_percent, percent(text), "0 to 100"),
        "rwmixwrite" => {
            let reads = percent(text).map(|writes| 100 - writes);
            put(&mut job.read_percent, reads, "0 to 100")
        }
        "rate_iops" => put(&mut job.rate_iops, positive(text), "a number above 0"),
        "fsync" | "fdatasync" => put(&mut job.flush_every, count(), "a number of writes"),
        "randseed" => put(&mut job.seed, number(text), "a number"),
        _ => return None,
    })
}

/// Sets a key whose value is a word; nothing if it is none of those.
fn set_word(job: &mut JobSpec, key: &str, text: &str) -> Option<Result<(), &'static str>> {
    Some(match key {
        "rw" | "readwrite" => put(
            &mut job.rw,
            rw(text),
            "read, write, rw, randread, randwrite, randrw, trim or randtrim",
        ),
        "bssplit" => put(
            &mut job.block_split,
            split(text),
            "size/percentage:size/percentage, which add up to 100,",
        ),
        "random_distribution" => put(
            &mut job.distribution,
            distribution(text),
            "random, or zipf:θ with θ above 0 and not 1,",
        ),
        "rate_process" => put(
            &mut job.rate_poisson,
            match text {
                "linear" => Some(false),
                "poisson" => Some(true),
                _ => None,
            },
            "linear or poisson",
        ),
        "filename" => put(&mut job.bdev, one_name(text), "the name of one bdev"),
        _ => return None,
    })
}

fn rw(text: &str) -> Option<JobRw> {
    Some(match text {
        "read" => JobRw::Read,
        "write" => JobRw::Write,
        "rw" | "readwrite" => JobRw::ReadWrite,
        "randread" => JobRw::RandRead,
        "randwrite" => JobRw::RandWrite,
        "randrw" => JobRw::RandReadWrite,
        "trim" | "unmap" => JobRw::Trim,
        "randtrim" => JobRw::RandTrim,
        _ => return None,
    })
}

fn sync(text: &str) -> Option<bool> {
    match text {
        "none" | "0" => Some(false),
        "sync" | "dsync" | "1" => Some(true),
        _ => None,
    }
}

fn verify(text: &str) -> Option<bool> {
    let known = [
        "md5",
        "crc64",
        "crc32",
        "crc32c",
        "crc32c-intel",
        "crc16",
        "crc7",
        "xxhash",
        "sha1",
        "sha256",
        "sha512",
        "meta",
        "pattern",
        "1",
    ];
    match text {
        "0" => Some(false),
        _ => known.contains(&text).then_some(true),
    }
}

fn block(text: &str) -> Option<u32> {
    let bytes = bytes(text)?;
    let bytes = u32::try_from(bytes).ok()?;
    (512..=1 << 30).contains(&bytes).then_some(bytes)
}

fn extent(text: &str, least: u64) -> Option<JobExtent> {
    if let Some(share) = text.strip_suffix('%') {
        let share = percent(share)?;
        return (u64::from(share) >= least).then_some(JobExtent::Percent(share));
    }
    let bytes = bytes(text)?;
    (bytes >= least).then_some(JobExtent::Bytes(bytes))
}

fn positive(text: &str) -> Option<u64> {
    number(text).filter(|n| *n > 0)
}

/// fio separates names by colons, which are also in names of bdevs; one bdev has no space.
fn one_name(text: &str) -> Option<String> {
    (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
