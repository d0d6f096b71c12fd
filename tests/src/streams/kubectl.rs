//! kubectl itself, which nobody here wrote, against the daemon: a server that answers as much of Kubernetes' API as kubectl asks
//! for before it streams, and then passes the connection on to a link, as API server and kubelet do.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::Wanted;
use crate::client::Client;

/// A pod as kubectl sees it.
#[derive(Clone)]
pub struct Kubectl {
    client: Client,
    sandbox: String,
    container: String,
    host: String,
    home: std::sync::Arc<tempfile::TempDir>,
    /// Newer kubectls stream over WebSocket when this is set, and over SPDY otherwise.
    pub websockets: bool,
    _server: std::sync::Arc<JoinSet<()>>,
}

impl Kubectl {
    /// Whether there is one on this machine.
    pub fn is_installed() -> bool {
        std::process::Command::new("kubectl")
            .args(["version", "--client"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// The pod "p" with the container "c".
    pub async fn new(client: Client, sandbox: &str, container: &str) -> Result<Kubectl> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let mut server = JoinSet::new();
        let kubectl = |server| Kubectl {
            client,
            sandbox: sandbox.to_owned(),
            container: container.to_owned(),
            host,
            home: server,
            websockets: false,
            _server: Default::default(),
        };
        let mut kubectl = kubectl(std::sync::Arc::new(tempfile::tempdir()?));
        let api = kubectl.clone();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let mut api = api.clone();
                connections.spawn(async move {
                    if let Err(error) = api.serve(stream).await {
                        eprintln!("the API server of the case: {error:#}");
                    }
                });
            }
        });
        kubectl._server = std::sync::Arc::new(server);
        Ok(kubectl)
    }

    /// Starts kubectl with these words.
    pub fn start(&self, words: &[&str]) -> Result<Child> {
        let websockets = if self.websockets { "true" } else { "false" };
        let child = Command::new("kubectl")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .args(["--server", &format!("http://{}", self.host), "--kubeconfig", "/dev/null"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        child.context("kubectl does not start")
    }

    /// Runs kubectl to its end with this input.
    pub async fn run(&self, words: &[&str], input: Vec<u8>) -> Result<std::process::Output> {
        let mut child = self.start(words)?;
        let mut stdin = child.stdin.take().context("piped")?;
        let feed = tokio::spawn(async move {
            // A command may end before it read everything.
            let _ = stdin.write_all(&input).await;
        });
        let output = child.wait_with_output().await?;
        feed.await?;
        Ok(output)
    }

    async fn serve(&mut self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head).await? > 0, "kubectl hung up in a request");
        }
        let line = head.lines().next().unwrap_or_default().to_owned();
        let url = line.split(' ').nth(1).context("a request has a path")?;
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let Some(link) = self.link(path, query).await? else {
            let (status, body) = answer(path);
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            return Ok(stream.write_all(head.as_bytes()).await?);
        };
        let (host, path) = link
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .context("a link is http://HOST/PATH")?;
        let mut daemon = TcpStream::connect(host).await?;
        let head = head.replacen(url, &format!("/{path}"), 1);
        daemon.write_all(head.as_bytes()).await?;
        // What either side cuts off is no failure of this one.
        let _ = copy_bidirectional(&mut stream, &mut daemon).await;
        Ok(())
    }

    async fn link(&mut self, path: &str, query: &str) -> Result<Option<String>> {
        let pairs: Vec<(String, String)> = query.split('&').filter_map(pair).collect();
        let is = |name: &str| pairs.contains(&(name.to_owned(), "true".to_owned()));
        let (tty, stdin) = (is("tty"), is("stdin"));
        let wanted = Wanted { tty, stdin, stdout: is("stdout"), stderr: is("stderr") };
        Ok(Some(match path.rsplit('/').next().unwrap_or_default() {
            "exec" => {
                let words = pairs.iter().filter(|(name, _)| name == "command");
                let words: Vec<&str> = words.map(|(_, value)| value.as_str()).collect();
                self.client.exec_link(&self.container, &words, wanted).await?
            }
            "attach" => self.client.attach_link(&self.container, wanted).await?,
            "portforward" => self.client.port_forward_link(&self.sandbox, &[]).await?,
            _ => return Ok(None),
        }))
    }
}

/// The local port of a `kubectl port-forward` that says that it is ready.
pub async fn forwarded_port(child: &mut Child) -> Result<u16> {
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let line = tokio::time::timeout(super::LIMIT, lines.next_line()).await??;
    let line = match line {
        Some(line) => line,
        None => {
            let mut problem = String::new();
            child.stderr.take().context("piped")?.read_to_string(&mut problem).await?;
            anyhow::bail!("kubectl ended: {problem}");
        }
    };
    // It goes on telling of each connection, to whoever reads.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let port = line.split(" -> ").next().and_then(|text| text.rsplit(':').next()?.parse().ok());
    port.with_context(|| format!("no port in {line:?}"))
}

fn answer(path: &str) -> (&'static str, String) {
    let json = match path {
        "/api" => serde_json::json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => serde_json::json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => serde_json::json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["get", "list"], "shortNames": ["po"]}],
        }),
        "/api/v1/namespaces/default/pods/p" => serde_json::json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i", "stdin": true}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "c", "ready": true, "state": {"running": {}}}]},
        }),
        _ => {
            let why = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "NotFound", "code": 404, "message": "it is not there"});
            return ("404 Not Found", why.to_string());
        }
    };
    ("200 OK", json.to_string())
}

/// A name and its value, decoded.
fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some((name.to_owned(), String::from_utf8(bytes).ok()?))
}
