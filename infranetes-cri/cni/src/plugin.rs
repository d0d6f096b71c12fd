//! One call of one plugin: a process with a deadline, a bound on what it writes, and nothing left of it afterwards.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::error::CniError;

/// What a plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// What all calls for one sandbox, or for the node, have in common.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    /// Where programs are looked for, in this order.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// CNI_CONTAINERID; empty for the node.
    pub(crate) container: String,
    /// CNI_NETNS; empty when it is gone.
    pub(crate) namespace: String,
    /// CNI_IFNAME.
    pub(crate) interface: String,
    /// CNI_ARGS.
    pub(crate) args: String,
    /// The file that plugins read as their standard input: by it they are known, see `orphans`.
    pub(crate) stdin: PathBuf,
}

impl Calls {
    /// Runs a plugin to its end; what it wrote to standard output.
    pub(crate) async fn run(
        &self,
        plugin: &str,
        verb: Verb,
        config: &Value,
        limit: Duration,
    ) -> Result<Vec<u8>, CniError> {
        let program = self.find(plugin)?;
        let failed = |how: String| CniError::Failed {
            plugin: plugin.to_owned(),
            verb: verb.name(),
            how,
            said: String::new(),
        };
        let stdin = self.stdin(config)?;
        tracing::debug!(
            plugin,
            verb = verb.name(),
            sandbox = self.container,
            "a CNI plugin is run"
        );
        let child = self.command(&program, verb, stdin).spawn();
        let mut group = Group::of(child.map_err(|error| failed(error.to_string()))?);
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let ended = timeout(limit, group.end(&mut output, &mut errors)).await;
        let status = match ended {
            Err(_) => {
                return Err(CniError::TimedOut {
                    plugin: plugin.to_owned(),
                    verb: verb.name(),
                    limit,
                });
            }
            Ok(Err(Overflow::Bytes)) => {
                let plugin = plugin.to_owned();
                return Err(CniError::TooMuch { plugin, verb: verb.name(), limit: OUTPUT_MAX });
            }
            Ok(Err(Overflow::Io(error))) => return Err(failed(error.to_string())),
            Ok(Ok(status)) => status,
        };
        if status.success() {
            Ok(output)
        } else {
            Err(refusal(plugin, verb, status, &output, &errors))
        }
    }

    /// The program of a plugin.
    pub(crate) fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        find(&self.bin_dirs, plugin)
    }

    fn stdin(&self, config: &Value) -> Result<File, CniError> {
        let write = || -> io::Result<File> {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&self.stdin)?;
            file.write_all(config.to_string().as_bytes())?;
            drop(file);
            File::open(&self.stdin)
        };
        write().map_err(CniError::io("write", &self.stdin))
    }

    fn command(&self, program: &Path, verb: Verb, stdin: File) -> Command {
        let dirs: Vec<_> = self.bin_dirs.iter().map(|dir| dir.as_os_str().to_owned()).collect();
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb.name())
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.namespace)
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", dirs.join(std::ffi::OsStr::new(":")))
            // What the service manager hears is not theirs to say.
            .env_remove("NOTIFY_SOCKET")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// The program of a plugin, in the first directory that has one.
pub(crate) fn find(dirs: &[PathBuf], plugin: &str) -> Result<PathBuf, CniError> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = dirs.iter().map(|dir| dir.join(plugin)).find(is_program);
    found.ok_or_else(|| CniError::NoPlugin { plugin: plugin.to_owned(), dirs: dirs.to_vec() })
}

/// A plugin with all that it starts. Dropped before it ended, it is killed.
struct Group {
    child: Child,
    /// The group's number, as long as it cannot be another's.
    id: Option<i32>,
}

enum Overflow {
    Bytes,
    Io(io::Error),
}

impl Group {
    fn of(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self { child, id }
    }

    /// Waits for the plugin's end and the end of what it writes. What it left running in the background, with its output
    /// still open, is not waited for.
    async fn end(
        &mut self,
        output: &mut Vec<u8>,
        errors: &mut Vec<u8>,
    ) -> Result<ExitStatus, Overflow> {
        let stdout = self.child.stdout.take();
        let stderr = self.child.stderr.take();
        let mut reading = std::pin::pin!(async {
            tokio::try_join!(read(stdout, output), read(stderr, errors)).map(|_| ())
        });
        let waited = tokio::select! {
            read = reading.as_mut() => {
                read?;
                self.child.wait().await
            }
            status = self.child.wait() => {
                if let Ok(read) = timeout(LATE, reading).await {
                    read?;
                }
                status
            }
        };
        let status = waited.map_err(Overflow::Io)?;
        self.id = None;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not waited for yet, so that the number is still its.
        if let Some(id) = self.id {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), Overflow> {
    let Some(mut from) = from else { return Ok(()) };
    let mut chunk = vec![0; 16 * 1024];
    loop {
        match from.read(&mut chunk).await.map_err(Overflow::Io)? {
            0 => return Ok(()),
            read if into.len() + read > OUTPUT_MAX => return Err(Overflow::Bytes),
            read => into.extend_from_slice(&chunk[..read]),
        }
    }
}

#[derive(Deserialize)]
struct ErrorResult {
    code: u64,
    msg: String,
    #[serde(default)]
    details: String,
}

/// A plugin says on standard output why it failed; one that crashed, perhaps on standard error.
fn refusal(plugin: &str, verb: Verb, status: ExitStatus, output: &[u8], errors: &[u8]) -> CniError {
    let (plugin, verb) = (plugin.to_owned(), verb.name());
    if let Ok(said) = serde_json::from_slice::<ErrorResult>(output) {
        return CniError::Refused {
            plugin,
            verb,
            code: said.code,
            message: printable(said.msg.as_bytes()),
            details: printable(said.details.as_bytes()),
        };
    }
    let said = if errors.is_empty() { output } else { errors };
    CniError::Failed { plugin, verb, how: status.to_string(), said: printable(said) }
}

/// The end of what a plugin said, in one line.
fn printable(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(WORDS_MAX);
    let text = String::from_utf8_lossy(&bytes[from..]).into_owned();
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

const OUTPUT_MAX: usize = 1 << 20;
const WORDS_MAX: usize = 2048;
/// How long output may come after its writer's end.
const LATE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Bin(tempfile::TempDir);

    impl Bin {
        fn new(script: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("plugin");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self(dir)
        }

        async fn run(&self, limit: Duration) -> Result<String, CniError> {
            let calls = Calls {
                bin_dirs: vec!["/nowhere".into(), self.0.path().to_owned()],
                container: "c1".into(),
                namespace: "/run/ns".into(),
                interface: "eth0".into(),
                args: "A=b".into(),
                stdin: self.0.path().join("stdin"),
            };
            let output = calls.run("plugin", Verb::Add, &json!({"name": "n"}), limit).await?;
            Ok(String::from_utf8(output).unwrap())
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_plugin_gets_its_arguments_and_configuration() {
        let script = "echo $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS; cat";
        let said = Bin::new(script).run(LONG).await.unwrap();
        assert_eq!(said, "ADD c1 /run/ns eth0 A=b\n{\"name\":\"n\"}");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_plugins_words_and_code() {
        let refuse = "echo '{\"code\": 11, \"msg\": \"no room\", \"details\": \"all 254 are taken\"}'; exit 1";
        let cases = [
            (refuse, "refused ADD: no room (code 11): all 254 are taken"),
            ("echo panic: boom >&2; exit 2", "failed at ADD (exit status: 2): panic: boom"),
            ("echo '{'; exit 1", "failed at ADD (exit status: 1): {"),
            ("kill -9 $$", "failed at ADD (signal: 9 (SIGKILL))"),
        ];
        for (script, expected) in cases {
            let error = Bin::new(script).run(LONG).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_all_that_it_started() {
        let bin = Bin::new("echo $$ > \"$(dirname \"$0\")/pid\"; sleep 1000 & sleep 1000; true");
        let error = bin.run(Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, CniError::TimedOut { .. }), "{error}");
        let pid = fs::read_to_string(bin.0.path().join("pid")).unwrap();
        let group = Pid::from_raw(pid.trim().parse().unwrap());
        let deadline = tokio::time::Instant::now() + LONG;
        while killpg(group, None).is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "its group lives");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn output_without_end_is_cut_off_and_output_held_open_is_not_waited_for() {
        let error = Bin::new("exec yes").run(LONG).await.unwrap_err();
        assert!(matches!(error, CniError::TooMuch { .. }), "{error}");
        let began = std::time::Instant::now();
        let said = Bin::new("sleep 8 & echo done").run(LONG).await.unwrap();
        assert_eq!(said, "done\n");
        assert!(began.elapsed() < Duration::from_secs(7), "it was waited for");
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_there_is_named_with_the_directories() {
        let bin = Bin::new("");
        fs::set_permissions(bin.0.path().join("plugin"), fs::Permissions::from_mode(0o644))
            .unwrap();
        let error = bin.run(LONG).await.unwrap_err().to_string();
        assert!(error.starts_with("the CNI plugin \"plugin\" is in none of /nowhere, "), "{error}");
    }
}
