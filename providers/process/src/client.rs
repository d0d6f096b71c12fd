//! The agent as a process of this node: how it is started, and how it is known to listen.
//!
//! A shell of one line stands at the beginning: it waits until its number is on disk and its cgroups are set, and becomes the
//! agent's keeper. If the daemon dies before it gives the word, it ends.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::config::Config;
use crate::dir::MachineDir;
use crate::error::ProcessError;
use crate::plugins;
use crate::process;
use crate::record::Record;

/// Refuses what could not be started at all, so that `create` says so at once.
pub(crate) fn check(config: &Config) -> Result<(), ProcessError> {
    if !process::is_root() {
        return Err(ProcessError::NotRoot);
    }
    let missing = |source| ProcessError::NoAgent { path: config.agent.clone(), source };
    let meta = fs::metadata(&config.agent).map_err(missing)?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(missing(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is no executable file",
        )));
    }
    plugins::check(config)
}

/// Starts the shell that becomes the keeper. It waits for the word.
pub(crate) fn spawn(
    config: &Config,
    dir: &MachineDir,
    record: &Record,
) -> Result<Child, ProcessError> {
    let path = dir.console();
    let console = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let console = console.map_err(ProcessError::io("open", &path))?;
    let output = console.try_clone().map_err(ProcessError::io("open", &path))?;
    let search = std::env::var_os("PATH").filter(|path| !path.is_empty());
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SCRIPT, "infranetes-agent"])
        .arg(&config.agent)
        .args(arguments(config, dir, record))
        // What the daemon was told is not for pods.
        .env_clear()
        .env("PATH", search.unwrap_or_else(|| DEFAULT_PATH.into()))
        .current_dir("/")
        // Signals of the daemon's terminal are not for machines.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(console);
    command.spawn().map_err(|source| ProcessError::Spawn { source })
}

/// Gives the word.
pub(crate) async fn give_the_word(child: &mut Child) -> io::Result<()> {
    match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(b"go\n").await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Whether a process of the network namespace of `pid` listens on a socket. Connecting would tell that, too, but the agent
/// would log a peer that says nothing.
pub(crate) fn listens(pid: i32, socket: &Path) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    is_listening(&sockets, &socket.to_string_lossy())
}

/// Lines are: number, references, protocol, flags, type, state, inode, path.
fn is_listening(sockets: &str, path: &str) -> bool {
    let found = sockets.lines().filter_map(|line| {
        let flags = line.split_ascii_whitespace().nth(3)?;
        let named = line.strip_suffix(path)?.ends_with(' ');
        named.then(|| u32::from_str_radix(flags, 16).unwrap_or_default())
    });
    found.into_iter().any(|flags| flags & ACCEPTS != 0)
}

/// The agent's arguments. They are no secret: anybody on the node can read them.
fn arguments(config: &Config, dir: &MachineDir, record: &Record) -> Vec<OsString> {
    let mut listen = OsString::from("unix://");
    listen.push(dir.socket());
    let mut arguments: Vec<OsString> = vec!["--isolate".into()];
    for (option, value) in [
        ("--user-data", dir.boot_user_data().into()),
        ("--listen", listen),
        ("--plugins", dir.plugins().into()),
        ("--state", dir.state().into()),
        ("--hostname", record.name.clone().into()),
        ("--log", config.log.clone().into()),
    ] {
        arguments.extend([option.into(), value]);
    }
    if let Some(namespace) = &record.namespace {
        arguments.extend(["--network".into(), namespace.into()]);
    }
    arguments
}

/// Without a word on standard input (the daemon died): the end.
const SCRIPT: &str = "umask 022; read -r word || exit 97; exec \"$@\" </dev/null";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The kernel's `__SO_ACCEPTCON`.
const ACCEPTS: u32 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_cannot_be_started_is_told_before_it_is_tried() {
        let dir = tempfile::tempdir().expect("a directory");
        let agent = dir.path().join("agent");
        fs::write(&agent, "no program").expect("written");
        for path in [agent.as_path(), dir.path(), Path::new("/no/such/agent")] {
            let config = Config { agent: path.to_owned(), ..Default::default() };
            let error = check(&config).expect_err("refused");
            let expected = process::is_root();
            assert_eq!(matches!(error, ProcessError::NoAgent { .. }), expected, "{error:?}");
        }
    }

    #[test]
    fn a_socket_counts_once_it_accepts() {
        let line = |flags: &str, path: &str| {
            format!("0000000000000000: 00000002 00000000 {flags} 0001 01 4242 {path}\n")
        };
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        for (lines, expected) in [
            (line("00010000", "/m/p-1/agent.sock"), true),
            (line("00000000", "/m/p-1/agent.sock"), false),
            (line("00010000", "/other/m/p-1/agent.sock"), false),
            (line("00000000", "/m/p-1/agent.sock") + &line("00010000", "/m/p-1/agent.sock"), true),
            (String::new(), false),
        ] {
            let sockets = format!("{head}{lines}");
            assert_eq!(is_listening(&sockets, "/m/p-1/agent.sock"), expected, "{sockets}");
        }
    }

    #[tokio::test]
    async fn a_listener_of_this_process_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a b.sock");
        let own = i32::try_from(std::process::id()).expect("a number");
        assert!(!listens(own, &path));
        let _listener = tokio::net::UnixListener::bind(&path).expect("bound");
        assert!(listens(own, &path));
    }

    #[tokio::test]
    async fn without_the_word_nothing_is_started() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = MachineDir::of(root.path(), "p-1");
        fs::create_dir(dir.path()).expect("made");
        let mark = root.path().join("mark");
        let agent = root.path().join("agent");
        let script = format!("#!/bin/sh\necho \"$@\"; env; : > {}\n", mark.display());
        fs::write(&agent, script).expect("written");
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("set");
        let config = Config { agent, ..Default::default() };

        let record = Record { name: "web".to_owned(), ..crate::record::tests::record() };
        let mut silent = spawn(&config, &dir, &record).expect("spawned");
        drop(silent.stdin.take());
        assert_eq!(silent.wait().await.expect("ended").code(), Some(97));
        assert!(!mark.exists());

        let mut told = spawn(&config, &dir, &record).expect("spawned");
        give_the_word(&mut told).await.expect("told");
        assert!(told.wait().await.expect("ended").success());
        assert!(mark.exists());
        let console = fs::read_to_string(dir.console()).expect("read");
        assert!(console.contains("--isolate --user-data"), "{console}");
        assert!(console.contains("--hostname web --log info --network /run/netns/a"), "{console}");
        assert!(!console.contains("CARGO"), "the environment came along: {console}");
    }
}
