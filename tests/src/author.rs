//! What an author of a provider does: writes a crate by `infranetes-cri plugin new`, builds it, checks the built plugin. The
//! crate lies outside of this workspace and depends on nothing of it but the SDK.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::node::Programs;

/// A directory with crates of an author, and what the author has installed.
pub struct Workshop {
    dir: tempfile::TempDir,
    bin: PathBuf,
    target: PathBuf,
}

impl Workshop {
    /// An empty one. What its crates build goes to `target`, which outlives it: dependencies are built once.
    pub fn new(programs: &Programs, target: PathBuf) -> Result<Workshop> {
        let dir = tempfile::Builder::new().prefix("infranetes-author-").tempdir()?;
        Ok(Workshop { dir, bin: programs.bin.clone(), target })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a crate that builds against this checkout, with the versions of dependencies that this checkout has.
    pub fn new_crate(&self, name: &str) -> Result<PathBuf> {
        let checkout = checkout();
        self.cri(["plugin", "new", name, "--sdk-path", &checkout.to_string_lossy()])?;
        let dir = self.path().join(name);
        self.settle(&dir)?;
        Ok(dir)
    }

    /// Gives a crate what it lacks of this checkout's versions of dependencies, so that nothing has to be fetched, and of
    /// the place where all crates here build.
    pub fn settle(&self, dir: &Path) -> Result<()> {
        if !dir.join("Cargo.lock").exists() {
            fs::copy(checkout().join("Cargo.lock"), dir.join("Cargo.lock"))
                .context("cannot copy Cargo.lock")?;
        }
        if !dir.join("target").is_symlink() {
            fs::create_dir_all(&self.target)?;
            std::os::unix::fs::symlink(&self.target, dir.join("target"))?;
        }
        Ok(())
    }

    /// Runs `infranetes-cri`, which has to succeed; answers what it wrote.
    pub fn cri<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let program = self.bin.join("infranetes-cri");
        run(self.in_workshop(&program, self.path()).args(arguments))
    }

    /// Runs cargo in a crate; it has to succeed.
    pub fn cargo<'a>(
        &self,
        dir: &Path,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(self.in_workshop(Path::new(&cargo), dir).args(arguments))
    }

    /// Runs a shell script as the author would; answers how it ended and what it wrote, errors among the rest.
    pub fn shell(&self, dir: &Path, script: &str) -> Result<Output> {
        let mut command = self.in_workshop(Path::new("sh"), dir);
        let output = command.arg("-ec").arg(format!("exec 2>&1\n{script}")).output();
        output.context("cannot run sh")
    }

    fn in_workshop(&self, program: &Path, dir: &Path) -> Command {
        let mut paths = vec![self.bin.clone()];
        paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new(program);
        // What cargo tells this test about its own package means nothing there.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(dir)
            .env("PATH", std::env::join_paths(paths).unwrap_or_default())
            .env_remove("CARGO_TARGET_DIR")
            .env("INFRANETES", checkout())
            .stdin(Stdio::null());
        command
    }
}

/// The root of this checkout.
pub fn checkout() -> PathBuf {
    // Of this run, if cargo runs it: clones may share what is built. Whichever package has it run lies right below the root.
    let package = std::env::var_os("CARGO_MANIFEST_DIR");
    let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().map(Path::to_owned).unwrap_or_default()
}

/// Where the crates of authors build: beside what cargo builds for this program, and kept.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("the path of this program")?;
    // TARGET/debug/deps/NAME, or TARGET/debug/NAME.
    let debug = program.ancestors().find(|path| path.join(".fingerprint").is_dir());
    let target = debug.and_then(Path::parent).context("no target directory around this program")?;
    Ok(target.join("author"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
