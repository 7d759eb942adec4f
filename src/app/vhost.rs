//! The vhost side of the service: which controllers there are, and their threads.

use super::bdevs::Bdevs;
use super::shared::{Shared, poll_until};
use crate::target::vhost::{Coalescing, VhostConfig, VhostController, VhostError};
use reactors::{CoreSet, ReactorInfo};
use rpc::Error;
use rustix::io::Errno;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long queues may take to end before the caller gets its answer.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The only transport.
pub(super) const TRANSPORT: &str = "vhost_user_blk";

/// What to make.
#[derive(Debug)]
pub(super) struct NewController {
    /// Its name, and its socket's.
    pub(super) name: String,
    /// The disk.
    pub(super) bdev_name: String,
    /// Refuse writes.
    pub(super) read_only: bool,
    /// Where its queues may run; all data reactors if none.
    pub(super) cores: Option<CoreSet>,
}

#[derive(Debug)]
struct Entry {
    controller: VhostController,
    bdev_name: String,
    cores: CoreSet,
    wish: Wish,
}

/// What was asked for, to be asked again.
#[derive(Debug)]
struct Wish {
    /// Some if it was ever said.
    coalescing: Option<Coalescing>,
    read_only: bool,
    cores: Option<CoreSet>,
}

/// The controllers.
#[derive(Debug)]
pub(super) struct Vhost {
    dir: PathBuf,
    controllers: Shared<Vec<Entry>>,
}

/// What clients of SPDK's vhost methods get for all failures: the code of bad parameters, and what
/// strerror says.
pub(super) fn refused(errno: Errno, detail: impl std::fmt::Display) -> Error {
    tracing::warn!(%errno, "vhost: refused: {detail}");
    hidden(&Error::errno(errno.raw_os_error()))
}

/// As SPDK's clients get it. What it is shows to a configuration whose bdev is still to come.
fn hidden(error: &Error) -> Error {
    error.hidden_behind(Error::INVALID_PARAMS, error.message.clone())
}

fn vhost_error(error: &VhostError) -> Error {
    let errno = match error {
        VhostError::BadName(_) => Errno::INVAL,
        VhostError::AddressInUse(_) => Errno::ADDRINUSE,
        VhostError::NotASocket(_) => Errno::EXIST,
        VhostError::Listen { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        VhostError::NoReactor | VhostError::Threshold(_) => Errno::INVAL,
    };
    refused(errno, error)
}

fn user_of(name: &str) -> String {
    format!("vhost controller '{name}'")
}

impl Vhost {
    /// No controllers; their sockets will be in `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            controllers: Shared::default(),
        }
    }

    /// Offers a bdev as a disk.
    ///
    /// # Errors
    /// −32602 with the text of EEXIST, ENODEV, EBUSY, EINVAL or what the socket said.
    pub(super) fn create(
        &self,
        bdevs: &Bdevs,
        infos: &[ReactorInfo],
        new: NewController,
    ) -> Result<(), Error> {
        let there: CoreSet = infos.iter().flat_map(|info| info.cores.iter()).collect();
        let cores = new.cores.clone().unwrap_or_else(|| there.clone());
        if cores.is_empty() || !cores.without(&there).is_empty() {
            return Err(refused(
                Errno::INVAL,
                "no data reactor on some of the cores",
            ));
        }
        let on = |info: &&ReactorInfo| info.cores.iter().all(|core| cores.contains(core));
        let reactors = infos.iter().filter(on).map(|info| info.handle.clone());
        let user = user_of(&new.name);
        let joined = bdevs.join(&new.bdev_name, user.clone());
        let bdev = joined.map_err(|error| hidden(&error))?;
        let config = VhostConfig {
            name: new.name,
            dir: self.dir.clone(),
            bdev,
            read_only: new.read_only,
            reactors: reactors.collect(),
        };
        let wish = Wish {
            coalescing: None,
            read_only: new.read_only,
            cores: new.cores,
        };
        let started = self.start(config, new.bdev_name.clone(), cores, wish);
        if started.is_err() {
            bdevs.leave(&new.bdev_name, &user);
        }
        started
    }

    fn start(
        &self,
        config: VhostConfig,
        bdev_name: String,
        cores: CoreSet,
        wish: Wish,
    ) -> Result<(), Error> {
        // Listening takes no time, and under the lock nobody else takes the name.
        self.controllers.with(|controllers| {
            let same = |entry: &Entry| entry.controller.name() == config.name;
            if controllers.iter().any(same) {
                return Err(refused(
                    Errno::EXIST,
                    format_args!("{:?} exists", config.name),
                ));
            }
            std::fs::create_dir_all(&config.dir).map_err(|source| {
                let path = config.dir.clone();
                vhost_error(&VhostError::Listen { path, source })
            })?;
            let listening = VhostController::listen(config);
            let (controller, control) = listening.map_err(|error| vhost_error(&error))?;
            let thread = std::thread::Builder::new().name("vhost".to_owned());
            // It ends by itself once the controller is stopped.
            let spawned = thread.spawn(move || control.run());
            spawned.map_err(|error| refused(Errno::AGAIN, error))?;
            controllers.push(Entry {
                controller,
                bdev_name,
                cores,
                wish,
            });
            Ok(())
        })
    }

    /// What SPDK's clients are told of all controllers, or the one of this name.
    pub(super) fn list(&self, name: Option<&str>) -> Vec<Value> {
        self.controllers.with(|controllers| {
            let wanted = |entry: &&Entry| name.is_none_or(|name| entry.controller.name() == name);
            controllers.iter().filter(wanted).map(describe).collect()
        })
    }

    /// What was said of each controller's calls, as parameters, by its name.
    pub(super) fn saved_coalescing(&self) -> Vec<(String, Value)> {
        self.controllers.with(|controllers| {
            let said = controllers.iter().filter_map(|entry| {
                let name = entry.controller.name().to_owned();
                let Coalescing {
                    delay_base_us,
                    iops_threshold,
                } = entry.wish.coalescing?;
                let params = json!({
                    "ctrlr": name,
                    "delay_base_us": delay_base_us,
                    "iops_threshold": iops_threshold,
                });
                Some((name, params))
            });
            said.collect()
        })
    }

    /// The parameters that make each controller again, by its name.
    pub(super) fn saved(&self) -> Vec<(String, Value)> {
        self.controllers.with(|controllers| {
            let params = |entry: &Entry| {
                let name = entry.controller.name().to_owned();
                let mut params = json!({
                    "ctrlr": name,
                    "dev_name": entry.bdev_name,
                    "readonly": entry.wish.read_only,
                });
                if let Some(cores) = &entry.wish.cores {
                    params["cpumask"] = json!(format!("0x{cores:x}"));
                }
                (name, params)
            };
            controllers.iter().map(params).collect()
        })
    }

    /// Lets a controller's calls wait, or not.
    ///
    /// # Errors
    /// −32602 with the text of ENODEV or EINVAL.
    pub(super) fn set_coalescing(&self, name: &str, wanted: Coalescing) -> Result<(), Error> {
        self.controllers.with(|controllers| {
            let mut found = controllers.iter_mut();
            let entry = found.find(|entry| entry.controller.name() == name);
            let entry = entry.ok_or_else(|| refused(Errno::NODEV, format_args!("no {name:?}")))?;
            let set = entry.controller.set_coalescing(wanted);
            set.map_err(|error| vhost_error(&error))?;
            entry.wish.coalescing = Some(wanted);
            Ok(())
        })
    }

    /// Ends a controller and its session. What a slow device still has may outlast this call: the
    /// bdev stays in use until it is done.
    ///
    /// # Errors
    /// −32602 with the text of ENODEV.
    pub(super) fn delete(&self, bdevs: &Arc<Bdevs>, name: &str) -> Result<(), Error> {
        let taken = self.controllers.with(|controllers| {
            let is_it = |entry: &Entry| entry.controller.name() == name;
            let at = controllers.iter().position(is_it)?;
            Some(controllers.remove(at))
        });
        let entry = taken.ok_or_else(|| refused(Errno::NODEV, format_args!("no {name:?}")))?;
        end(entry, bdevs).map_err(|error| Error::os("vhost controller", &error))
    }

    /// Ends all controllers, as far as that is possible in [`CLOSE_WAIT`] each.
    pub(super) fn stop_all(&self, bdevs: &Arc<Bdevs>) {
        let mut entries = self.controllers.with(std::mem::take);
        // All at once, so that the waits are one.
        for entry in &mut entries {
            entry.controller.stop();
        }
        for entry in entries {
            if let Err(error) = end(entry, bdevs) {
                tracing::warn!(%error, "a vhost controller stays");
            }
        }
    }
}

/// Stops the controller, and frees its bdev when it has stopped.
fn end(mut entry: Entry, bdevs: &Arc<Bdevs>) -> std::io::Result<()> {
    entry.controller.stop();
    let user = user_of(entry.controller.name());
    if poll_until(CLOSE_WAIT, || entry.controller.is_stopped()) {
        bdevs.leave(&entry.bdev_name, &user);
        return Ok(());
    }
    let bdevs = Arc::clone(bdevs);
    let thread = std::thread::Builder::new().name("vhost-closing".to_owned());
    thread.spawn(move || {
        let hour = Duration::from_secs(3600);
        while !poll_until(hour, || entry.controller.is_stopped()) {}
        bdevs.leave(&entry.bdev_name, &user);
    })?;
    Ok(())
}

fn describe(entry: &Entry) -> Value {
    let controller = &entry.controller;
    let sessions: Vec<Value> = controller
        .session()
        .into_iter()
        .map(|session| {
            json!({
                "vid": session.vid,
                "id": 0,
                "name": format!("{}s{}", controller.name(), session.vid),
                "started": session.started,
                "max_queues": session.queues,
                "inflight_task_cnt": session.under_way,
            })
        })
        .collect();
    let coalescing = controller.coalescing();
    let socket = std::path::absolute(controller.path());
    let socket = socket.unwrap_or_else(|_| controller.path().to_owned());
    json!({
        "ctrlr": controller.name(),
        "cpumask": format!("0x{:x}", entry.cores),
        "delay_base_us": coalescing.delay_base_us,
        "iops_threshold": coalescing.iops_threshold,
        "socket": socket.display().to_string(),
        "sessions": sessions,
        "backend_specific": {
            "block": {
                "readonly": controller.read_only(),
                "bdev": entry.bdev_name,
                "transport": TRANSPORT,
            },
        },
    })
}
