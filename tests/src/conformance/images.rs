//! The images that the specs name, made of what Debian installs here, in a registry on loopback.
//!
//! The daemon finds them under the names of the public registries by way of its mirrors. What is in them is ours: a busybox,
//! beside a shell that looks for its commands on the search path (the one in Debian's busybox runs its own applets whatever
//! the path says), and one program that is allowed to become root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::image::TestImage;
use crate::layer::Layer;

/// A busybox with a shell.
pub(super) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// A web server on port 80 that says on its standard output that it starts.
pub(super) const HTTPD: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";
/// A web server on port 80 whose process is called `nginx` and leaves its number in `/var/run/nginx.pid`.
pub(super) const WEB: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
/// The same on port 12003, for pods that share the node's network.
pub(super) const HOST_WEB: &str = "gcr.io/k8s-staging-cri-tools/hostnet-nginx-amd64:latest";
/// Says with which user it runs in the end: its program belongs to root and is set-user-ID.
pub(super) const NO_NEW_PRIVILEGES: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";
/// User 1000 is a member of the group 50000.
pub(super) const PREDEFINED_GROUP: &str =
    "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest";
/// The same image under two registries.
pub(super) const PAUSE: [&str; 2] = ["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"];

/// An image that the image specs pull and remove, by what stands after `test-image-`.
pub(super) fn staged(name: &str) -> String {
    format!("gcr.io/k8s-staging-cri-tools/test-image-{name}")
}

/// The registries for which the loopback one stands.
pub(super) const MIRRORED: [&str; 3] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"];

/// Pushes all of them, with this program as their `/bin/sh`; the digest of `test-image-digest`.
pub(super) async fn push_all(host: &str, shell: &Path) -> Result<String> {
    let base = base(shell)?;
    let command = |words: &[&str]| json!({ "Env": [PATH], "Cmd": words });
    let plain = command(&["sh"]);
    let push = async |image: TestImage, config: Value, name: &str| -> Result<String> {
        let path = MIRRORED.iter().find_map(|registry| name.strip_prefix(&format!("{registry}/")));
        let path = path.context("the image is of no registry that is stood for")?;
        let (repository, tag) = path.rsplit_once(':').context("no tag")?;
        image.with_config(config).push(host, repository, tag).await
    };
    push(base.clone(), plain.clone(), BUSYBOX).await?;
    push(base.clone(), command(&["sh", "-c", STARTS_HTTPD]), HTTPD).await?;
    let web = with_web_server(&base)?;
    push(web.clone(), command(&["busybox", "sh", "-c", &web_server(80)]), WEB).await?;
    push(web, command(&["busybox", "sh", "-c", &web_server(12003)]), HOST_WEB).await?;
    push(base.clone(), command(&["sleep", "3600"]), PAUSE[0]).await?;
    let escalating = ["/bin/become-root", "-p", "-c", TELLS_EFFECTIVE_USER];
    let escalating = json!({ "Env": [PATH], "Entrypoint": escalating });
    push(with_set_uid_shell(&base)?, escalating, NO_NEW_PRIVILEGES).await?;
    push(with_predefined_group(&base)?, command(&["sh"]), PREDEFINED_GROUP).await?;

    for (name, user) in USERS {
        let config = json!({ "Env": [PATH], "Cmd": ["sh"], "User": user });
        push(base.clone(), config, &staged(&format!("user-{name}:latest"))).await?;
    }
    for name in ["1", "2", "3", "latest"] {
        let image = with_file(&base, &format!("test-image-{name}"))?;
        push(image, plain.clone(), &staged(&format!("{name}:latest"))).await?;
    }
    for tag in ["1", "2", "3"] {
        let image = with_file(&base, "same-image")?;
        push(image, plain.clone(), &staged(&format!("tags:{tag}"))).await?;
    }
    for tag in ["test", "all"] {
        push(with_file(&base, tag)?, plain.clone(), &staged(&format!("tag:{tag}"))).await?;
    }
    let digest = with_file(&base, "test-image-digest")?;
    push(digest, plain, &staged("digest:latest")).await
}

fn base(shell: &Path) -> Result<TestImage> {
    let mut layer = Layer::busybox(&["sh"])?;
    add_program(&mut layer, shell, "bin/sh", 0o755)?;
    for dir in ["mnt", "run", "usr", "usr/bin", "usr/sbin", "var/run", "var/lib"] {
        layer.dir(dir, 0o755)?;
    }
    // What busybox has under other names, or not at all.
    layer.file("bin/pgrep", 0o755, b"#!/bin/sh\nexec pidof \"$@\"\n")?;
    layer.file("bin/ipcs", 0o755, b"#!/bin/sh\nexec cat /proc/sysvipc/shm\n")?;
    layer.file("www/index.html", 0o644, b"<html><body>It works</body></html>\n")?;
    layer.file("etc/passwd", 0o644, ACCOUNTS.as_bytes())?;
    layer.file("etc/group", 0o644, GROUPS.as_bytes())?;
    TestImage::empty().with_layer(layer.finish()?)
}

fn with_file(base: &TestImage, name: &str) -> Result<TestImage> {
    let mut layer = Layer::default();
    layer.file(name, 0o644, b"")?;
    base.clone().with_layer(layer.finish()?)
}

/// A busybox under the name that the public suite looks for.
fn with_web_server(base: &TestImage) -> Result<TestImage> {
    let mut layer = Layer::default();
    let program = std::fs::read("/bin/busybox").context("/bin/busybox is missing")?;
    layer.file("usr/sbin/nginx", 0o755, &program)?;
    base.clone().with_layer(layer.finish()?)
}

fn with_set_uid_shell(base: &TestImage) -> Result<TestImage> {
    let mut layer = Layer::default();
    let program = std::fs::read("/bin/dash").context("/bin/dash is missing")?;
    layer.file("bin/become-root", 0o4755, &program)?;
    base.clone().with_layer(layer.finish()?)
}

fn with_predefined_group(base: &TestImage) -> Result<TestImage> {
    let mut layer = Layer::default();
    let user = "default-user:x:1000:1000::/home:/bin/sh\n";
    let groups = "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";
    layer.file("etc/passwd", 0o644, format!("{ACCOUNTS}{user}").as_bytes())?;
    layer.file("etc/group", 0o644, format!("{GROUPS}{groups}").as_bytes())?;
    base.clone().with_layer(layer.finish()?)
}

/// A program of this machine with the libraries that it needs.
fn add_program(layer: &mut Layer, program: &Path, name: &str, mode: u32) -> Result<()> {
    layer.file(name, mode, &std::fs::read(program)?)?;
    for library in libraries(program)? {
        let bytes = std::fs::read(&library)?;
        layer.file(library.strip_prefix("/")?, 0o755, &bytes)?;
    }
    Ok(())
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd does not run")?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(!text.contains("not found"), "{} lacks libraries:\n{text}", program.display());
    let paths = text.lines().filter_map(|line| line.split(' ').find(|word| is_path(word)));
    Ok(paths.map(|path| PathBuf::from(path.trim())).collect())
}

fn is_path(word: &str) -> bool {
    word.trim().starts_with('/')
}

/// For busybox's shell, which can start a program under another first argument; the realm is what the public suite knows the
/// process by.
fn web_server(port: u16) -> String {
    format!(
        "echo $$ > /var/run/nginx.pid; exec -a httpd /usr/sbin/nginx -f -p {port} -r 'master process' -h /www"
    )
}

/// By the shell alone: busybox gives up what it was started with.
const TELLS_EFFECTIVE_USER: &str = "while read -r key real effective rest; do [ $key != Uid: ] || echo Effective uid: $effective; done < /proc/self/status";
const STARTS_HTTPD: &str = "echo httpd starts; exec httpd -f -p 80 -h /www";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USERS: [(&str, &str); 4] = [
    ("uid", "1002"),
    ("username", "www-data"),
    ("uid-group", "1003:1004"),
    ("username-group", "www-data:1004"),
];
const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";
