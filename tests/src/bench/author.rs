//! What an author waits for: how long the crate that `plugin new` writes builds, and how large its plugin is.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Target;
use crate::author::Workshop;
use crate::node::Programs;

/// The figures, of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Size of the stripped plugin of `cargo build --release`.
    pub plugin_bytes: u64,
    /// `cargo build --release` where nothing was built, in seconds.
    pub release_build_seconds: f64,
    /// `cargo build` where nothing was built, in seconds.
    pub clean_build_seconds: f64,
    /// `cargo build` after a change of the provider, in seconds.
    pub incremental_build_seconds: f64,
    /// A change, `cargo build`, and `plugin check` of the pod suite, in seconds.
    pub edit_to_checked_seconds: f64,
}

/// Builds the template in a directory of its own. Takes minutes, nearly all of them for dependencies; fetches nothing that
/// this checkout's lock file does not name.
pub fn measure(programs: &Programs) -> Result<Figures> {
    let target = tempfile::Builder::new().prefix("infranetes-author-target-").tempdir()?;
    let workshop = Workshop::new(programs, target.path().to_owned())?;
    let dir = workshop.new_crate("measured")?;
    let built = |profile: &str| dir.join("target").join(profile).join("libmeasured.so");
    let release_build =
        timed(|| workshop.cargo(&dir, ["build", "--release", "--quiet"]).map(drop))?;
    let plugin_bytes = fs::metadata(built("release")).context("the built plugin")?.len();
    let clean_build = timed(|| workshop.cargo(&dir, ["build", "--quiet"]).map(drop))?;
    let mut incremental_build = Duration::ZERO;
    let edit_to_checked = timed(|| {
        edit(&dir)?;
        incremental_build = timed(|| workshop.cargo(&dir, ["build", "--quiet"]).map(drop))?;
        let plugin = built("debug");
        let file = plugin.to_string_lossy();
        let config = dir.join("measured.toml");
        let config = config.to_string_lossy();
        workshop.cri(["plugin", "check", &file, "--config", &config, "--suite", "pod"]).map(drop)
    })?;
    Ok(Figures {
        plugin_bytes,
        release_build_seconds: release_build.as_secs_f64(),
        clean_build_seconds: clean_build.as_secs_f64(),
        incremental_build_seconds: incremental_build.as_secs_f64(),
        edit_to_checked_seconds: edit_to_checked.as_secs_f64(),
    })
}

impl Figures {
    /// The figures that have a target.
    pub fn targets(&self) -> Vec<Target> {
        vec![
            Target {
                name: "template plugin".into(),
                measured: self.plugin_bytes as f64 / 1e6,
                at_most: 1.5,
                unit: "MB",
            },
            Target {
                name: "edit to checked".into(),
                measured: self.edit_to_checked_seconds,
                at_most: 20.0,
                unit: "s",
            },
        ]
    }
}

/// A change that changes what is built.
fn edit(dir: &Path) -> Result<()> {
    let lib = dir.join("src/lib.rs");
    let source = fs::read_to_string(&lib)?;
    let edited =
        source.replace("USER_DATA_MAX: usize = 16 << 10", "USER_DATA_MAX: usize = 15 << 10");
    ensure!(edited != source, "the template has no such line any more, so that nothing is built");
    Ok(fs::write(&lib, edited)?)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}
