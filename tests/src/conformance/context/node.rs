//! What specs do on the node itself: directories, mounts, log files, web pages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::{Context, Sandbox, Undo};

/// A line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    pub(crate) stream: String,
    pub(crate) text: String,
}

impl Context {
    /// A directory on the node.
    pub(crate) fn host_dir(&mut self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Mounts something on the node until the spec ends.
    pub(crate) fn mount(&mut self, arguments: &[&str], target: &Path) -> Result<()> {
        let target_text = target.display().to_string();
        run("mount", &[arguments, &[target_text.as_str()]].concat())?;
        self.undo.push(Undo::Unmount(target.to_owned()));
        Ok(())
    }

    /// Changes how a mount of the node propagates.
    pub(crate) fn change_mount(&self, how: &str, target: &Path) -> Result<()> {
        run("mount", &[how, &target.display().to_string()])
    }

    /// Makes a segment of System V shared memory on the node, until the spec ends; its id.
    pub(crate) fn shared_memory(&mut self) -> Result<String> {
        let said = output("ipcmk", &["-M", "1048576"])?;
        let id = said.rsplit(' ').next().unwrap_or_default().trim().to_owned();
        ensure!(id.parse::<u32>().is_ok(), "ipcmk said {said:?}");
        self.undo.push(Undo::SharedMemory(id.clone()));
        Ok(id)
    }

    /// The lines of a container's log so far; none if there is no file yet.
    pub(crate) fn log(&self, sandbox: &Sandbox, path: &str) -> Result<Vec<LogLine>> {
        let path = Path::new(&sandbox.config.log_directory).join(path);
        match std::fs::read_to_string(&path) {
            Ok(text) => complete_lines(&text).map(parse).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Waits until a container's log has this line.
    pub(crate) async fn logs(
        &mut self,
        sandbox: &Sandbox,
        path: &str,
        stream: &str,
        text: &str,
    ) -> Result<()> {
        let mut seen = Vec::new();
        let waited = self
            .eventually("the log has the line", async |context| {
                seen = context.log(sandbox, path)?;
                Ok(seen.iter().any(|line| line.stream == stream && line.text == text))
            })
            .await;
        waited.with_context(|| format!("no {text:?} on {stream} in {seen:?}"))
    }

    /// Waits until a page can be had.
    pub(crate) async fn page(&mut self, host: &str, port: u16) -> Result<()> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let url = format!("http://{host}:{port}/");
        let mut last = String::new();
        let waited = self
            .eventually("the page can be had", async |_| match get(&url).await {
                Ok(200) => Ok(true),
                other => {
                    last = format!("{other:?}");
                    Ok(false)
                }
            })
            .await;
        waited.with_context(|| format!("{url}: {last}"))
    }
}

async fn get(url: &str) -> Result<u16> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(PAGE_LIMIT, client.get(url.parse()?)).await??;
    Ok(answer.status().as_u16())
}

/// A line that is still being written is none yet.
fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

fn parse(line: &str) -> Result<LogLine> {
    let mut parts = line.splitn(4, ' ');
    let mut part = || parts.next().with_context(|| format!("no line of a CRI log: {line:?}"));
    let time = part()?;
    ensure!(time.len() >= 20 && time.contains('T'), "no time of RFC 3339: {line:?}");
    let stream = part()?.to_owned();
    let tag = part()?;
    ensure!(tag == "F" || tag == "P", "no tag: {line:?}");
    Ok(LogLine { stream, text: part()?.to_owned() })
}

pub(super) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    output(program, arguments).map(drop)
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("{program} does not run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}`: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const PAGE_LIMIT: Duration = Duration::from_secs(10);
