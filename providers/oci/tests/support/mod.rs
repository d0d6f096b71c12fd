//! What the tests of this provider share: a place of their own to run in, images made of busybox, and short ways to ask.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use infranetes_provider_oci::{Config, OciProvider};
use infranetes_sdk::v1::exec_input::Input as ExecPart;
use infranetes_sdk::v1::exec_output::Output as ExecPiece;
use infranetes_sdk::v1::import_chunk::Part as ImportPart;
use infranetes_sdk::v1::logs_input::Input as LogsPart;
use infranetes_sdk::v1::{
    ContainerRef, ContainerState, ContainerStatus, CreateContainerRequest, ExecExit, ExecInput,
    ExecStart, Image, ImportChunk, Layer, LogStream, LogsInput, LogsStart, MissingRequest, Process,
};
use infranetes_sdk::{CallContext, ContainerProvider, Result, StreamExt, stream};
use sha2::{Digest, Sha256};

/// Runs a test as root in a mount namespace of its own, in which only one kind of cgroup is mounted: runtimes refuse machines
/// that have both. `name` is the test's name.
pub(crate) fn isolated(name: &str, body: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        return runtime.worker_threads(1).enable_all().build().unwrap().block_on(async {
            tokio::time::timeout(TEST_LIMIT, Box::pin(body()))
                .await
                .expect("the test takes too long");
        });
    }
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("{name} did not run: it needs root");
        return;
    }
    let script =
        "mountpoint -q /sys/fs/cgroup/unified && mount -t tmpfs none /sys/fs/cgroup/unified
        exec \"$0\" \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace: {status}");
}

/// A provider with places of its own; all is gone with it.
pub(crate) struct World {
    pub(crate) provider: OciProvider,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) parent: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::Builder::new().prefix("oci").tempdir_in("/tmp").unwrap();
        let parent = format!("infranetes-test-{}", std::process::id());
        let provider = open(dir.path(), &parent, change).await;
        Self { provider, dir, parent }
    }

    /// Imports layers, lowest first, and names the image.
    pub(crate) async fn import(&self, layers: &[Vec<u8>]) -> Image {
        let image = image(layers);
        let missing = MissingRequest { image: Some(image.clone()) };
        self.provider.missing(ctx(), missing).await.unwrap();
        import(&self.provider, &image, layers).await.unwrap();
        image
    }

    /// The image that most tests use.
    pub(crate) async fn busybox(&self) -> Image {
        self.import(&[busybox_layer()]).await
    }

    /// Creates and starts a container.
    pub(crate) async fn run(&self, request: CreateContainerRequest) -> String {
        let id = request.id.clone();
        self.provider.create(ctx(), request).await.unwrap();
        self.provider.start(ctx(), container(&id)).await.unwrap();
        id
    }

    pub(crate) async fn status(&self, id: &str) -> ContainerStatus {
        self.provider.status(ctx(), container(id)).await.unwrap()
    }

    pub(crate) async fn exited(&self, id: &str) -> ContainerStatus {
        for _ in 0..2000 {
            let status = self.status(id).await;
            if status.state() == ContainerState::Exited {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{id} does not exit");
    }

    /// Runs a container to its end: its status, what it wrote, and what it complained about.
    pub(crate) async fn output(
        &self,
        request: CreateContainerRequest,
    ) -> (ContainerStatus, String, String) {
        let id = self.run(request).await;
        let status = self.exited(&id).await;
        let (stdout, stderr) = self.logs(&id).await;
        self.provider.remove(ctx(), container(&id)).await.unwrap();
        (status, stdout, stderr)
    }

    /// All output of a container that ended.
    pub(crate) async fn logs(&self, id: &str) -> (String, String) {
        let start =
            LogsInput { input: Some(LogsPart::Start(LogsStart { id: id.into(), after: 0 })) };
        let input = stream::from_items([start]);
        let mut chunks = self.provider.logs(ctx(), input).await.unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut last = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            assert_eq!(chunk.sequence, last + 1);
            last = chunk.sequence;
            match chunk.stream() {
                LogStream::Stderr => stderr.extend(chunk.data),
                _ => stdout.extend(chunk.data),
            }
        }
        (text(stdout), text(stderr))
    }

    /// Runs a program in a container to its end.
    pub(crate) async fn exec(
        &self,
        start: ExecStart,
        input: Vec<ExecPart>,
    ) -> Result<(ExecExit, String, String)> {
        let first = ExecInput { input: Some(ExecPart::Start(start)) };
        let rest = input.into_iter().map(|part| ExecInput { input: Some(part) });
        let input = stream::from_items(std::iter::once(first).chain(rest));
        let mut output = self.provider.exec(ctx(), input).await?;
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        while let Some(piece) = output.next().await {
            assert!(exit.is_none(), "something came after the exit");
            match piece?.output.unwrap() {
                ExecPiece::Stdout(data) => stdout.extend(data),
                ExecPiece::Stderr(data) => stderr.extend(data),
                ExecPiece::Exit(end) => exit = Some(end),
            }
        }
        Ok((exit.unwrap(), text(stdout), text(stderr)))
    }

    /// Asserts that nothing of any container is left on this machine.
    pub(crate) fn assert_clean(&self) {
        assert_clean(self.dir.path(), &self.parent);
        remove_cgroups(&self.parent);
    }
}

/// Asserts that nothing of any container is left.
pub(crate) fn assert_clean(dir: &Path, parent: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = dir.to_str().unwrap();
    assert!(!mounts.contains(path), "a mount is left: {mounts}");
    let pattern = format!("*{parent}/?*");
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", &pattern])
        .output()
        .unwrap();
    assert_eq!(text(found.stdout), "", "a cgroup is left");
    for part in ["run/c", "root/writable"] {
        let left = std::fs::read_dir(dir.join(part)).into_iter().flatten().count();
        assert_eq!(left, 0, "something is left in {part}");
    }
    let runtimes = Command::new("pgrep").args(["-f", &format!("{path}/run/state")]).output();
    assert_eq!(text(runtimes.unwrap().stdout), "", "a runtime process is left");
}

/// Removes the parent of all cgroups of a test, once it is empty.
pub(crate) fn remove_cgroups(parent: &str) {
    let pattern = format!("*/{parent}*");
    let _ = Command::new("find")
        .args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &pattern])
        .args(["-exec", "rmdir", "{}", ";"])
        .output();
}

pub(crate) async fn open(
    dir: &Path,
    parent: &str,
    change: impl FnOnce(&mut Config),
) -> OciProvider {
    let mut config = Config {
        run: dir.join("run"),
        start_timeout_s: 15,
        cgroup_parent: parent.to_owned(),
        runtime: std::env::var_os("OCI_RUNTIME").unwrap_or_else(|| "crun".into()).into(),
        ..Config::default()
    };
    change(&mut config);
    OciProvider::open(config, dir.join("root")).await.unwrap()
}

pub(crate) async fn import(
    provider: &OciProvider,
    image: &Image,
    layers: &[Vec<u8>],
) -> Result<usize> {
    let mut chunks = Vec::new();
    for (layer, bytes) in image.layers.iter().zip(layers) {
        chunks.push(ImportChunk { part: Some(ImportPart::Layer(layer.clone())) });
        for piece in bytes.chunks(100_003) {
            chunks.push(ImportChunk { part: Some(ImportPart::Data(piece.to_vec())) });
        }
    }
    let mut progress = provider.import(ctx(), stream::from_items(chunks)).await?;
    let mut done = 0;
    while let Some(step) = progress.next().await {
        done += usize::from(step?.done);
    }
    Ok(done)
}

/// An image of plain or gzipped layers.
pub(crate) fn image(layers: &[Vec<u8>]) -> Image {
    let layers: Vec<Layer> = layers.iter().map(|bytes| layer(bytes)).collect();
    let names: Vec<u8> = layers.iter().flat_map(|layer| layer.diff_id.bytes()).collect();
    Image { id: digest(&names), layers }
}

pub(crate) fn layer(bytes: &[u8]) -> Layer {
    let mut plain = Vec::new();
    let is_gzip = bytes.starts_with(&[0x1f, 0x8b]);
    if is_gzip {
        std::io::copy(&mut flate2::read::MultiGzDecoder::new(bytes), &mut plain).unwrap();
    } else {
        plain.extend(bytes);
    }
    let suffix = if is_gzip { "+gzip" } else { "" };
    Layer {
        digest: digest(bytes),
        diff_id: digest(&plain),
        size_bytes: bytes.len() as u64,
        media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// busybox with a link for each of its programs, and the users that tests ask for.
pub(crate) fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("the package busybox-static is installed");
    let programs = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    let mut tar = Tar::new();
    for dir in ["bin/", "etc/", "tmp/", "home/", "home/web/"] {
        tar.dir(dir, if dir == "tmp/" { 0o1777 } else { 0o755 });
    }
    tar.file("bin/busybox", 0o755, &busybox);
    for program in text(programs).lines().filter(|name| *name != "busybox") {
        tar.symlink(&format!("bin/{program}"), "busybox");
    }
    tar.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/home/web:/bin/sh\n",
    );
    tar.file("etc/group", 0o644, b"root:x:0:\nweb:x:34:\nlogs:x:50:web\n");
    tar.file("etc/plain", 0o644, b"not a program\n");
    tar.file("bin/broken", 0o755, b"\x7fELF nonsense");
    tar.finish()
}

/// Writes archives, honest and other ones.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        self.entry(tar::EntryType::Directory, path, "", mode, b"")
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(tar::EntryType::Regular, path, "", mode, content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Symlink, path, target, 0o777, b"")
    }

    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Link, path, target, 0o644, b"")
    }

    /// Takes any path, also one that no archiver would write.
    pub(crate) fn entry(
        &mut self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        mode: u32,
        content: &[u8],
    ) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        if kind.is_character_special() || kind.is_block_special() {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Says more about the next entry, as PAX does.
    pub(crate) fn pax(&mut self, key: &str, value: &str) -> &mut Self {
        self.0.append_pax_extensions([(key, value.as_bytes())]).unwrap();
        self
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.0, tar::Builder::new(Vec::new())).into_inner().unwrap()
    }
}

/// A container that runs a program of an image.
pub(crate) fn request(id: &str, image: &Image, args: &[&str]) -> CreateContainerRequest {
    CreateContainerRequest {
        id: id.into(),
        image: Some(image.clone()),
        process: Some(Process {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs a script.
pub(crate) fn script(id: &str, image: &Image, script: &str) -> CreateContainerRequest {
    request(id, image, &["/bin/sh", "-c", script])
}

pub(crate) fn exec(id: &str, args: &[&str]) -> ExecStart {
    ExecStart {
        container_id: id.into(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Default::default()
    }
}

pub(crate) fn container(id: &str) -> ContainerRef {
    ContainerRef { id: id.into() }
}

pub(crate) fn ctx() -> CallContext {
    CallContext::default()
}

pub(crate) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

const INSIDE: &str = "INFRANETES_TEST_ISOLATED";
const TEST_LIMIT: Duration = Duration::from_secs(300);
