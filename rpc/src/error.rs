//! What a method answers when it refuses.

use serde::{Deserialize, Serialize};

/// A JSON-RPC error object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Error {
    /// One of the codes of JSON-RPC, or a negated errno.
    pub code: i64,
    /// What went wrong, for people; stable enough for scripts.
    pub message: String,
    /// The errno behind `code`, where SPDK's clients expect a code that hides it. Stays in the process.
    #[serde(skip)]
    hidden_errno: Option<i32>,
}

impl Error {
    /// The text is not JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// The JSON is not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are not what the method takes.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The server failed; SPDK's bdev methods also say this of parameters that don't decode.
    pub const INTERNAL_ERROR: i64 = -32603;

    /// Not in this phase of the service (SPDK's code; a negated EPERM looks the same).
    pub const WRONG_STATE: i64 = -1;

    /// An error with a code and a message of its own.
    #[must_use]
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hidden_errno: None,
        }
    }

    /// The same error under another code and message; [`Error::as_errno`] stays what it is.
    #[must_use]
    pub fn hidden_behind(&self, code: i64, message: impl Into<String>) -> Self {
        Self {
            hidden_errno: self.as_errno(),
            ..Self::new(code, message)
        }
    }

    /// The errno (positive) that it stands for, if it does.
    #[must_use]
    pub fn as_errno(&self) -> Option<i32> {
        let plain = || i32::try_from(self.code.checked_neg()?).ok();
        self.hidden_errno
            .or_else(|| plain().filter(|errno| (1..4096).contains(errno)))
    }

    /// The parameters decode, but can't be accepted.
    #[must_use]
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(Self::INVALID_PARAMS, message)
    }

    /// A run-time failure: the negated `errno` (positive, as the kernel's headers count) and its
    /// usual text.
    #[must_use]
    pub fn errno(errno: i32) -> Self {
        Self::new(-i64::from(errno), errno_text(errno))
    }

    /// A run-time failure with a text of its own.
    #[must_use]
    pub fn errno_with(errno: i32, message: impl Into<String>) -> Self {
        Self::new(-i64::from(errno), message)
    }

    /// What the operating system said about `what`; without an errno, an internal error.
    #[must_use]
    pub fn os(what: &str, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::errno_with(errno, format!("{what}: {}", errno_text(errno))),
            None => Self::new(Self::INTERNAL_ERROR, format!("{what}: {error}")),
        }
    }
}

/// What `strerror` says.
fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let suffix = format!(" (os error {errno})");
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_has_the_text_that_scripts_match() {
        let error = Error::errno(19);
        assert_eq!((error.code, &*error.message), (-19, "No such device"));
        for (errno, text) in [
            (1, "Operation not permitted"),
            (2, "No such file or directory"),
            (5, "Input/output error"),
            (6, "No such device or address"),
            (12, "Cannot allocate memory"),
            (16, "Device or resource busy"),
            (17, "File exists"),
            (22, "Invalid argument"),
            (28, "No space left on device"),
            (30, "Read-only file system"),
            (74, "Bad message"),
            (95, "Operation not supported"),
            (98, "Address already in use"),
            (110, "Connection timed out"),
            (114, "Operation already in progress"),
            (116, "Stale file handle"),
            (117, "Structure needs cleaning"),
        ] {
            let error = Error::errno(errno);
            assert_eq!((error.code, &*error.message), (-i64::from(errno), text));
        }
    }

    #[test]
    fn an_errno_is_told_behind_any_code() {
        assert_eq!(Error::errno(19).as_errno(), Some(19));
        let hidden = Error::errno(2).hidden_behind(Error::INTERNAL_ERROR, "no");
        assert_eq!((hidden.code, hidden.as_errno()), (-32603, Some(2)));
        assert_eq!(Error::new(Error::INTERNAL_ERROR, "").as_errno(), None);
        assert_eq!(Error::new(i64::MIN, "").as_errno(), None);
    }
}
