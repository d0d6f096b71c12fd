//! `plugin keygen`: makes a key that plugins are signed with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use infranetes_loader::signature::SecretKey;

use crate::output::say;

/// Where the key goes.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The new key's file, for its owner alone; what others verify with goes to FILE.pub
    file: PathBuf,
}

/// Replaces no file: a key that is lost cannot be had again.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let key = SecretKey::generate()?;
    let public_file = with_pub(&arguments.file);
    write_new(&arguments.file, SECRET, &key.to_pem())?;
    write_new(&public_file, PUBLIC, &format!("{}\n", key.public()))?;
    say(key.public())?;
    Ok(true)
}

/// `with_added_extension` is younger than the oldest compiler that we build with.
fn with_pub(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write the key {}", path.display()))
}

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;
