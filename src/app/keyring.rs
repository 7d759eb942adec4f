//! The keys that the service knows by name: files with a secret in each. Only paths are kept; who needs a
//! key reads it when it is needed.

use super::shared::Shared;
use rpc::Error;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One key, as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct KeyInfo {
    /// Its name.
    pub(super) name: String,
    module: &'static str,
    removed: bool,
    probed: bool,
    /// The keyring itself holds one.
    refcnt: u32,
    /// The file.
    pub(super) path: PathBuf,
}

/// Files by the names of the keys in them.
#[derive(Debug, Default)]
pub(super) struct Keyring(Shared<BTreeMap<String, PathBuf>>);

fn refused(errno: Errno, path: &Path, why: &str) -> Error {
    let errno = errno.raw_os_error();
    let strerror = Error::errno(errno).message;
    Error::errno_with(errno, format!("{strerror}: {}: {why}", path.display()))
}

/// Whether only its owner, who is us, can read the file.
fn check_file(path: &Path) -> Result<(), Error> {
    if !path.is_absolute() {
        return Err(refused(Errno::PERM, path, "the path must be absolute"));
    }
    let shown = path.display().to_string();
    let found = std::fs::metadata(path).map_err(|error| Error::os(&shown, &error))?;
    if !found.is_file() {
        return Err(refused(Errno::INVAL, path, "it is no file"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(refused(
            Errno::PERM,
            path,
            "others than its owner may use it; chmod go= helps",
        ));
    }
    if found.uid() != rustix::process::getuid().as_raw() {
        return Err(refused(Errno::PERM, path, "it belongs to somebody else"));
    }
    Ok(())
}

impl Keyring {
    /// Adds the key in the file at `path`.
    ///
    /// # Errors
    /// −17 if the name is taken, −1 for a relative path or a file that others may use, what the operating
    /// system says of a file that is not there.
    pub(super) fn add(&self, name: String, path: PathBuf) -> Result<(), Error> {
        crate::bdev::check_name(&name).map_err(|error| super::bdevs::bdev_error(&error))?;
        check_file(&path)?;
        self.0.with(|keys| {
            if keys.contains_key(&name) {
                return Err(Error::errno(Errno::EXIST.raw_os_error()));
            }
            keys.insert(name, path);
            Ok(())
        })
    }

    /// Forgets a key.
    ///
    /// # Errors
    /// −2 if there is none of this name.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let removed = self.0.with(|keys| keys.remove(name));
        removed
            .map(drop)
            .ok_or_else(|| Error::errno(Errno::NOENT.raw_os_error()))
    }

    /// All keys, by name.
    pub(super) fn list(&self) -> Vec<KeyInfo> {
        self.0.with(|keys| {
            let infos = keys.iter().map(|(name, path)| KeyInfo {
                name: name.clone(),
                module: "keyring_file",
                removed: false,
                probed: false,
                refcnt: 1,
                path: path.clone(),
            });
            infos.collect()
        })
    }
}
