//! `plugin sign`: vouches for a plugin's bytes.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use infranetes_loader::sha256_of;
use infranetes_loader::signature::{SecretKey, Signature};

use crate::output::say;

/// What to sign, and with what.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The plugin: a built .so; its signature goes to FILE.sig
    file: PathBuf,

    /// The secret key, of `plugin keygen` or `openssl genpkey -algorithm ed25519`
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let Arguments { file, key } = arguments;
    let name = key.display();
    let text = fs::read_to_string(key).with_context(|| format!("cannot read the key {name}"))?;
    let secret = SecretKey::from_pem(&text).with_context(|| format!("{name} cannot be used"))?;
    let data = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let signature = secret.sign(&sha256_of(&data));
    let path = Signature::path_of(file);
    // Whoever verifies meanwhile sees the old signature or the new one.
    let directory = path.parent().context("a file lies in a directory")?;
    let directory = if directory.as_os_str().is_empty() { ".".as_ref() } else { directory };
    let cannot = || format!("cannot write the signature {}", path.display());
    let mut builder = tempfile::Builder::new();
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let new = builder.tempfile_in(directory).with_context(cannot)?;
    fs::write(new.path(), format!("{signature}\n")).with_context(cannot)?;
    new.persist(&path).with_context(cannot)?;
    say(format_args!("{}: signed with {}", path.display(), secret.public()))?;
    Ok(true)
}
