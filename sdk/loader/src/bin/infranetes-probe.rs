//! `infranetes-probe [--sha256 HEX] PLUGIN.so`: would a host load this file?
//!
//! `infranetes-probe --opened PLUGIN.so` is for hosts: the file is standard input, and vetted.
//!
//! `infranetes-probe --serve INSTANCE` is for hosts: it runs a plugin for the one at the other end of standard input.
//!
//! Prints what the plugin says about itself, or why it is refused. Exit code 0: yes; 1: no; 2: wrong arguments; anything
//! else, a signal above all: the file is damaged.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if let (Some("--serve"), Some(instance)) = (words.next().as_deref(), &words.next()) {
        return infranetes_loader::isolation::serve(instance).unwrap_or_else(|error| {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        });
    }
    let mut words = std::env::args_os().skip(1);
    let probed = if let (Some(opened), Some(path)) = (words.next(), words.next())
        && opened == "--opened"
    {
        infranetes_loader::probe_opened(path.as_ref())
    } else if let Some((path, sha256)) = arguments() {
        infranetes_loader::probe(&path, sha256.as_deref())
    } else {
        eprintln!("usage: infranetes-probe [--sha256 HEX] PLUGIN.so");
        return ExitCode::from(2);
    };
    match probed {
        Ok(manifest) => {
            println!("{manifest}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

fn arguments() -> Option<(PathBuf, Option<String>)> {
    let mut sha256 = None;
    let mut path = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--sha256" {
            sha256 = Some(arguments.next()?.into_string().ok()?);
        } else if path.replace(PathBuf::from(argument)).is_some() {
            return None;
        }
    }
    path.map(|path| (path, sha256))
}
