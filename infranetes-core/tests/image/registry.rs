//! A registry that can be told to misbehave. Speaks as much HTTP as the store needs, and writes down what it
//! was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use infranetes_core::image::{Digest, Endpoint, EndpointCredentials};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A registry on a loopback port; it ends when it is dropped.
pub(crate) struct Registry {
    pub(crate) address: String,
    scheme: &'static str,
    inner: Arc<Mutex<Inner>>,
    server: tokio::task::JoinHandle<()>,
}

/// What it does instead of answering well.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Answers with this status and header line.
    Status(u16, &'static str),
    /// Breaks the connection after this many bytes of the body.
    CutAfter(usize),
    /// Goes silent after this many bytes of the body.
    StallAfter(usize),
    /// Sends these bytes instead.
    Bytes(Vec<u8>),
    /// Sends the whole, whatever range was asked for.
    WholeBody,
    /// Sends the client there.
    Redirect(String),
    /// Answers as it should.
    Well,
}

/// Who may ask.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    Open,
    /// This user with this password.
    Basic(&'static str, &'static str),
    /// Holders of a token, which the service at this URL gives.
    Token {
        realm: String,
    },
}

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

struct Inner {
    content: HashMap<String, (&'static str, Vec<u8>)>,
    /// By a part of the path: acts in their order; the last one stays.
    script: Vec<(String, Vec<Act>)>,
    door: Door,
    /// The tokens that open the door, and whom the token service gives them to.
    tokens: Vec<String>,
    token_user: Option<String>,
    asked: Vec<Asked>,
}

pub(crate) const USER: &str = "ann";
pub(crate) const PASSWORD: &str = "sesame-open";
pub(crate) const REFRESH: &str = "refresh-sesame";

impl Registry {
    pub(crate) async fn start() -> Registry {
        Registry::with_tls(None).await
    }

    pub(crate) async fn with_tls(tls: Option<TlsAcceptor>) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Arc::new(Mutex::new(Inner {
            content: HashMap::new(),
            script: Vec::new(),
            door: Door::Open,
            tokens: Vec::new(),
            token_user: None,
            asked: Vec::new(),
        }));
        let (scheme, host) =
            if tls.is_some() { ("https", "localhost") } else { ("http", "127.0.0.1") };
        let server = tokio::spawn(serve(listener, tls, Arc::clone(&inner)));
        Registry { address: format!("{host}:{port}"), scheme, inner, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// This registry as the registry itself: the one that the pull's credentials are for.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let mut endpoint = self.mirror();
        endpoint.credentials = EndpointCredentials::FromPull;
        endpoint
    }

    /// This registry as a mirror, which is told nothing.
    pub(crate) fn mirror(&self) -> Endpoint {
        Endpoint::new(&self.url()).unwrap()
    }

    /// What to do about paths that contain `part`, one act for each request; the last act stays.
    pub(crate) fn script(&self, part: &str, acts: &[Act]) {
        self.inner.lock().unwrap().script.push((part.to_owned(), acts.to_vec()));
    }

    /// Behaves well from now on.
    pub(crate) fn heal(&self) {
        self.inner.lock().unwrap().script.clear();
    }

    pub(crate) fn close(&self, door: Door) {
        self.inner.lock().unwrap().door = door;
    }

    /// Makes this registry also a token service, at `/token`, for everybody or for one user.
    pub(crate) fn give_tokens_to(&self, user: Option<&str>) -> Door {
        self.inner.lock().unwrap().token_user = user.map(str::to_owned);
        Door::Token { realm: format!("{}/token", self.url()) }
    }

    pub(crate) fn expire_tokens(&self) {
        self.inner.lock().unwrap().tokens.clear();
    }

    pub(crate) fn accept_token(&self, token: &str) {
        self.inner.lock().unwrap().tokens.push(token.to_owned());
    }

    pub(crate) fn put(&self, path: impl Into<String>, media_type: &'static str, bytes: Vec<u8>) {
        self.inner.lock().unwrap().content.insert(path.into(), (media_type, bytes));
    }

    /// What was asked of paths that contain `part`.
    pub(crate) fn asked(&self, part: &str) -> Vec<Asked> {
        let inner = self.inner.lock().unwrap();
        inner.asked.iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, inner: Arc<Mutex<Inner>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, inner) = (tls.clone(), Arc::clone(&inner));
        tokio::spawn(async move {
            match tls {
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => converse(stream, inner).await,
                    Err(_) => None,
                },
                None => converse::<TcpStream>(stream, inner).await,
            }
        });
    }
}

/// Answers the requests of one connection; ends with `None` when the other side or the script ends it.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    inner: Arc<Mutex<Inner>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let asked = read_request(&mut stream).await?;
        let (act, door) = {
            let mut inner = inner.lock().unwrap();
            inner.asked.push(asked.clone());
            (inner.next_act(&asked.path), inner.refusal(&asked))
        };
        if asked.path.starts_with("/token") {
            let reply = inner.lock().unwrap().token(&asked);
            send(&mut stream, reply.0, "", reply.1.as_bytes()).await?;
            continue;
        }
        if let Some(challenge) = door {
            send(&mut stream, 401, &challenge, b"").await?;
            continue;
        }
        answer(&mut stream, &inner, &asked, act).await?;
    }
}

async fn answer<S: AsyncWrite + Unpin>(
    stream: &mut S,
    inner: &Arc<Mutex<Inner>>,
    asked: &Asked,
    act: Act,
) -> Option<()> {
    let content = inner.lock().unwrap().content.get(&asked.path).cloned();
    let (media_type, mut bytes) = match (act.clone(), content) {
        (Act::Status(status, header), _) => return send(stream, status, header, b"").await,
        (Act::Redirect(location), _) => {
            return send(stream, 307, &format!("Location: {location}"), b"").await;
        }
        (Act::Bytes(bytes), found) => (found.map_or("", |found| found.0), bytes),
        (_, Some(found)) => found,
        (_, None) => return send(stream, 404, "", b"").await,
    };
    let mut header = format!("Content-Type: {media_type}");
    let mut status = 200;
    let from: Option<usize> = asked
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    if let (Some(from), false) = (from, matches!(act, Act::WholeBody)) {
        status = 206;
        header += &format!("\r\nContent-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        bytes.drain(..from);
    }
    let length = bytes.len();
    let (stop, stall) = match act {
        Act::CutAfter(count) => (count.min(length), false),
        Act::StallAfter(count) => (count.min(length), true),
        _ => return send(stream, status, &header, &bytes).await,
    };
    let head = head(status, &header, length);
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(&bytes[..stop]).await.ok()?;
    stream.flush().await.ok()?;
    if stall {
        std::future::pending::<()>().await;
    }
    None
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: HashMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { method, path, headers, body: String::from_utf8(body).ok()? })
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: u16,
    header: &str,
    body: &[u8],
) -> Option<()> {
    stream.write_all(head(status, header, body.len()).as_bytes()).await.ok()?;
    stream.write_all(body).await.ok()?;
    stream.flush().await.ok()
}

fn head(status: u16, header: &str, length: usize) -> String {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    format!("HTTP/1.1 {status} Scripted\r\n{header}Content-Length: {length}\r\n\r\n")
}

impl Inner {
    fn next_act(&mut self, path: &str) -> Act {
        let Some((_, acts)) = self.script.iter_mut().find(|(part, _)| path.contains(&**part))
        else {
            return Act::Well;
        };
        if acts.len() > 1 { acts.remove(0) } else { acts[0].clone() }
    }

    /// The header that refuses who may not ask.
    fn refusal(&self, asked: &Asked) -> Option<String> {
        let given = asked.header("authorization");
        match &self.door {
            Door::Open => None,
            Door::Basic(user, password) => {
                let wanted = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                (given != Some(wanted.as_str()))
                    .then(|| "WWW-Authenticate: Basic realm=\"here\"".to_owned())
            }
            Door::Token { realm } => {
                let token = given.and_then(|given| given.strip_prefix("Bearer "));
                let known = token.is_some_and(|token| self.tokens.iter().any(|t| t == token));
                (!known).then(|| {
                    format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"scripted\"")
                })
            }
        }
    }

    fn token(&mut self, asked: &Asked) -> (u16, String) {
        let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        let refreshed = asked.method == "POST" && asked.body.contains(REFRESH);
        let known = asked.header("authorization") == Some(basic.as_str()) || refreshed;
        if self.token_user.is_some() && !known {
            return (401, String::new());
        }
        let token = format!("token-{}", self.asked.len());
        self.tokens.push(token.clone());
        (200, format!("{{\"token\": \"{token}\"}}"))
    }
}

/// An image to publish.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    /// An image for this node whose layers have these sizes. Content differs with `seed`.
    pub(crate) fn new(seed: &str, layers: &[usize]) -> Image {
        let node = infranetes_core::image::Platform::of_this_node();
        Image::for_architecture(seed, layers, &node.architecture)
    }

    pub(crate) fn for_architecture(seed: &str, layers: &[usize], architecture: &str) -> Image {
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .enumerate()
            .map(|(n, size)| content(&format!("{seed}{n}"), *size))
            .collect();
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": architecture, "author": seed,
            "config": {"Cmd": ["/bin/true"], "User": "1000"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let layer = |layer: &Vec<u8>| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": Digest::of(layer).to_string(), "size": layer.len(),
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": Digest::of(&config).to_string(), "size": config.len()},
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        Image { layers, config, manifest: manifest.to_string().into_bytes() }
    }

    pub(crate) fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub(crate) fn layer(&self, number: usize) -> Digest {
        Digest::of(&self.layers[number])
    }

    pub(crate) fn publish(&self, registry: &Registry, repository: &str, tag: &str) {
        let base = format!("/v2/{repository}");
        for name in [tag.to_owned(), self.digest().to_string()] {
            registry.put(format!("{base}/manifests/{name}"), MANIFEST, self.manifest.clone());
        }
        for blob in self.layers.iter().chain([&self.config]) {
            let path = format!("{base}/blobs/{}", Digest::of(blob));
            registry.put(path, "application/octet-stream", blob.clone());
        }
    }
}

/// Publishes an index of images, by architecture.
pub(crate) fn publish_index(
    registry: &Registry,
    repository: &str,
    tag: &str,
    images: &[(&str, &Image)],
) {
    let entry = |(architecture, image): &(&str, &Image)| {
        image.publish(registry, repository, architecture);
        serde_json::json!({
            "mediaType": MANIFEST, "digest": image.digest().to_string(), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let manifests: Vec<_> = images.iter().map(entry).collect();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    registry.put(
        format!("/v2/{repository}/manifests/{tag}"),
        INDEX,
        index.to_string().into_bytes(),
    );
}

/// Bytes that differ everywhere, so that a shift or a gap shows.
pub(crate) fn content(seed: &str, size: usize) -> Vec<u8> {
    let mut state = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Long enough for a busy machine, short enough to notice.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
