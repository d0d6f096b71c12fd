//! Programs of this machine, run to their end.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A program with its arguments; errors name both, and say what the program said.
#[derive(Debug)]
pub(crate) struct Program {
    command: Command,
    name: String,
}

impl Program {
    pub(crate) fn new(name: impl AsRef<OsStr>) -> Program {
        let name = name.as_ref();
        Program { command: Command::new(name), name: name.to_string_lossy().into_owned() }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Program {
        self.name.push(' ');
        self.name.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Program {
        args.into_iter().fold(self, Program::arg)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Program {
        self.command.env(name, value);
        self
    }

    /// The same by way of another program, which takes it as its last arguments.
    pub(crate) fn under(self, other: Program) -> Program {
        let other = other.arg(self.command.get_program());
        other.args(self.command.get_args())
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Program {
        self.command.current_dir(dir);
        self
    }

    /// Runs it with its output on ours.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self.command.stdin(Stdio::null()).status();
        let status = status.map_err(|error| self.not_started(&error))?;
        if !status.success() {
            bail!("`{}` failed: {status}", self.name);
        }
        Ok(())
    }

    /// Runs it and returns what it wrote to standard output; its standard error is part of the error if it fails.
    pub(crate) fn output(self) -> Result<String> {
        let name = self.name.clone();
        let output = self.outcome()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{name}` failed: {}; it said:\n{}", output.status, said.trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{name}` wrote no UTF-8"))
    }

    /// Runs it; all that it wrote is part of the error if it fails, and is lost if it does not.
    pub(crate) fn quietly(self) -> Result<()> {
        let name = self.name.clone();
        let output = self.outcome()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!(
                "`{name}` failed: {}; it said:\n{}",
                output.status,
                String::from_utf8_lossy(&said)
            );
        }
        Ok(())
    }

    /// Runs it; its failure is no error of ours.
    pub(crate) fn outcome(mut self) -> Result<Output> {
        let output = self.command.stdin(Stdio::null()).output();
        output.map_err(|error| self.not_started(&error))
    }

    fn not_started(&self, error: &std::io::Error) -> anyhow::Error {
        let program = self.command.get_program().to_string_lossy();
        if error.kind() == ErrorKind::NotFound {
            return anyhow::anyhow!("{program} is not installed on this machine");
        }
        anyhow::anyhow!("`{}` cannot be started: {error}", self.name)
    }
}

/// Whether a program of this name is on the search path.
pub(crate) fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
