//! The boundary under Miri, an interpreter that finds undefined behaviour: calls, errors, panics, streams and cancellation of a
//! plugin that is linked in, so that no file has to be loaded.

use anyhow::Result;

use super::toolchain::Toolchain;
use crate::workspace::Workspace;

/// The name of the row.
pub(super) const NAME: &str = "miri";

/// Why the row cannot be run here, if it cannot.
pub(super) fn missing(nightly: &Toolchain) -> Result<Option<String>> {
    if !nightly.is_installed()? {
        return Ok(Some(format!("{nightly} is not installed")));
    }
    let asked = nightly.cargo()?.args(["miri", "--version"]).outcome()?;
    let component = "`rustup component add --toolchain nightly miri rust-src`";
    Ok((!asked.status.success()).then(|| format!("{nightly} has no Miri, which {component} adds")))
}

pub(super) fn try_out(workspace: &Workspace, nightly: &Toolchain) -> Result<String> {
    for (model, flags) in MODELS {
        nightly
            .cargo()?
            .dir(workspace.root())
            .env("CARGO_TARGET_DIR", workspace.target().join("skew/build/miri"))
            .env("MIRIFLAGS", format!("{COMMON} {flags}"))
            .args(["miri", "test", "--quiet", "--package", "infranetes-loader", "--test", "linked"])
            .quietly()
            .map_err(|error| error.context(format!("under {model}")))?;
    }
    let models: Vec<&str> = MODELS.iter().map(|(model, _)| *model).collect();
    Ok(format!("passed; a linked plugin, {}", models.join(", ")))
}

/// Instances end in the background, so that a test may end first; and a runtime asks the system for time and randomness.
const COMMON: &str = "-Zmiri-ignore-leaks -Zmiri-disable-isolation";
/// Each way to say which pointers may be used.
const MODELS: [(&str, &str); 3] = [
    ("stacked borrows", ""),
    ("tree borrows", "-Zmiri-tree-borrows"),
    ("strict provenance", "-Zmiri-strict-provenance"),
];
