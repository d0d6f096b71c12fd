//! The loader's fixtures, in a crate of their own: built as an author builds, with a lock file and a target directory that are not
//! this workspace's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::toolchain::Toolchain;
use crate::workspace::{Workspace, cargo};

/// A crate with the fixtures.
pub(super) struct Fixtures {
    dir: PathBuf,
    /// Where all rows build.
    skew: PathBuf,
    name: &'static str,
}

/// Built plugins.
pub(super) struct Built {
    dir: PathBuf,
}

impl Fixtures {
    /// Writes the crate, against the SDK in `tree`, which is this checkout or a changed copy.
    pub(super) fn write(
        workspace: &Workspace,
        name: &'static str,
        tree: &Path,
    ) -> Result<Fixtures> {
        let skew = workspace.target().join("skew");
        let dir = skew.join(name).join("crate");
        fs::create_dir_all(dir.join("src"))?;
        fs::write(dir.join("src/lib.rs"), "//! Only its examples count.\n")?;
        fs::write(dir.join("Cargo.toml"), manifest(tree))?;
        // Each run begins with the versions of this workspace, which are there already.
        fs::copy(workspace.root().join("Cargo.lock"), dir.join("Cargo.lock"))
            .context("cannot copy Cargo.lock")?;
        Ok(Fixtures { dir, skew, name })
    }

    /// Gives dependencies other versions than this workspace's.
    pub(super) fn settle(&self, versions: &[(&str, &str)]) -> Result<()> {
        cargo().dir(&self.dir).args(["update", "--quiet", "--workspace", "--offline"]).run()?;
        for (name, version) in versions {
            cargo()
                .dir(&self.dir)
                .args(["update", "--quiet", name, "--precise", version])
                .run()
                .with_context(|| format!("{name} cannot have the version {version}"))?;
        }
        Ok(())
    }

    pub(super) fn build(&self, toolchain: &Toolchain, flags: &str, release: bool) -> Result<Built> {
        // Rows with the same compiler and flags share what they build of dependencies.
        let target = self.skew.join("build").join(format!("{}{flags}", toolchain.slug()));
        let mut build = toolchain
            .cargo()?
            .dir(&self.dir)
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", &target)
            .args(["build", "--quiet", "--locked", "--examples"]);
        if release {
            build = build.arg("--release");
        }
        build.quietly().context("the fixtures do not build")?;
        let profile = if release { "release" } else { "debug" };
        let built = Built { dir: self.skew.join(self.name).join("built") };
        fs::create_dir_all(&built.dir)?;
        for name in FIXTURES {
            let file = format!("lib{name}.so");
            let from = target.join(profile).join("examples").join(&file);
            // Never written into: a file that is loaded may be mapped by somebody.
            let to = built.dir.join(&file);
            let _ = fs::remove_file(&to);
            fs::copy(&from, &to).with_context(|| format!("no {}", from.display()))?;
        }
        Ok(built)
    }
}

impl Built {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the plugins say about themselves.
    pub(super) fn manifest(&self, key: &str) -> Result<String> {
        let data = fs::read(self.dir.join(format!("lib{}.so", FIXTURES[0])))?;
        let begin = find(&data, b"infranetes provider\nabi=").context("no manifest")?;
        let text: Vec<u8> = data[begin..].iter().take_while(|byte| **byte != 0).copied().collect();
        let text = String::from_utf8(text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let value = value.with_context(|| format!("the manifest says nothing about {key}"))?;
        ensure!(!value.is_empty(), "the manifest has an empty {key}");
        Ok(value.to_owned())
    }
}

fn find(data: &[u8], part: &[u8]) -> Option<usize> {
    data.windows(part.len()).position(|window| window == part)
}

/// The package has the loader's name, which its tests expect.
fn manifest(tree: &Path) -> String {
    let (sdk, examples) = (tree.join("sdk"), tree.join("sdk/loader/examples"));
    let mut text = format!(
        r#"[package]
name = "infranetes-loader"
version = "0.1.0"
edition = "2024"

[dependencies]
futures = {{ version = "0.3", default-features = false, features = ["std", "async-await"] }}
infranetes-sdk = {{ path = {sdk:?} }}
log = "0.4"
serde = {{ version = "1", features = ["derive"] }}
tokio = {{ version = "1", features = ["rt", "time"] }}
tracing = "0.1"

[lints.rust]
unsafe_code = "deny"

[profile.dev]
debug = false

[profile.release]
strip = true

[workspace]
"#
    );
    for name in FIXTURES {
        let path = examples.join(format!("{name}.rs"));
        text.push_str(&format!(
            "\n[[example]]\nname = \"{name}\"\npath = {path:?}\ncrate-type = [\"cdylib\"]\n"
        ));
    }
    text
}

const FIXTURES: [&str; 3] = ["fixture_hello", "fixture_trouble", "fixture_tagged"];
