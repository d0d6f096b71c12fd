//! The console: where the kernel's own lines go, and ours.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};

use nix::mount::{MsFlags, mount};
use nix::sys::termios::tcdrain;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Makes the console standard input, output and error. The kernel did where the initramfs has the device file.
pub(super) fn open() -> io::Result<()> {
    if io::stderr().is_terminal() {
        return Ok(());
    }
    let none: Option<&str> = None;
    std::fs::create_dir_all("/dev")?;
    mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, none)
        .or_else(already)?;
    let console = OpenOptions::new().read(true).write(true).open("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

/// Waits until everything that was written is out.
pub(super) fn drain() {
    let _ = tcdrain(io::stderr());
}

/// Mounted by the kernel or somebody before us is as good.
pub(super) fn already(error: nix::Error) -> nix::Result<()> {
    if error == nix::errno::Errno::EBUSY { Ok(()) } else { Err(error) }
}
