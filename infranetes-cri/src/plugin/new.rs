//! `plugin new`: writes a small crate with one provider that keeps every promise, for an author to begin with.
//!
//! All of it or nothing: the crate appears under its name once it is whole. What exists is never touched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::output::say;

/// What to write, and where.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The provider's name, which becomes its crate's: [a-z][a-z0-9]*(-[a-z0-9]+)*
    name: Name,

    /// The directory to make [default: NAME, here]
    dir: Option<PathBuf>,

    /// A checkout of infranetes to build against, instead of the published SDK
    #[arg(long, value_name = "PATH")]
    sdk_path: Option<PathBuf>,
}

/// A name that a crate and a provider instance may have.
#[derive(Clone, Debug)]
struct Name(String);

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) || !text.split('-').all(is_part) {
            return Err("small letters and digits, a letter first, `-` between parts".to_owned());
        }
        if text.len() > NAME_MAX {
            return Err(format!("at most {NAME_MAX} characters"));
        }
        if TAKEN.contains(&text) {
            return Err("the compiler or the crate needs this name for something else".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name = arguments.name.0.as_str();
    let dir = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    let sdk = arguments.sdk_path.as_deref().map(checkout).transpose()?;
    ensure!(!dir.is_symlink() && !dir.exists(), "{} exists already", dir.display());
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let made = tempfile::Builder::new().prefix(".infranetes-new-").tempdir_in(parent);
    let made = made.with_context(|| format!("cannot write into {}", parent.display()))?;
    for (path, mode, text) in TEMPLATE {
        let mut text = fill(text, name);
        if let (Some(sdk), "Cargo.toml") = (&sdk, path) {
            text.push_str(&patch(sdk));
        }
        let file = made.path().join(fill(path, name));
        write(&file, mode, &text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    fs::set_permissions(made.path(), fs::Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(made.path(), &dir))
        .with_context(|| format!("cannot make {}", dir.display()))?;
    // It has another name now: nothing is there to be removed.
    let _ = made.keep();
    say(format_args!("{} is a provider that keeps its promises. Next:", dir.display()))?;
    say(format_args!("  cd {} && cargo test && cargo build", dir.display()))?;
    let library = format!("target/debug/lib{}.so", name.replace('-', "_"));
    say(format_args!("  infranetes-cri plugin check {library} --config {name}.toml"))
}

fn fill(text: &str, name: &str) -> String {
    let [major, minor] = VERSION;
    text.replace("@NAME@", name)
        .replace("@CRATE@", &name.replace('-', "_"))
        .replace("@SDK@", &format!("{major}.{minor}"))
}

fn write(file: &Path, mode: u32, text: &str) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(mode))
}

/// The root of a checkout, absolute.
fn checkout(path: &Path) -> anyhow::Result<PathBuf> {
    let root = path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?;
    if !PATCHED.iter().all(|(_, dir)| root.join(dir).join("Cargo.toml").is_file()) {
        bail!("{} is no checkout of infranetes: it has no sdk/Cargo.toml", root.display());
    }
    ensure!(root.to_str().is_some(), "{} is not UTF-8, as a manifest must be", root.display());
    Ok(root)
}

fn patch(root: &Path) -> String {
    let mut text =
        "\n# Builds against a checkout. Remove this to build against what is published.\n\
                    [patch.crates-io]\n"
            .to_owned();
    for (package, dir) in PATCHED {
        let path = toml::Value::String(root.join(dir).display().to_string());
        text.push_str(&format!("{package} = {{ path = {path} }}\n"));
    }
    text
}

/// What an author depends on of ours, and where it lies in a checkout.
const PATCHED: [(&str, &str); 2] =
    [("infranetes-sdk", "sdk"), ("infranetes-conformance", "sdk/conformance")];

/// All of infranetes but the ABI has one version.
const VERSION: [&str; 2] = [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")];

/// The files, their modes, and what is in them.
const TEMPLATE: [(&str, u32, &str); 9] = [
    ("Cargo.toml", 0o644, include_str!("../../template/Cargo.toml.in")),
    ("README.md", 0o644, include_str!("../../template/README.md")),
    ("@NAME@.toml", 0o644, include_str!("../../template/instance.toml")),
    ("src/lib.rs", 0o644, include_str!("../../template/src/lib.rs")),
    ("src/cloud.rs", 0o644, include_str!("../../template/src/cloud.rs")),
    ("tests/conformance.rs", 0o644, include_str!("../../template/tests/conformance.rs")),
    ("ci.sh", 0o755, include_str!("../../template/ci.sh")),
    (".github/workflows/ci.yml", 0o644, include_str!("../../template/ci.yml")),
    (".gitignore", 0o644, include_str!("../../template/gitignore")),
];

/// A provider instance may be called so, too.
const NAME_MAX: usize = 63;

/// What cargo refuses as the name of a library, and what the crate depends on.
const TAKEN: [&str; 67] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "infranetes-conformance",
    "infranetes-sdk",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "serde-json",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "thiserror",
    "tokio",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "cargo",
    "build",
    "deps",
    "examples",
    "incremental",
];
