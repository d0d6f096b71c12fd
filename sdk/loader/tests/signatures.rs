//! Files that somebody vouches for: what is refused, and that what was checked is what runs.

mod common;

use std::path::{Path, PathBuf};

use common::{chain, fixture, loader};
use infranetes_loader::isolation::Isolation;
use infranetes_loader::signature::{PublicKey, SecretKey, Signature};
use infranetes_loader::{LoadError, LoadedPlugin, PluginSpec, sha256_of};
use infranetes_sdk::CallContext;
use infranetes_sdk::pod::GetRequest;

struct Plugin {
    _directory: tempfile::TempDir,
    path: PathBuf,
    digest: String,
}

impl Plugin {
    fn copy() -> Plugin {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("plugin.so");
        let data = std::fs::read(fixture("hello")).expect("read the fixture");
        std::fs::write(&path, &data).expect("write the copy");
        Plugin { _directory: directory, path, digest: sha256_of(&data) }
    }

    fn signature(&self) -> PathBuf {
        Signature::path_of(&self.path)
    }

    fn write_signature(&self, text: impl AsRef<[u8]>) {
        std::fs::write(self.signature(), text).expect("write the signature");
    }

    fn spec(&self) -> PluginSpec {
        PluginSpec::new("signed", &self.path).with_config_json(r#"{"network":"n"}"#)
    }
}

async fn load(spec: PluginSpec, keys: &[PublicKey]) -> Result<LoadedPlugin, LoadError> {
    loader().with_trusted_keys(keys.to_vec()).load(spec).await
}

async fn refused(plugin: &Plugin, keys: &[PublicKey], expected: &str) {
    for isolation in [Isolation::None, Isolation::Process] {
        let error = load(plugin.spec().with_isolation(isolation), keys).await;
        let text = chain(&error.expect_err("must be refused"));
        assert!(text.contains("plugin.so") && text.contains(expected), "{expected:?}: {text}");
        assert!(text.len() < 600, "too long to read: {text}");
    }
}

async fn works(plugin: &LoadedPlugin) {
    let pods = plugin.pods().expect("machines");
    let machine = pods.get(CallContext::new("r1"), GetRequest { id: "hello".into() }).await;
    assert_eq!(machine.expect("an answer").zone, "n");
}

fn key() -> SecretKey {
    SecretKey::generate().expect("a key")
}

#[tokio::test]
async fn where_keys_are_trusted_a_file_needs_a_signature_or_a_pin() {
    let (plugin, key, other) = (Plugin::copy(), key(), key());
    let trusted = [other.public(), key.public()];
    refused(&plugin, &trusted, "is not signed, and this host takes only plugins that a trusted")
        .await;
    load(plugin.spec(), &[]).await.expect("nobody asks for a signature");
    load(plugin.spec().with_sha256(&plugin.digest), &trusted).await.expect("a pin is enough");

    plugin.write_signature(key.sign(&plugin.digest).to_string());
    for isolation in [Isolation::None, Isolation::Process] {
        let loaded = load(plugin.spec().with_isolation(isolation), &trusted).await;
        let loaded = loaded.expect("it is signed");
        assert_eq!(loaded.sha256(), Some(plugin.digest.as_str()));
        works(&loaded).await;
    }
}

#[tokio::test]
async fn a_signature_that_is_not_good_is_refused_with_the_reason() {
    let (plugin, key, stranger) = (Plugin::copy(), key(), key());
    let trusted = [key.public()];
    plugin.write_signature(stranger.sign(&plugin.digest).to_string());
    let expected = format!("made with {}, which is none of the trusted keys", stranger.public());
    refused(&plugin, &trusted, &expected).await;

    plugin.write_signature(key.sign(&"0".repeat(64)).to_string());
    refused(&plugin, &trusted, "it does not belong to these bytes").await;

    let good = key.sign(&plugin.digest).to_string();
    for damaged in ["", "signature", &good[..60], &good.replace(' ', "  x")] {
        plugin.write_signature(damaged);
        refused(&plugin, &trusted, "it is no line of the form `ed25519:KEY SIGNATURE`").await;
    }
    plugin.write_signature([0xff; 100]);
    refused(&plugin, &trusted, "cannot read the signature").await;

    // The signature stays, the file does not.
    plugin.write_signature(&good);
    let mut data = std::fs::read(&plugin.path).expect("read the copy");
    data.push(0);
    std::fs::write(&plugin.path, data).expect("change the copy");
    refused(&plugin, &trusted, "it does not belong to these bytes").await;
}

#[tokio::test]
async fn a_signature_that_is_a_pipe_keeps_nobody_waiting() {
    let (plugin, key) = (Plugin::copy(), key());
    let (directory, kind) = (rustix::fs::CWD, rustix::fs::FileType::Fifo);
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(directory, plugin.signature(), kind, mode, 0).expect("make a pipe");
    refused(&plugin, &[key.public()], "it is no line of the form").await;
}

#[tokio::test]
async fn what_was_checked_is_what_runs_whatever_becomes_of_the_file() {
    let (plugin, key) = (Plugin::copy(), key());
    plugin.write_signature(key.sign(&plugin.digest).to_string());
    let signed = load(plugin.spec(), &[key.public()]).await.expect("it is signed");
    let pinned = load(plugin.spec().with_sha256(&plugin.digest), &[]).await.expect("it is pinned");
    // In place, as no installer should: a library that is mapped from the file would be gone.
    std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&plugin.path)
        .expect("empty the file");
    works(&signed).await;
    works(&pinned).await;
    let sealed = |name: &str| {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the maps");
        maps.lines().filter(|line| line.contains(name) && line.contains("r-xp")).count()
    };
    assert_eq!(sealed("memfd:plugin.so"), 1, "the same bytes are mapped once");
    assert_eq!(sealed(&Path::new(&plugin.path).display().to_string()), 0);
}
