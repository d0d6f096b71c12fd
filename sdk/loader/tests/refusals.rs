//! Each file that must not be loaded, and the message it gets.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Memory, chain, fixture, load_trouble, patched};
use infranetes_loader::{LoadError, Loader, PluginSpec, vet};

/// Loads `path` and checks that the refusal says all of `expected`.
async fn check(path: &Path, expected: &[&str]) -> LoadError {
    check_spec(PluginSpec::new("bad", path), expected).await
}

async fn check_spec(spec: PluginSpec, expected: &[&str]) -> LoadError {
    let error = Loader::new().load(spec).await.expect_err("must be refused");
    let text = chain(&error);
    for part in expected {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    assert!(text.len() < 600, "too long to read:\n{text}");
    error
}

fn write(directory: &Path, name: &str, data: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, data).expect("write a file");
    path
}

fn elf_of(section: &str) -> Vec<u8> {
    let data = std::fs::read(fixture("hello")).expect("read the fixture");
    assert!(data.windows(section.len()).any(|window| window == section.as_bytes()));
    data
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing.so");
    let error = check(&missing, &["cannot open the plugin", "missing.so", "No such file"]).await;
    assert!(matches!(error, LoadError::Open { .. }));

    let error = check(directory.path(), &["is not a regular file"]).await;
    assert!(matches!(error, LoadError::NotRegular { .. }));

    let fifo = directory.path().join("fifo.so");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("make a pipe");
    let error = check(&fifo, &["fifo.so is not a regular file"]).await;
    assert!(matches!(error, LoadError::NotRegular { .. }));
}

#[tokio::test]
async fn what_others_may_write_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = write(directory.path(), "world.so", &elf_of("infranetes provider\n"));
    for mode in [0o777, 0o775, 0o757] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
        let mode = format!("(mode {mode:o})");
        let error = check(&path, &["world.so can be written by others", &mode, "chmod go-w"]).await;
        assert!(matches!(error, LoadError::Writable { .. }));
    }

    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).expect("mkdir");
    let path = write(&inner, "x.so", &elf_of("infranetes provider\n"));
    std::fs::set_permissions(&inner, PermissionsExt::from_mode(0o777)).expect("chmod");
    check(&path, &["inner can be written by others"]).await;

    // A link into a directory that others may write is as bad as the file there.
    let path = inner.join("link.so");
    std::os::unix::fs::symlink(fixture("hello"), &path).expect("symlink");
    check(&path, &["inner can be written by others"]).await;

    // In a sticky one they cannot replace what is ours.
    std::fs::set_permissions(&inner, PermissionsExt::from_mode(0o1777)).expect("chmod");
    let spec = PluginSpec::new("good", path).with_config_json(r#"{"network":"n"}"#);
    Loader::new().load(spec).await.expect("a sticky directory is fine");
}

#[tokio::test]
async fn what_somebody_else_owns_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = write(directory.path(), "nobody.so", &elf_of("infranetes provider\n"));
    std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
    let error = check(&path, &["nobody.so is owned by uid 65534", "root or to the user"]).await;
    assert!(matches!(error, LoadError::Owner { .. }));
}

#[tokio::test]
async fn a_wrong_digest_is_refused_and_the_right_one_is_not() {
    let path = fixture("hello");
    let spec = PluginSpec::new("hello", &path).with_config_json(r#"{"network":"n"}"#);
    let loaded = Loader::new().load(spec.clone()).await.expect("no digest pinned");
    assert_eq!(loaded.sha256(), None);
    let digest = vet(&path, None).expect("vetted").digest().expect("a digest");

    let wrong = "0".repeat(64);
    let error = check_spec(spec.clone().with_sha256(&wrong), &[&digest, &wrong, "pins"]).await;
    assert!(matches!(error, LoadError::Digest { .. }));

    for right in [digest.clone(), format!("sha256:{digest}"), digest.to_uppercase()] {
        let spec = spec.clone().with_sha256(right);
        let loaded = Loader::new().load(spec).await.expect("the right digest");
        assert_eq!(loaded.sha256(), Some(digest.as_str()));
    }
}

#[tokio::test]
async fn what_is_no_shared_library_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = write(directory.path(), "text.so", b"#!/bin/sh\necho no\n");
    check(&text, &["text.so is not a shared library", "file magic"]).await;

    let empty = write(directory.path(), "empty.so", b"");
    check(&empty, &["empty.so is not a shared library"]).await;

    let data = elf_of("infranetes provider\n");
    let half = write(directory.path(), "truncated.so", &data[..data.len() / 2]);
    let error = check(&half, &["truncated.so is not a shared library"]).await;
    assert!(matches!(error, LoadError::NotALibrary { .. }));

    // An ET_REL file: the type is two bytes at offset 16.
    let mut object = data.clone();
    object[16] = 1;
    let object = write(directory.path(), "object.so", &object);
    let error = check(&object, &["Relocatable", "not a shared library"]).await;
    assert!(matches!(error, LoadError::NotDynamic { .. }));
}

#[tokio::test]
async fn what_is_no_provider_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let test = std::fs::read("/proc/self/exe").expect("read this program");
    let exe = write(directory.path(), "exe.so", &test);
    let expected =
        ["exe.so is a shared library, but not an infranetes provider", "export_provider!"];
    let error = check(&exe, &expected).await;
    assert!(matches!(error, LoadError::NotAProvider { .. }));

    let maps = std::fs::read_to_string("/proc/self/maps").expect("read the maps");
    let libc = maps
        .lines()
        .find_map(|line| line.split_once('/').filter(|(_, path)| path.contains("libc.so")))
        .map(|(_, path)| format!("/{path}"))
        .expect("this program uses a C library");
    check(Path::new(&libc), &["is a shared library, but not an infranetes provider"]).await;
}

#[tokio::test]
async fn what_is_built_for_something_else_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    // The machine is two bytes at offset 18; 183 is AArch64, 62 is x86-64.
    let mut data = elf_of("infranetes provider\n");
    let other = if data[18] == 62 { (183, "Aarch64") } else { (62, "X86_64") };
    data[18] = other.0;
    let arm = write(directory.path(), "arm.so", &data);
    let host = format!("this host is {}", std::env::consts::ARCH);
    let error = check(&arm, &["arm.so is built for", other.1, &host]).await;
    assert!(matches!(error, LoadError::Architecture { .. }));

    let musl = patched(directory.path(), "musl.so", "linux-gnu\npanic", "linux-mus\npanic");
    let error = check(&musl, &["linux-mus, this host is", "--target"]).await;
    assert!(matches!(error, LoadError::Target { .. }));
}

#[tokio::test]
async fn another_abi_is_refused_with_both_versions() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = patched(directory.path(), "abi2.so", "\nabi=1.", "\nabi=2.");
    let expected =
        ["provider infranetes-loader", "speaks ABI 2.0.0 (sdk", "this host speaks ABI 1.0.0"];
    let error = check(&path, &expected).await;
    assert!(matches!(error, LoadError::AbiVersion { .. }));

    // What claims ABI 1 and is not.
    let error =
        check(&fixture("liar"), &["its ABI does not match this host", " instead of "]).await;
    assert!(matches!(error, LoadError::Abi { .. }));
}

#[tokio::test]
async fn a_manifest_that_lies_about_its_symbol_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let from = "symbol=INFRANETES_PROVIDER_V1_fixture_hello";
    let path = patched(directory.path(), "symbol.so", from, &from.replace("hello", "hallo"));
    check(&path, &["does not export INFRANETES_PROVIDER_V1_fixture_hallo"]).await;
    let path = patched(directory.path(), "prefix.so", from, &from.replace("V1_f", "V2_f"));
    check(&path, &["does not begin with INFRANETES_PROVIDER_V1_"]).await;
}

#[tokio::test]
async fn panic_abort_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = patched(directory.path(), "abort.so", "panic=unwind\n\0", "panic=abort\n\n\0");
    let expected = ["panic=abort: one bug in it would take this process down", "panic=unwind"];
    let error = check(&path, &expected).await;
    assert!(matches!(error, LoadError::PanicAbort { .. }));
}

#[tokio::test]
async fn a_wrong_configuration_names_the_field() {
    for (config, expected) in [
        ("{}", "missing field `network`"),
        (r#"{"network":"n","nettwork":"x"}"#, "unknown field `nettwork`"),
        ("not json", "expected ident"),
    ] {
        let spec = PluginSpec::new("hello", fixture("hello")).with_config_json(config);
        let sentences = ["hello", "failed to start", "configuration is wrong", expected];
        let error = check_spec(spec, &sentences).await;
        assert!(matches!(error, LoadError::Start { .. }));
    }
}

#[tokio::test]
async fn a_start_that_fails_tells_why() {
    for (config, expected) in [
        (r#"{"start":"error"}"#, "the cloud does not know us <- 401"),
        (r#"{"start":"panic"}"#, "plugin/start panicked: start went wrong"),
        (r#"{"start":"secret","secret":"unknown"}"#, "no secret named \"unknown\""),
        (r#"{"start":"secret","secret":"panics"}"#, "a host service that panics"),
    ] {
        let memory = std::sync::Arc::new(Memory::default());
        let error = load_trouble(config, memory).await.expect_err("must fail");
        let text = chain(&error);
        assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
        assert!(text.contains("the provider t0") && text.contains("failed to start"), "{text}");
    }
}

#[tokio::test]
async fn a_start_that_hangs_or_blocks_is_given_up() {
    for config in [r#"{"start":"hang"}"#, r#"{"start":"block"}"#] {
        let memory = std::sync::Arc::new(Memory::default());
        let started = tokio::time::Instant::now();
        let error = load_trouble(config, memory).await.expect_err("must fail");
        assert!(matches!(error, LoadError::StartTimeout { .. }), "{}", chain(&error));
        assert!(error.to_string().contains("did not start within 0.7 s"), "{error}");
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
    }
}
