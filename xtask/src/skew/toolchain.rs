//! Compilers that may be installed.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use crate::program::{Program, is_installed};
use crate::workspace::cargo;

/// Where a cargo comes from.
pub(super) enum Toolchain {
    /// The one that runs this.
    Ours,
    /// The first of rustup's whose name begins so.
    Rustup(String),
    /// A directory with `cargo` and `rustc`.
    Directory(PathBuf),
}

impl Toolchain {
    pub(super) fn is_installed(&self) -> Result<bool> {
        Ok(match self {
            Toolchain::Ours => true,
            Toolchain::Rustup(name) => of_rustup(name)?.is_some(),
            Toolchain::Directory(dir) => dir.join("cargo").is_file() && dir.join("rustc").is_file(),
        })
    }

    /// Its cargo.
    pub(super) fn cargo(&self) -> Result<Program> {
        Ok(match self {
            Toolchain::Ours => cargo(),
            Toolchain::Rustup(name) => {
                let found = of_rustup(name)?.unwrap_or_else(|| name.clone());
                // Cargo tells its children which compiler runs it: another toolchain is named to the proxy of rustup.
                Program::new("rustup").args(["run", found.as_str(), "cargo"])
            }
            Toolchain::Directory(dir) => {
                let rustdoc = dir.join("rustdoc");
                Program::new(dir.join("cargo"))
                    .env("RUSTC", dir.join("rustc"))
                    .env("RUSTDOC", rustdoc)
            }
        })
    }

    /// A name for its directory of what it built.
    pub(super) fn slug(&self) -> &str {
        match self {
            Toolchain::Ours => "ours",
            Toolchain::Rustup(name) => name,
            Toolchain::Directory(_) => "also",
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Toolchain::Ours => f.write_str("this toolchain"),
            Toolchain::Rustup(name) => write!(f, "rustup's toolchain {name}"),
            Toolchain::Directory(dir) => write!(f, "a cargo with its rustc in {}", dir.display()),
        }
    }
}

/// The full name of an installed toolchain.
fn of_rustup(name: &str) -> Result<Option<String>> {
    if !is_installed("rustup") {
        return Ok(None);
    }
    let list = Program::new("rustup").args(["toolchain", "list"]).output()?;
    let mut names = list.lines().filter_map(|line| line.split(' ').next());
    Ok(names.find(|found| found.starts_with(name)).map(str::to_owned))
}
