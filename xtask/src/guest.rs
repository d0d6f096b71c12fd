//! The guest image: a kernel, and an initramfs with the agent, its plugins, crun and exactly what they need.
//!
//! All comes from Debian packages and this workspace; nothing is installed and no root is needed. Same inputs, same bytes. The first run
//! fetches packages, later ones look at no network. `docs/guest-image.md` says what is inside and why.

mod absent;
mod bare;
mod image;
mod kernel;
mod libraries;
mod lz4;
mod manifest;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::debian::store::Store;
use crate::guest::image::{Built, Inputs};
use crate::guest::kernel::Kernel;
use crate::guest::libraries::Libraries;
use crate::program::Program;
use crate::progress::Progress;
use crate::workspace::{Workspace, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the image goes; else `guest` below cargo's target directory.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Fetches the newest packages, also when others are there already.
    #[arg(long)]
    refresh: bool,
    /// Makes the image a second time from scratch and fails if it differs.
    #[arg(long)]
    verify: bool,
    /// A container plugin that the agent loads, in place of the oci provider that is part of it; a configuration beside it, named
    /// `.json` instead of `.so`, goes with it. May be given more than once: the first by name that runs containers is used.
    #[arg(long = "plugin", value_name = "FILE.so")]
    plugins: Vec<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| default_dir(workspace));
    let store = Store::new(workspace.target().join("guest-packages"));
    if options.refresh {
        store.forget()?;
    }
    let mut progress = Progress::new("guest", if options.verify { 5 } else { 4 });
    progress.step("Debian packages");
    let packages = packages(&store, &progress)?;
    progress.step("agent and plugins");
    let programs = build_programs(workspace, &options.plugins)?;
    progress.step("image");
    let built = make(&programs, &packages)?;
    progress.step("files");
    write(&out, &built)?;
    if options.verify {
        progress.step("once more, from packages unpacked elsewhere");
        verify(&programs, &store, &built, &progress)?;
    }
    let totals = &built.manifest.totals;
    progress.note(&format!(
        "kernel {}, {} files, initramfs {:.1} MiB",
        built.manifest.kernel.release,
        totals.files,
        mib(totals.initramfs_bytes)
    ));
    progress.done(&out.display().to_string());
    Ok(())
}

/// Makes the image where it lies if nobody says where; that place. `verify`: twice, and compares.
pub(crate) fn build(workspace: &Workspace, verify: bool) -> Result<PathBuf> {
    run(workspace, &Options { out: None, refresh: false, verify, plugins: Vec::new() })?;
    Ok(default_dir(workspace))
}

/// Makes another image beside the usual one, whose agent loads the oci provider from a file, as it would that of another author.
pub(crate) fn build_with_plugin(workspace: &Workspace) -> Result<()> {
    let dir = tempfile::tempdir().context("no temporary directory")?;
    let plugin = dir.path().join("oci.so");
    let built = workspace.release().join("libinfranetes_provider_oci.so");
    fs::copy(&built, &plugin).with_context(|| format!("{} cannot be copied", built.display()))?;
    fs::write(plugin.with_extension("json"), image::OCI_CONFIG)?;
    let out = Some(default_dir(workspace).with_file_name("guest-plugins"));
    run(workspace, &Options { out, refresh: false, verify: false, plugins: vec![plugin] })
}

/// Where the image lies if nobody says where.
pub(crate) fn default_dir(workspace: &Workspace) -> PathBuf {
    workspace.target().join("guest")
}

/// What of the image is ours.
#[derive(Debug)]
struct Programs {
    agent: PathBuf,
    /// None where what they would do is part of the agent.
    plugins: Vec<Plugin>,
}

/// A plugin for the agent.
#[derive(Debug)]
struct Plugin {
    file: PathBuf,
    name: String,
    config: Option<PathBuf>,
}

impl Plugin {
    fn find(file: &Path) -> Result<Plugin> {
        let name = file.file_stem().and_then(|stem| stem.to_str());
        let is_plugin =
            file.extension().is_some_and(|extension| extension == "so") && file.is_file();
        let name = name.filter(|_| is_plugin);
        let name = name.with_context(|| format!("{} is no file NAME.so", file.display()))?;
        let config = Some(file.with_extension("json")).filter(|config| config.is_file());
        Ok(Plugin { file: file.to_owned(), name: name.to_owned(), config })
    }
}

/// An unpacked package.
#[derive(Clone, Debug)]
struct Unpacked {
    name: String,
    version: String,
    sha256: String,
    dir: PathBuf,
}

fn packages(store: &Store, progress: &Progress) -> Result<Vec<Unpacked>> {
    let architecture = Program::new("dpkg")
        .arg("--print-architecture")
        .output()
        .context("the guest image is made on Debian")?;
    if architecture.trim() != "amd64" {
        bail!("guest images are made for amd64 alone; this machine is {}", architecture.trim());
    }
    let fetched = store.get(&PACKAGES, progress)?;
    let unpack = |package| {
        let dir = store.unpack(package)?;
        let (name, version) = (package.name.clone(), package.version.clone());
        Ok(Unpacked { name, version, sha256: package.sha256.clone(), dir })
    };
    fetched.iter().map(unpack).collect()
}

/// Our programs for the image. One without shared libraries, with the oci provider in it, starts soonest; plugins need the other.
fn build_programs(workspace: &Workspace, plugins: &[PathBuf]) -> Result<Programs> {
    let build = |what, package| cargo().args([what, "--quiet", "--release", "--package", package]);
    let agent = match plugins {
        [] => {
            // A place of its own: built alone its libraries have fewer features, and in the usual place each build would undo the other.
            let target = workspace.target().join("guest-agent");
            let build = build("rustc", STATIC_AGENT).arg("--target-dir").arg(&target);
            build.arg("--").args(["-C", "target-feature=+crt-static", "-C", PACKED]).run()?;
            target.join("release").join(STATIC_AGENT)
        }
        _ => {
            build("build", AGENT).run()?;
            workspace.release().join(AGENT)
        }
    };
    let plugins = plugins.iter().map(|file| Plugin::find(file)).collect::<Result<_>>()?;
    Ok(Programs { agent, plugins })
}

fn make(programs: &Programs, packages: &[Unpacked]) -> Result<Built> {
    let kernel = Kernel::find(packages)?;
    let libraries = Libraries::find(packages)?;
    Inputs { programs, packages, libraries, kernel }.build()
}

fn write(out: &Path, built: &Built) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    for (name, bytes) in built.files()? {
        let path = out.join(name);
        if fs::read(&path).is_ok_and(|before| before == bytes) {
            continue;
        }
        // A machine that boots meanwhile reads the old file whole, never half of the new one.
        let new = out.join(format!("{name}.new"));
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("{} cannot be written (disk full?)", path.display()))?;
    }
    Ok(())
}

fn verify(programs: &Programs, store: &Store, built: &Built, progress: &Progress) -> Result<()> {
    let elsewhere = tempfile::tempdir().context("no temporary directory")?;
    let second = Store::new(elsewhere.path().to_owned());
    second.copy_debs_of(store)?;
    let again = make(programs, &packages(&second, progress)?)?;
    for ((name, first), (_, second)) in built.files()?.into_iter().zip(again.files()?) {
        ensure!(first == second, "{name} differs between two builds of the same inputs");
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

const AGENT: &str = "infranetes-agent";
const STATIC_AGENT: &str = "infranetes-guest";
/// Eleven thousand addresses that the program sets right as it starts, in 3 KiB instead of 260: glibc reads that from 2.36 on, which
/// Debian 12 has.
const PACKED: &str = "link-arg=-Wl,-z,pack-relative-relocs";
/// Where the files of the guest come from, beside this workspace. Their dependencies come with them.
const PACKAGES: [&str; 4] = ["crun", "libc6", "libgcc-s1", "linux-image-cloud-amd64"];
