//! `pmcache serve`: the service from start to end.

use super::cli::fail;
use super::log::Log;
use super::methods::IDLE_US;
use super::observer::Watch;
use super::service::{Service, ServiceConfig};
use super::{announce, config, defaults};
use clap::{Args, ValueEnum};
use reactors::{CoreSet, IdlePolicy};
use rpc::{Limits, Listener, Registry, Server};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where files go by default.
pub(super) const DATA_DIR: &str = "./pmcache-data";

/// Where staging files go by default.
pub(super) const RUN_DIR: &str = "/dev/shm";

/// The RPC socket's name in the data directory.
pub(super) const RPC_SOCKET: &str = "rpc.sock";

/// Runs the service until SIGTERM or SIGINT.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// A configuration in SPDK's layout [also: --json-config, -c].
    #[arg(short, long, value_name = "FILE", alias = "json-config")]
    config: Option<PathBuf>,
    /// Wait for framework_start_init: clients configure the service.
    #[arg(long, conflicts_with = "config")]
    wait_for_rpc: bool,
    /// Where sockets and default files go.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// The RPC socket [default: rpc.sock in the data directory].
    #[arg(long, value_name = "PATH")]
    rpc_socket: Option<PathBuf>,
    /// A loopback address where RPC is answered too; whoever is on this machine may use it.
    #[arg(long, value_name = "IP:PORT")]
    rpc_tcp: Option<SocketAddr>,
    /// The cores of the data reactors: `0x3`, or `[0,1]`.
    #[arg(long, value_name = "MASK", default_value = "0x1")]
    cpumask: CoreSet,
    /// The cores of the maintenance threads [default: those that are left].
    #[arg(long, value_name = "MASK")]
    maintenance_cpumask: Option<CoreSet>,
    /// Where open ksets survive the process: on tmpfs, kept over a restart of the service.
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// Where the sockets of vhost controllers go [default: the data directory].
    #[arg(long, value_name = "DIR")]
    vhost_dir: Option<PathBuf>,
    /// What data reactors do when idle.
    #[arg(long, value_enum, default_value_t = Idle::Adaptive)]
    idle: Idle,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Idle {
    /// Spin.
    Poll,
    /// Spin for a while, then sleep.
    Adaptive,
    /// Sleep at once.
    Interrupt,
}

impl ServeArgs {
    fn rpc_socket(&self) -> PathBuf {
        match &self.rpc_socket {
            Some(path) => path.clone(),
            None => self.data_dir.join(RPC_SOCKET),
        }
    }

    fn service_config(&self) -> ServiceConfig {
        ServiceConfig {
            cores: self.cpumask.clone(),
            maintenance: self.maintenance_cpumask.clone(),
            idle: match self.idle {
                Idle::Poll => IdlePolicy::Poll,
                Idle::Adaptive => IdlePolicy::Adaptive { idle_us: IDLE_US },
                Idle::Interrupt => IdlePolicy::Interrupt,
            },
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            vhost_dir: self
                .vhost_dir
                .clone()
                .unwrap_or_else(|| self.data_dir.clone()),
            wait_for_rpc: self.wait_for_rpc,
        }
    }
}

/// How long an orderly end may take; what is stored is safe without it.
const STOP_MAX: Duration = Duration::from_millis(4500);

/// Runs the command.
pub(super) fn run(args: &ServeArgs, json: bool) -> ExitCode {
    match serve(args, json, Log::start()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, json, chain(&*error)),
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn serve(args: &ServeArgs, json: bool, log: Log) -> Result<(), Box<dyn Error>> {
    let (told, signals) = channel();
    watch_signals(told)?;
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| format!("{}: {error}", args.data_dir.display()))?;
    // First of all: two services on one socket are two on one data directory.
    let mut listener = Listener::bind(&args.rpc_socket())?;
    if let Some(address) = args.rpc_tcp {
        let address = listener.add_tcp(address)?;
        tracing::info!(%address, "answers RPC");
    }
    let service = Arc::new(Service::start(&args.service_config(), log)?);
    let registry = Arc::new(Service::registry());
    let server = Server::start(
        listener,
        Limits::default(),
        Arc::clone(&registry),
        Arc::clone(&service),
    )?;
    let observer = Watch::start(Arc::clone(&service))?;
    let prepared = prepare(args, &registry, &service).and_then(|()| {
        service.set_ready();
        announce::announce(&service, server.path(), json);
        Ok(config::watch(&registry, &service)?)
    });
    let ended = prepared.inspect(|_| wait_for_end(&signals));
    drop(observer);
    stop(service, server, ended)
}

/// Brings up what the configuration asks for.
fn prepare(
    args: &ServeArgs,
    registry: &Registry<Service>,
    service: &Service,
) -> Result<(), Box<dyn Error>> {
    match &args.config {
        Some(path) => config::apply_file(registry, service, path)?,
        None if args.wait_for_rpc => {}
        None => defaults::start(service)?,
    }
    Ok(())
}

/// Hands signals to whoever holds the other end; the second request to stop ends the process.
fn watch_signals(told: Sender<i32>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut asked = false;
            for signal in signals.forever() {
                if signal != SIGHUP {
                    if asked {
                        std::process::exit(1);
                    }
                    asked = true;
                }
                // The receiver lives as long as the process.
                let _ = told.send(signal);
            }
        })?;
    Ok(())
}

/// Waits for a signal that means to stop. A service has no terminal to lose: SIGHUP is ignored.
fn wait_for_end(signals: &Receiver<i32>) {
    while let Ok(signal) = signals.recv() {
        if signal != SIGHUP {
            tracing::info!(signal, "stopping");
            return;
        }
    }
}

/// Ends everything in order, within [`STOP_MAX`]: what is left then is as after a crash, which
/// loses nothing that was acknowledged.
fn stop(
    service: Arc<Service>,
    server: Server,
    watching: Result<Option<JoinHandle<()>>, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let (ended, watched) = channel::<()>();
    let watchdog = std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            if watched.recv_timeout(STOP_MAX) == Err(RecvTimeoutError::Timeout) {
                eprintln!("pmcache: something doesn't stop; leaving it behind");
                std::process::exit(1);
            }
        });
    if let Err(error) = watchdog {
        tracing::warn!(%error, "no watchdog for the stop");
    }
    service.set_ending();
    let watched = watching.map(|watching| match watching.map(JoinHandle::join) {
        None | Some(Ok(())) => {}
        Some(Err(_)) => tracing::error!("the thread that waits for devices panicked"),
    });
    server.stop();
    service.close();
    drop(service);
    drop(ended);
    watched
}
