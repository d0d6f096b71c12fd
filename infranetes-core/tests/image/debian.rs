//! The store against a registry that others wrote: Debian's `docker-registry`, plain and over TLS with
//! passwords. Installs nothing; says so and passes if the program is missing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use infranetes_core::image::{
    Credentials, Digest, Endpoint, EndpointCredentials, PullFailure, Reference,
};
use tempfile::TempDir;

use crate::node::{APP, Node};
use crate::registry::{Image, PASSWORD, PATIENCE, USER};

const PROGRAM: &str = "docker-registry";
/// `PASSWORD`, as the registry keeps it.
const HASH: &str = "$2b$05$dWnv8m6hJTlUNQDbV3F5Oe2Pz2ct9KC4rpHpOuuaRG2dQkYVdsH6q";
/// The size of a layer that takes a while.
const LARGE: usize = 100 << 20;

/// The program, running; it is killed when this is dropped.
struct Debian {
    child: Child,
    port: u16,
}

impl Debian {
    /// Starts it on the blobs in `dir`; `None` if it is not installed.
    fn start(dir: &Path, more: &str) -> Option<Debian> {
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:0\n{more}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let spawned = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            println!("skipped: {PROGRAM} is not installed");
            return None;
        };
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let port = port_of(&mut log);
        // Its log must be read, or it stops when the pipe is full.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Debian { child, port })
    }

    fn endpoint(&self, scheme: &str, host: &str) -> Endpoint {
        let mut endpoint = Endpoint::new(&format!("{scheme}://{host}:{}", self.port)).unwrap();
        endpoint.credentials = EndpointCredentials::FromPull;
        endpoint
    }

    /// Uploads an image as `team/app:1`.
    fn push(&self, image: &Image) {
        for blob in image.layers.iter().chain([&image.config]) {
            let started = self.request("POST", "/v2/team/app/blobs/uploads/", "", b"");
            let location = started
                .lines()
                .find_map(|line| line.strip_prefix("Location: http://"))
                .and_then(|url| url.find('/').map(|slash| &url[slash..]))
                .unwrap_or_else(|| panic!("{started}"));
            let path = format!("{location}&digest={}", Digest::of(blob));
            let done = self.request("PUT", &path, "application/octet-stream", blob);
            assert!(done.starts_with("HTTP/1.1 201"), "{done}");
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let done = self.request("PUT", "/v2/team/app/manifests/1", media_type, &image.manifest);
        assert!(done.starts_with("HTTP/1.1 201"), "{done}");
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the log until it names the port.
fn port_of(log: &mut impl BufRead) -> u16 {
    let deadline = Instant::now() + PATIENCE;
    let mut line = String::new();
    while Instant::now() < deadline {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended");
        if let Some((_, address)) = line.split_once("listening on 127.0.0.1:") {
            let digits: String = address.chars().take_while(char::is_ascii_digit).collect();
            return digits.parse().unwrap();
        }
    }
    panic!("the registry does not say where it listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_from_debians_registry() {
    let dir = TempDir::new().unwrap();
    let Some(registry) = Debian::start(dir.path(), "") else { return };
    let image = Image::new("real", &[LARGE, 1000]);
    registry.push(&image);
    let node = Node::with_endpoints(registry.endpoint("http", "127.0.0.1"), vec![]).await;
    let (before, start) = (memory_kib("VmRSS"), Instant::now());
    node.store.pull(APP, None).await.unwrap();
    let took = start.elapsed();
    println!(
        "pulled {} MiB in {took:.2?}; resident before {before} KiB, after {} KiB",
        LARGE >> 20,
        memory_kib("VmRSS")
    );
    node.expect_whole(&image).await;

    let error = node.store.pull("reg.test/team/app:nope", None).await.unwrap_err();
    assert!(matches!(error.failure(), PullFailure::NotFound { .. }), "{error}");

    // Half of a layer is there: the registry is asked for the other half.
    let name = image.layer(0).to_string().replace(':', "-");
    node.store.remove(APP).await.unwrap();
    let partial = node.root().join("partial").join(name);
    fs::write(&partial, &image.layers[0][..LARGE / 2]).unwrap();
    node.store.pull(APP, None).await.unwrap();
    node.expect_whole(&image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_opens_over_tls_with_a_password() {
    let dir = TempDir::new().unwrap();
    let image = Image::new("closed", &[200_000]);
    match Debian::start(dir.path(), "") {
        Some(registry) => registry.push(&image),
        None => return,
    }
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let certificate = file("cert.pem", key.cert.pem());
    let private = file("key.pem", key.signing_key.serialize_pem());
    let users = file("users", format!("{USER}:{HASH}\n"));
    let more = format!(
        "  tls: {{certificate: {}, key: {}}}\nauth: {{htpasswd: {{realm: here, path: {}}}}}\n",
        certificate.display(),
        private.display(),
        users.display()
    );
    let registry = Debian::start(dir.path(), &more).unwrap();

    let mut endpoint = registry.endpoint("https", "localhost");
    let distrusting = Node::with_endpoints(endpoint.clone(), vec![]).await;
    let error = distrusting.pull().await.unwrap_err();
    let PullFailure::Unreachable { attempts: 1, .. } = error.failure() else { panic!("{error:?}") };

    endpoint.ca_file = Some(certificate);
    let node = Node::with_endpoints(endpoint, vec![]).await;
    for (credentials, given) in [(None, false), (Some(Credentials::basic(USER, "wrong")), true)] {
        let error = node.pull_as(credentials).await.unwrap_err();
        let PullFailure::Unauthorized { given: got, .. } = error.failure() else {
            panic!("{error:?}")
        };
        assert_eq!(*got, given);
    }
    node.pull_as(Some(Credentials::basic(USER, PASSWORD))).await.unwrap();
    node.expect_whole(&image).await;
    let reference: Reference = APP.parse().unwrap();
    assert!(node.store.status(&reference.repo_digest(&image.digest())).is_some());
}

/// A number of this process's memory.
fn memory_kib(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
