//! `plugin verify`: whether somebody who is trusted vouches for a plugin's bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use infranetes_loader::sha256_of;
use infranetes_loader::signature::{PublicKey, Signature};

use crate::output::say;

/// What to verify, and whom to trust.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The plugin; its signature is FILE.sig
    file: PathBuf,

    /// Public keys: files with one in each line, or themselves, like ed25519:BASE64
    #[arg(long, value_name = "KEY", required = true, num_args = 1..)]
    keys: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let file = &arguments.file;
    let mut trusted = Vec::new();
    for key in &arguments.keys {
        trusted.extend(read_keys(key)?);
    }
    let data = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let digest = sha256_of(&data);
    let signed_by = Signature::read(file)
        .and_then(|signature| signature.verify(&digest, &trusted))
        .with_context(|| format!("the signature of {} is not good", file.display()))?;
    say(format_args!("{}: signed with {signed_by}\nsha256 {digest}", file.display()))?;
    Ok(true)
}

fn read_keys(text: &str) -> anyhow::Result<Vec<PublicKey>> {
    if text.starts_with("ed25519:") {
        return Ok(vec![text.parse()?]);
    }
    let cannot = || format!("cannot use the key {text}");
    let lines = fs::read_to_string(Path::new(text)).with_context(cannot)?;
    let lines =
        lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<PublicKey> =
        lines.map(str::parse).collect::<Result<_, _>>().with_context(cannot)?;
    anyhow::ensure!(!keys.is_empty(), "{text} has no key in it");
    Ok(keys)
}
