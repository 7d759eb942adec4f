//! Methods about keys.

use super::{Name, refuse_unless_default};
use crate::app::service::Service;
use rpc::{Allowed, Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.section(
        "Keys",
        "A key is a file, named: only its path is kept, told and saved, never what is in it.",
    );
    registry.method("keyring_file_add_key", add_key).about(
        "Names the key in a file, which nobody but the service's user may read.",
        "true. −17 if the name is taken, −1 for a relative path and for a file that others may use or that \
         is somebody else's, −2 if there is none.",
    );
    registry
        .method("keyring_file_remove_key", remove_key)
        .about(
            "Forgets a key; its file stays.",
            "true. −2 if there is none, −16 while a host or a controller is authenticated with it.",
        );
    registry
        .plain("keyring_get_keys", |service: &Service| {
            Ok(service.keyring.list())
        })
        .about(
            "The keys.",
            "`[{name, module: \"keyring_file\", removed, probed, refcnt, path}]`.",
        );
    registry
        .method("keyring_linux_set_options", linux_set_options)
        .allowed(Allowed::Startup)
        .about(
            "Takes that the kernel's keyring is not used.",
            "true. −32602 if it is to be.",
        );
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddKey {
    /// The key's name, 1 to 255 bytes of `A-Z a-z 0-9 _ . : -`.
    name: String,
    /// Its file, from the root on.
    path: PathBuf,
}

fn add_key(service: &Service, params: AddKey) -> Result<bool, Error> {
    service.keyring.add(params.name, params.path)?;
    Ok(true)
}

fn remove_key(service: &Service, params: Name) -> Result<bool, Error> {
    let name = &params.name;
    if service.nvmf.uses_key(name) || service.bdevs.uses_key(name) {
        let errno = Errno::BUSY.raw_os_error();
        let strerror = Error::errno(errno).message;
        let message = format!("{strerror}: something is authenticated with key '{name}'");
        return Err(Error::errno_with(errno, message));
    }
    service.keyring.remove(name)?;
    Ok(true)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LinuxSetOptions {
    /// Only false.
    #[serde(default)]
    enable: bool,
}

fn linux_set_options(_: &Service, params: LinuxSetOptions) -> Result<bool, Error> {
    refuse_unless_default("enable", Some(params.enable), &false)?;
    Ok(true)
}
