//! The agent as the first process of a guest: file systems, modules, network, user-data; and at the end, power.
//!
//! Everything here is done once, in order, before anything else runs, on a CPU that may be emulated, where code costs most the
//! first time it runs: what can wait until the first container is left until then, and nothing waits for something else.

mod command_line;
mod console;
mod control;
mod modules;
mod mounts;
pub mod network;
mod power;
mod user_data;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infranetes_sdk::ContainerProvider;
use tracing::level_filters::LevelFilter;

use crate::invitation::{Invitation, InvitationError};
use crate::lines::{self, chain};
use crate::listener::Listen;
use crate::plugins::{Containers, Open, PluginError};
use crate::run::{Agent, RunError};
use crate::times::BootTimes;
use crate::{plugins, reaper};
use command_line::CommandLine;
use control::Control;
pub use modules::ModuleError;
use modules::Modules;
use network::{AddressError, StaticAddress};

/// Whether this process is the first one of a guest: the kernel starts it under a path that ends with "init".
pub fn is_first_process() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    nix::unistd::getpid().as_raw() == 1 && Path::new(&name).ends_with("init")
}

/// What the kernel wants loaded, when it runs this program as its helper for modules (`modprobe -q -- NAME`).
pub fn wanted_module() -> Option<String> {
    let mut args = std::env::args_os();
    let is_helper = Path::new(&args.next()?).ends_with("modprobe");
    is_helper.then(|| args.next_back()).flatten()?.into_string().ok()
}

/// Loads it. A module that the image does not have is nothing that the kernel wants to hear of.
pub fn load_wanted(meant: &str) -> Result<(), ModuleError> {
    Modules::of_running_kernel().map_err(ModuleError::unknown_kernel)?.load_meant(meant)
}

/// Boots, serves, and ends the machine. The machine also ends, after a line on the console, when any of it fails.
pub fn run(times: BootTimes, open: Open) -> ! {
    let ended = std::panic::catch_unwind(|| {
        console::open().map_err(BootError::Console).and_then(|()| boot(times, open))
    });
    match ended {
        Ok(Ok(())) => (),
        Ok(Err(error)) => eprintln!("infranetes: the machine did not start: {}", chain(&error)),
        Err(_) => eprintln!("infranetes: the agent had a defect; the machine ends"),
    }
    lines::release();
    power::off()
}

fn boot(times: BootTimes, open: Open) -> Result<(), BootError> {
    let modules = Modules::of_running_kernel().map_err(BootError::Kernel)?;
    mounts::prepare().map_err(BootError::Mounts)?;
    let command_line = CommandLine::read().map_err(BootError::CommandLine)?;
    lines::start(command_line.log().unwrap_or(LevelFilter::INFO));
    lines::hold();
    power::keep_for_us();
    let invitation = Invitation::parse(&user_data::read(&modules)?)?;
    let address = command_line.ip().map(StaticAddress::parse).transpose()?;
    let control = command_line.control().map(Control::parse).transpose()?;
    plugins::make_private_dir(Path::new(STATE)).map_err(BootError::Mounts)?;
    let listen = invitation.listen.clone().unwrap_or(Listen::DEFAULT);
    // A node that waits has dialled before, and its words are delivered as soon as there is a network: there has to be a
    // listener by then. One on an address of the network, or in a namespace that is made with it, has to wait for it.
    let early = control.is_none() && listen.needs_no_address();
    let early = early.then(|| listen.bind(None)).transpose().map_err(RunError::from)?;
    modules.load(modules::NETWORK)?;
    modules::help_kernel().map_err(BootError::Kernel)?;
    let no_ipv6 = command_line.no_ipv6();
    let control = control.map(|control| control.set_up(no_ipv6)).transpose();
    let control = control.map_err(BootError::Network)?;
    let apart = control.is_some();
    connect(address.as_ref(), apart, no_ipv6)?;
    tracing::debug!("the network is up");
    let listener = match early {
        Some(listener) => listener,
        None => listen.bind(control).map_err(RunError::from)?,
    };
    let agent = Agent {
        invitation,
        listen: None,
        containers: Containers::later(containers(modules, open)),
        state: PathBuf::from(STATE),
        owned: true,
        apart,
        addresses: address.map(|address| address.address.into()).into_iter().collect(),
        times: Arc::new(times),
    };
    let running = agent.listen_on(listener, &listen)?;
    running.meet()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BootError::Kernel)?;
    Ok(runtime.block_on(running.serve())?)
}

/// Without an address the machine has its link-local ones, and a node that reaches it there. With a way to the agent that is
/// apart, the rest waits until the node says what it is to be.
fn connect(address: Option<&StaticAddress>, apart: bool, no_ipv6: bool) -> Result<(), BootError> {
    if apart {
        return network::loopback_up().map_err(BootError::Network);
    }
    let Some((interface, name)) = network::first_interface() else {
        return match address {
            Some(_) => Err(BootError::NoInterface),
            None => Ok(()),
        };
    };
    if no_ipv6 {
        network::without_ipv6(&name).map_err(BootError::Network)?;
    }
    match address {
        Some(address) => {
            std::fs::write("/etc/resolv.conf", address.resolv_conf())
                .map_err(BootError::Network)?;
            network::configure(interface, address).map_err(BootError::Network)
        }
        None => network::link_up(interface).map_err(BootError::Network),
    }
}

/// What a pod needs before its first container, and no sooner: it takes longer than all the agent's other steps.
async fn containers(modules: Modules, open: Open) -> Result<Arc<dyn ContainerProvider>, BootError> {
    let prepared = tokio::task::spawn_blocking(move || {
        lines::release();
        network::loopback_up().map_err(BootError::Network)?;
        mounts::complete().map_err(BootError::Mounts)?;
        Ok::<_, BootError>(modules.load(modules::CONTAINERS)?)
    });
    prepared.await.map_err(|error| BootError::Kernel(io::Error::other(error)))??;
    tokio::spawn(reaper::run());
    Ok(open(PLUGINS.into(), Path::new(STATE).join("plugins")).await?)
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// There is no console.
    #[error("the console cannot be used")]
    Console(#[source] io::Error),
    /// The kernel does not say what it is.
    #[error("the kernel cannot be used")]
    Kernel(#[source] io::Error),
    /// A file system is missing.
    #[error("the machine's file systems cannot be mounted")]
    Mounts(#[source] io::Error),
    /// The command line cannot be read.
    #[error("the kernel's command line cannot be read")]
    CommandLine(#[source] io::Error),
    /// A module is missing.
    #[error("the kernel lacks a module")]
    Module(#[from] ModuleError),
    /// There is no user-data.
    #[error("the machine has no user-data")]
    UserData(#[from] user_data::UserDataError),
    /// The user-data is no invitation.
    #[error("the machine was not invited")]
    Invitation(#[from] InvitationError),
    /// The address on the command line is none.
    #[error("the machine's address cannot be used")]
    Address(#[from] AddressError),
    /// There is nothing to give an address to.
    #[error("the machine has an address but no network interface")]
    NoInterface,
    /// The network refused its settings.
    #[error("the network cannot be set up")]
    Network(#[source] io::Error),
    /// There is no container provider.
    #[error("no containers can be run")]
    Plugins(#[from] PluginError),
    /// The agent ended.
    #[error("the agent does not run")]
    Run(#[from] RunError),
}

const PLUGINS: &str = "/usr/lib/infranetes/plugins";
const STATE: &str = "/run/infranetes";
