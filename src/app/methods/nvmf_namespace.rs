//! Methods about the namespaces of NVMe-oF subsystems.

use super::nvmf::check_target;
use super::refuse_unless_default;
use crate::app::config::{Object, Place};
use crate::app::service::Service;
use crate::target::nvmf::{NamespaceConfig, NamespaceInfo};
use rpc::{Error, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry.method("nvmf_subsystem_add_ns", add_ns).about(
        "Offers a bdev as a namespace; hosts that are connected are told. A bdev may be in several \
         subsystems, and exported otherwise, too.",
        "The namespace's number. −16 if the bdev has an owner, −19 without such a bdev, −32602 if the number \
         or an identity is taken, the number above `max_namespaces`, or for what is not offered.",
    );
    registry.method("nvmf_subsystem_remove_ns", remove_ns).about(
        "Takes a namespace away; hosts that are connected are told. What waits for its bdev is given up, what \
         the device has is finished first: until then the bdev is in use.",
        "true. −32602 without such a namespace.",
    );
}

/// A namespace to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Namespace {
    /// The bdev.
    bdev_name: String,
    /// Its number, from 1; the lowest free one if not given, or 0.
    nsid: Option<u32>,
    /// 32 hexadecimal digits; its UUID if not given.
    nguid: Option<String>,
    /// 16 hexadecimal digits; none if not given.
    eui64: Option<String>,
    /// The bdev's if not given.
    uuid: Option<Uuid>,
    /// Not offered: there are no reservations.
    ptpl_file: Option<String>,
    /// Only 0.
    anagrpid: Option<u32>,
    /// Only false.
    no_auto_visible: Option<bool>,
    /// Taken as it is: no bdev has metadata.
    #[serde(rename = "hide_metadata")]
    _hide_metadata: Option<bool>,
}

/// `nvmf_subsystem_add_ns`: a bdev as a namespace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddNs {
    /// The subsystem.
    nqn: String,
    /// What to offer: `bdev_name`; `nsid`, its number from 1, the lowest free one if 0 or not given; `uuid`,
    /// the bdev's if not given; `nguid`, 32 hexadecimal digits, those of the UUID if not given; `eui64`, 16
    /// of them, none if not given; `anagrpid`, only 0; `no_auto_visible`, only false; `ptpl_file`, not
    /// offered; `hide_metadata`, taken as it is.
    namespace: Namespace,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

/// The bytes that `text` has the digits of.
fn bytes_of<const N: usize>(what: &str, text: &str) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let pairs = text.as_bytes().chunks(2);
    let right = text.len() == 2 * N && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !right {
        let digits = 2 * N;
        return Err(Error::invalid_params(format!(
            "Invalid parameters: {what} '{text}' is not {digits} hexadecimal digits"
        )));
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let digit = |at: usize| pair.get(at).and_then(|d| char::from(*d).to_digit(16));
        let value = digit(0).unwrap_or(0) * 16 + digit(1).unwrap_or(0);
        *byte = u8::try_from(value).unwrap_or(0);
    }
    Ok(bytes)
}

/// The digits of `bytes`, as SPDK writes them.
fn digits_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn add_ns(service: &Service, params: AddNs) -> Result<u32, Error> {
    check_target(params.tgt_name.as_deref())?;
    let wanted = params.namespace;
    refuse_unless_default("ptpl_file", wanted.ptpl_file, &String::new())?;
    refuse_unless_default("anagrpid", wanted.anagrpid, &0)?;
    refuse_unless_default("no_auto_visible", wanted.no_auto_visible, &false)?;
    let nguid = wanted.nguid.as_deref().map(|text| bytes_of("nguid", text));
    let eui64 = wanted.eui64.as_deref().map(|text| bytes_of("eui64", text));
    let (nguid, eui64) = (nguid.transpose()?, eui64.transpose()?);
    service
        .nvmf
        .add_namespace(&service.bdevs, &params.nqn, &wanted.bdev_name, |bdev| {
            NamespaceConfig {
                bdev,
                nsid: wanted.nsid,
                nguid,
                eui64,
                uuid: wanted.uuid,
                ana_group: None,
            }
        })
}

/// `nvmf_subsystem_remove_ns`: takes a namespace away.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoveNs {
    /// The subsystem.
    nqn: String,
    /// The namespace's number.
    nsid: u32,
    /// The target; `nvmf_tgt` by default.
    tgt_name: Option<String>,
}

fn remove_ns(service: &Service, params: RemoveNs) -> Result<bool, Error> {
    check_target(params.tgt_name.as_deref())?;
    let (nqn, nsid) = (&params.nqn, params.nsid);
    let removed = service.nvmf.remove_namespace(&service.bdevs, nqn, nsid);
    // One that waits for its bdev is not waited for any more.
    let waiting = Object::NvmfNamespace(nqn.clone(), Place::Nsid(nsid.into()));
    match removed {
        Err(_) if service.unresolved.forget(&waiting) => Ok(true),
        removed => removed.map(|()| true),
    }
}

/// What clients are told of a namespace.
pub(super) fn describe_namespace(info: &NamespaceInfo) -> Value {
    let mut told = json!({
        "nsid": info.nsid,
        "bdev_name": info.bdev_name,
        "name": info.bdev_name,
        "nguid": digits_of(&info.nguid),
        "uuid": info.uuid,
    });
    if let Some(members) = told.as_object_mut().filter(|_| info.eui64 != [0; 8]) {
        members.insert("eui64".to_owned(), digits_of(&info.eui64).into());
    }
    told
}

/// The parameters that make the namespace again.
pub(in crate::app) fn namespace_params(nqn: &str, info: &NamespaceInfo) -> Value {
    let mut namespace = json!({"nsid": info.nsid, "bdev_name": info.bdev_name});
    let wishes = [
        ("nguid", info.nguid_wish.map(|bytes| digits_of(&bytes))),
        (
            "eui64",
            (info.eui64 != [0; 8]).then(|| digits_of(&info.eui64)),
        ),
        ("uuid", info.uuid_wish.map(|uuid| uuid.to_string())),
    ];
    for (key, wish) in wishes {
        if let (Some(wish), Some(members)) = (wish, namespace.as_object_mut()) {
            members.insert(key.to_owned(), wish.into());
        }
    }
    json!({"nqn": nqn, "namespace": namespace})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_become_bytes_and_digits_again() {
        assert_eq!(bytes_of("x", "00ffA5"), Ok([0, 0xff, 0xa5]));
        assert_eq!(digits_of(&[0, 0xff, 0xa5]), "00FFA5");
        for bad in [
            "", "00ffa", "00ffa500", "00ffag", "0 ffa5", "+0ffa5", "é0a5a",
        ] {
            assert!(bytes_of::<3>("x", bad).is_err(), "{bad}");
        }
    }
}
