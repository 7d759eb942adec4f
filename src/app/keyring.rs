//! The keys that the service knows by name: files with a secret in each. Only paths are kept; who needs a
//! key reads it when it is needed.

use super::shared::Shared;
use crate::bdev::{ChapKey, HostKeys, NamedKey};
use rpc::Error;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// More than any key has.
const KEY_BYTES_MAX: u64 = 4096;

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

    /// Reads the key called `name`, for authentication.
    ///
    /// # Errors
    /// −126 if there is none of this name or its file can't be read, −1 if others may use the file by now,
    /// −22 if what is in it is no such key.
    fn chap_key(&self, name: &str) -> Result<ChapKey, Error> {
        let path = self.0.with(|keys| keys.get(name).cloned());
        let missing = |why: &str| {
            let errno = Errno::NOKEY.raw_os_error();
            let strerror = Error::errno(errno).message;
            Error::errno_with(errno, format!("{strerror}: key '{name}' {why}"))
        };
        let path = path.ok_or_else(|| missing("is not in the keyring"))?;
        let away = |error: std::io::Error| missing(&format!("can't be read: {error}"));
        let file = File::open(&path).map_err(away)?;
        check_file(&path)?;
        // As large as it may get: moved to a larger place, it would stay in the smaller one.
        let room = usize::try_from(KEY_BYTES_MAX).unwrap_or_default();
        let mut text = Zeroizing::new(String::with_capacity(room));
        let read = file.take(KEY_BYTES_MAX).read_to_string(&mut text);
        read.map_err(away)?;
        ChapKey::parse(&text).map_err(|fault| refused(Errno::INVAL, &path, &fault.to_string()))
    }

    /// Reads the keys of these names, by which a host and a controller authenticate each other; nothing
    /// if none is named.
    ///
    /// # Errors
    /// −32602 for a controller's key without a host's, −126 if there is none of a name or its file can't
    /// be read, −1 if others may use the file by now, −22 if what is in it is no such key.
    pub(super) fn host_keys(
        &self,
        host: Option<&String>,
        controller: Option<&String>,
    ) -> Result<Option<HostKeys>, Error> {
        let named = |name: &String| -> Result<NamedKey, Error> {
            let (name, key) = (name.clone(), self.chap_key(name)?);
            Ok(NamedKey { name, key })
        };
        match (host, controller) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::invalid_params(
                "Invalid parameters: dhchap_ctrlr_key needs a dhchap_key",
            )),
            (Some(host), controller) => Ok(Some(HostKeys {
                host: named(host)?,
                controller: controller.map(named).transpose()?,
            })),
        }
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
