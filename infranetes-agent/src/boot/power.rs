//! The end of a machine.

use std::path::Path;

use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

use super::console;

/// Makes Ctrl-Alt-Del a signal for us instead of the end of the machine.
pub(super) fn keep_for_us() {
    let _ = set_cad_enabled(false);
}

/// Ends every process and the machine.
pub(super) fn off() -> ! {
    // As the first process, this reaches all but us.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    sync();
    console::drain();
    // Without ACPI a machine cannot switch itself off; one that starts again is one that its hypervisor was told to end then.
    let mode = if Path::new("/sys/firmware/acpi").exists() {
        RebootMode::RB_POWER_OFF
    } else {
        RebootMode::RB_AUTOBOOT
    };
    match reboot(mode) {
        Ok(never) => match never {},
        // Not the first process after all, or not allowed: then the end of this process is all there is.
        Err(_) => std::process::exit(1),
    }
}
