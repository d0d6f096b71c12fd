//! `cargo xtask skew`: plugins of other compilers, profiles, dependencies and ABI minors run in this host, and the boundary runs under
//! AddressSanitizer and Miri. What the ABI promises, tried with what is installed.
//!
//! Each row builds the loader's fixtures as an author would, in a crate outside of this workspace, and runs the loader's own tests of
//! calls, streams, panics and cancellation with them. A toolchain that rustup does not have is skipped, and said so: no
//! toolchain is downloaded. Old versions of dependencies come from the registry.

mod fixtures;
mod miri;
mod newer;
mod sanitizer;
mod toolchain;

use anyhow::{Result, bail};

use crate::workspace::{Workspace, cargo};
use fixtures::{Built, Fixtures};
use toolchain::Toolchain;

/// What to try.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only rows whose names contain this.
    row: Option<String>,
    /// One row more: a directory with the `cargo` and `rustc` of another compiler, say a distribution's.
    #[arg(long, value_name = "DIR")]
    also: Option<std::path::PathBuf>,
}

/// One way to build a plugin.
struct Row {
    name: &'static str,
    toolchain: Toolchain,
    /// For the compiler.
    flags: &'static str,
    release: bool,
    /// Dependencies with the versions that they get, where these are not those of this workspace.
    versions: &'static [(&'static str, &'static str)],
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let wanted = |name: &str| options.row.as_ref().is_none_or(|part| name.contains(part));
    let mut table = Table::default();
    for row in rows(workspace, options).into_iter().filter(|row| wanted(row.name)) {
        if !row.toolchain.is_installed()? {
            table.skip(row.name, &format!("{} is not installed", row.toolchain));
            continue;
        }
        table.note(row.name, row.try_out(workspace));
    }
    if wanted(newer::NAME) {
        table.note(newer::NAME, newer::try_out(workspace));
    }
    if wanted(sanitizer::NAME) {
        match sanitizer::missing()? {
            Some(why) => table.skip(sanitizer::NAME, &why),
            None => table.note(sanitizer::NAME, sanitizer::try_out(workspace)),
        }
    }
    if wanted(miri::NAME) {
        match miri::missing(&nightly())? {
            Some(why) => table.skip(miri::NAME, &why),
            None => table.note(miri::NAME, miri::try_out(workspace, &nightly())),
        }
    }
    table.conclude()
}

/// How the rows ended.
#[derive(Default)]
struct Table {
    passed: Vec<&'static str>,
    skipped: Vec<&'static str>,
    failed: Vec<&'static str>,
}

impl Table {
    fn skip(&mut self, name: &'static str, why: &str) {
        println!("{name}: skipped, {why}");
        self.skipped.push(name);
    }

    fn note(&mut self, name: &'static str, outcome: Result<String>) {
        match outcome {
            Ok(what) => {
                println!("{name}: {what}");
                self.passed.push(name);
            }
            Err(error) => {
                println!("{name}: FAILED: {error:#}");
                self.failed.push(name);
            }
        }
    }

    fn conclude(&self) -> Result<()> {
        let Self { passed, skipped, failed } = self;
        let of = passed.len() + skipped.len() + failed.len();
        let skipped = match skipped.is_empty() {
            true => String::new(),
            false => format!("; skipped: {}", skipped.join(", ")),
        };
        println!("skew: {} of {of} rows passed{skipped}", passed.len());
        if !failed.is_empty() {
            bail!("rows that failed: {}", failed.join(", "));
        }
        if passed.is_empty() {
            bail!("nothing was tried");
        }
        Ok(())
    }
}

impl Row {
    fn try_out(&self, workspace: &Workspace) -> Result<String> {
        let fixtures = Fixtures::write(workspace, self.name, workspace.root())?;
        fixtures.settle(self.versions)?;
        let built = fixtures.build(&self.toolchain, self.flags, self.release)?;
        run_host_tests(workspace, &built)?;
        let profile = if self.release { "release" } else { "debug" };
        let (rustc, abi) = (built.manifest("rustc")?, built.manifest("abi")?);
        Ok(format!("passed; rustc {rustc}, {profile}, ABI {abi}{}", self.details()))
    }

    fn details(&self) -> String {
        let versions = self.versions.iter().map(|(name, version)| format!(", {name} {version}"));
        let flags = (!self.flags.is_empty()).then(|| format!(", {}", self.flags));
        flags.into_iter().chain(versions).collect()
    }
}

/// The tests of the loader, as this compiler builds them, with plugins that another one built.
fn run_host_tests(workspace: &Workspace, built: &Built) -> Result<()> {
    cargo()
        .dir(workspace.root())
        .env("INFRANETES_FIXTURES", built.dir())
        .args(["test", "--quiet", "--package", "infranetes-loader"])
        .args(HOST_TESTS.iter().flat_map(|test| ["--test", test]))
        .quietly()
}

fn nightly() -> Toolchain {
    Toolchain::Rustup("nightly".into())
}

fn rows(workspace: &Workspace, options: &Options) -> Vec<Row> {
    let plain = |name, toolchain| Row { name, toolchain, flags: "", release: false, versions: &[] };
    let mut rows = vec![
        plain("debug", Toolchain::Ours),
        Row { release: true, ..plain("release", Toolchain::Ours) },
        plain("oldest", Toolchain::Rustup(workspace.rust_version().to_owned())),
        plain("nightly", nightly()),
        Row { flags: "-Zrandomize-layout", ..plain("nightly-randomize-layout", nightly()) },
        Row { versions: &OLD_VERSIONS, ..plain("old-dependencies", Toolchain::Ours) },
    ];
    if let Some(dir) = &options.also {
        rows.push(plain("also", Toolchain::Directory(dir.clone())));
    }
    rows
}

/// `allocators` runs a plugin with an allocator of its own, `allocators_both` does so in a host that has another one.
const HOST_TESTS: [&str; 4] = ["calls", "instances", "allocators", "allocators_both"];

/// Some of the oldest that the SDK builds with, in an order in which each can be had. What the ABI is made of is not here: it is pinned.
const OLD_VERSIONS: [(&str, &str); 12] = [
    ("async-ffi", "0.5.0"),
    ("async-trait", "0.1.80"),
    ("futures", "0.3.30"),
    ("log", "0.4.20"),
    ("prost-build", "0.14.0"),
    ("prost-types", "0.14.0"),
    ("prost", "0.14.0"),
    ("prost-derive", "0.14.0"),
    ("serde_json", "1.0.100"),
    ("thiserror", "2.0.0"),
    ("tokio", "1.38.0"),
    ("tracing", "0.1.40"),
];
