//! Opening a plugin where it can do no harm: in a child process.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::error::LoadError;
use crate::manifest::Manifest;
use crate::start::open_vetted;
use crate::vet::{Vetted, vet, vet_opened};

/// Vets and opens a plugin, and starts nothing. For programs that do only this and then end: a damaged file may crash
/// the process, and a good one stays mapped.
pub fn probe(path: &Path, sha256: Option<&str>) -> Result<Manifest, LoadError> {
    open_vetted(vet(path, sha256)?).map(|(file, _)| file.manifest)
}

/// As [`probe`], for a plugin that the parent process vetted and gives as standard input: these very bytes are opened. `path`
/// stands in messages.
pub fn probe_opened(path: &Path) -> Result<Manifest, LoadError> {
    let read = |source| LoadError::Read { path: path.into(), source };
    let file = std::io::stdin().as_fd().try_clone_to_owned().map_err(read)?;
    open_vetted(vet_opened(path, file.into())?).map(|(file, _)| file.manifest)
}

/// A program that opens a plugin and ends, as `infranetes-probe` does.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) program: PathBuf,
    /// What it takes before `--opened PLUGIN.so`.
    pub(crate) arguments: Vec<OsString>,
}

/// Has the probe open the very bytes that were vetted.
pub(crate) async fn in_child(probe: &Probe, vetted: &Vetted) -> Result<(), LoadError> {
    let program = &probe.program;
    let refused = |outcome: String| LoadError::Probe { path: vetted.path.clone(), outcome };
    let no_probe = |source| LoadError::NoProbe { program: program.into(), source };
    let file = vetted.file.try_clone().map_err(no_probe)?;
    let child = Command::new(program)
        .args(&probe.arguments)
        .arg("--opened")
        .arg(&vetted.path)
        .stdin(file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(no_probe)?;
    match tokio::time::timeout(PROBE_TIMEOUT, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            match (output.status.code(), said.lines().last()) {
                (Some(REFUSED), Some(said)) => {
                    Err(LoadError::Probed { path: vetted.path.clone(), said: said.to_owned() })
                }
                (_, last) => {
                    let last = last.unwrap_or("it said nothing");
                    Err(refused(format!("{}: {last}", output.status)))
                }
            }
        }
        Ok(Err(source)) => Err(no_probe(source)),
        Err(_) => Err(refused(format!("no answer within {} s", PROBE_TIMEOUT.as_secs()))),
    }
}

/// Vetting and linking take milliseconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// The exit code of a probe that refuses a file, and says so in its last line.
const REFUSED: i32 = 1;
