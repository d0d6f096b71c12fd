//! A machine out of namespaces: for the `process` provider, which has no machine of its own to give.
//!
//! ```text
//!  keeper (what was started) ─ unshares the pid namespace ─► the agent: its first process, in namespaces of its own
//! ```
//!
//! The keeper waits, passes signals on and ends with the agent's exit status. It holds one end of a pipe, and the kernel
//! kills the agent when the keeper dies: with the first process of a pid namespace, everything in it dies.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, sethostname};

use crate::args::World;
use crate::boot::network;

/// Runs this program again as the first process of new namespaces, and waits for its end.
pub fn keep(args: impl IntoIterator<Item = std::ffi::OsString>) -> io::Result<ExitCode> {
    // Blocked before there is a child, so that no signal falls between.
    let signals = signals();
    signals.thread_block()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let args = args.into_iter().map(|arg| match arg.to_str() {
        Some("--isolate") => "--isolated".into(),
        _ => arg,
    });
    let mut child = Command::new("/proc/self/exe").args(args).stdin(Stdio::piped()).spawn()?;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = child.try_wait()? {
                    return Ok(exit_code(status));
                }
            }
            signal => pass_on(&child, signal),
        }
    }
}

/// Makes the rest of the namespaces, as their first process.
pub fn enter(world: &World) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It was started as /proc/self/exe, and would be listed as "exe".
    nix::sys::prctl::set_name(c"infranetes-agent")?;
    if keeper_is_gone()? {
        return Err(io::Error::other("the keeper is gone"));
    }
    // The keeper's mask was inherited.
    signals().thread_unblock()?;
    match &world.network {
        // By its path in the node's file systems, and before anything else is unshared.
        Some(path) => setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?,
        None => unshare(CloneFlags::CLONE_NEWNET)?,
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), quiet, none)?;
    mount(Some("shm"), "/dev/shm", Some("tmpfs"), quiet, Some("mode=1777,size=64m"))?;
    // A mount of the old IPC namespace's queues would show those of the node.
    if std::path::Path::new("/dev/mqueue").is_dir() {
        mount(Some("mqueue"), "/dev/mqueue", Some("mqueue"), quiet, none)?;
    }
    hide_hybrid_cgroups()?;
    if let Some(hostname) = &world.hostname {
        sethostname(hostname)?;
    }
    network::loopback_up()
}

/// crun refuses to choose between two hierarchies; without the second one it takes the first.
fn hide_hybrid_cgroups() -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let is_unified = |line: &str| line.split(' ').nth(1) == Some(UNIFIED);
    for _ in mounts.lines().filter(|line| is_unified(line)) {
        umount2(UNIFIED, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// The keeper may have died before the kernel was told to kill us with it: then the pipe from it has no writer.
fn keeper_is_gone() -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let stdin = io::stdin();
    let flags = OFlag::from_bits_truncate(fcntl(&stdin, FcntlArg::F_GETFL)?);
    fcntl(&stdin, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    match nix::unistd::read(&stdin, &mut [0]) {
        Ok(0) => Ok(true),
        Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals
}

fn pass_on(child: &Child, signal: Signal) {
    // It was not waited for yet, so that the id is still its.
    let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
}

fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1))
}

const UNIFIED: &str = "/sys/fs/cgroup/unified";
