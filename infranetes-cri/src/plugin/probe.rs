//! `plugin probe`: opens a file and ends, so that a damaged one can only hurt this process.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::output::say;

/// Those of `infranetes-probe`, whose place this takes.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The digest that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,

    /// The file is standard input, and vetted
    #[arg(long)]
    opened: bool,

    /// The plugin's file
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let probed = match arguments.opened {
        true => infranetes_loader::probe_opened(&arguments.file),
        false => infranetes_loader::probe(&arguments.file, arguments.sha256.as_deref()),
    };
    match probed {
        Ok(manifest) => say(manifest)?,
        // As it is: a host that had the file probed gives the line on.
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", infranetes_cri::chain(&error));
            return Ok(false);
        }
    }
    Ok(true)
}
