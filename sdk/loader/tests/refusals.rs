//! Each file that must not be loaded, and the whole of what its author is told: the file, what was expected, what was found, what to do.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Memory, chain, fixture, loader, patched};
use infranetes_loader::isolation::{Helper, Isolation};
use infranetes_loader::signature::{SecretKey, Signature};
use infranetes_loader::{Loader, PluginSpec, vet};

/// One row. In `said`, `{dir}` is the directory of the case, `<-` stands before a cause, and `{…}` are this host's.
struct Refusal {
    case: &'static str,
    make: fn(&Path) -> (Loader, PluginSpec),
    said: &'static str,
}

const REFUSALS: &[Refusal] = &[
    // What the path leads to.
    Refusal {
        case: "nothing",
        make: |dir| plain(dir.join("x.so")),
        said: "cannot open the plugin {dir}/x.so; check `plugin` in the provider's configuration <- No such file or \
               directory (os error 2)",
    },
    Refusal {
        case: "a directory",
        make: |dir| plain(dir.to_owned()),
        said: "{dir} is a directory, not a regular file; `plugin` has to name the .so file itself",
    },
    Refusal {
        case: "a pipe",
        make: |dir| plain(pipe(dir)),
        said: "{dir}/x.so is a pipe, not a regular file; `plugin` has to name the .so file itself",
    },
    Refusal {
        case: "a device",
        make: |_| plain("/dev/null".into()),
        said: "/dev/null is a device, not a regular file; `plugin` has to name the .so file itself",
    },
    // Who may change it.
    Refusal {
        case: "anybody may write it",
        make: |dir| plain(with_mode(hello(dir), 0o757)),
        said: "{dir}/x.so can be written by others (mode 757); `chmod go-w {dir}/x.so` takes that right away",
    },
    Refusal {
        case: "a group may write it",
        make: |dir| plain(with_mode(hello(dir), 0o775)),
        said: "{dir}/x.so can be written by others (mode 775); `chmod go-w {dir}/x.so` takes that right away",
    },
    Refusal {
        case: "anybody may replace it",
        make: |dir| plain(in_open_directory(dir, hello)),
        said: "{dir}/inner can be written by others (mode 777); `chmod go-w {dir}/inner` takes that right away",
    },
    Refusal {
        case: "anybody may replace the link to it",
        make: |dir| plain(in_open_directory(dir, linked)),
        said: "{dir}/inner can be written by others (mode 777); `chmod go-w {dir}/inner` takes that right away",
    },
    // Who vouches for it.
    Refusal {
        case: "another digest is pinned",
        make: |dir| (Loader::new(), spec(hello(dir)).with_sha256("0".repeat(64))),
        said: "{dir}/x.so has the SHA-256 digest {digest}, the configuration pins \
               0000000000000000000000000000000000000000000000000000000000000000; install the right file, or change `sha256` \
               if this one is wanted",
    },
    Refusal {
        case: "nobody signed it",
        make: |dir| (trusting(&key()), spec(hello(dir))),
        said: "{dir}/x.so is not signed, and this host takes only plugins that a trusted key vouches for, or whose `sha256` \
               is pinned <- cannot read the signature {dir}/x.so.sig; `infranetes-cri plugin sign` makes one <- No such file \
               or directory (os error 2)",
    },
    Refusal {
        case: "the signature is none",
        make: |dir| (trusting(&key()), spec(signed(hello(dir), "good\n"))),
        said: "the signature of {dir}/x.so is not good; install the file with the signature that belongs to it <- it is no \
               line of the form `ed25519:KEY SIGNATURE`",
    },
    Refusal {
        case: "something else was signed",
        make: |dir| {
            let key = key();
            (trusting(&key), spec(signed(hello(dir), &key.sign(&"0".repeat(64)).to_string())))
        },
        said: "the signature of {dir}/x.so is not good; install the file with the signature that belongs to it <- it does \
               not belong to these bytes: the file was changed after it was signed, or the signature was",
    },
    // What is in it.
    Refusal {
        case: "an empty file",
        make: |dir| plain(write(dir, b"")),
        said: "{dir}/x.so is not a shared library but an empty file; build the provider with crate-type = [\"cdylib\"], and \
               name the .so that comes out",
    },
    Refusal {
        case: "a script",
        make: |dir| plain(write(dir, b"#!/bin/sh\necho no\n")),
        said: "{dir}/x.so is not a shared library but a script; build the provider with crate-type = [\"cdylib\"], and name \
               the .so that comes out",
    },
    Refusal {
        case: "text",
        make: |dir| plain(write(dir, b"[package]\nname = \"x\"\n")),
        said: "{dir}/x.so is not a shared library but text; build the provider with crate-type = [\"cdylib\"], and name the \
               .so that comes out",
    },
    Refusal {
        case: "a crate for linking",
        make: |dir| plain(write(dir, b"!<arch>\n/               0 ")),
        said: "{dir}/x.so is not a shared library but an archive of object files (an .rlib or .a); build the provider with \
               crate-type = [\"cdylib\"], and name the .so that comes out",
    },
    Refusal {
        case: "anything",
        make: |dir| plain(write(dir, &[0xca, 0xfe, 0xba, 0xbe, 0])),
        said: "{dir}/x.so is not a shared library but no ELF file; build the provider with crate-type = [\"cdylib\"], and \
               name the .so that comes out",
    },
    Refusal {
        case: "an object file",
        make: |dir| plain(changed(dir, |data| data[ELF_TYPE] = 1)),
        said: "{dir}/x.so is not a shared library but an object file; build the provider with crate-type = [\"cdylib\"], and \
               name the .so that comes out",
    },
    Refusal {
        case: "a static program",
        make: |dir| plain(changed(dir, |data| data[ELF_TYPE] = 2)),
        said: "{dir}/x.so is not a shared library but a program; build the provider with crate-type = [\"cdylib\"], and name \
               the .so that comes out",
    },
    Refusal {
        case: "half of one",
        make: |dir| plain(changed(dir, |data| data.truncate(data.len() / 2))),
        said: "{dir}/x.so is not a shared library as a linker leaves it: it is cut off or damaged; install the file again <- \
               Invalid ELF section header offset/size/alignment",
    },
    Refusal {
        case: "other hardware",
        make: |dir| plain(changed(dir, |data| data[ELF_MACHINE] = OTHER_MACHINE.0)),
        said: "{dir}/x.so is built for {other machine}, this host is {arch}; build it with --target {target}",
    },
    Refusal {
        case: "no provider",
        make: |dir| plain(write(dir, &std::fs::read("/proc/self/exe").expect("this program"))),
        said: "{dir}/x.so is a shared library, but not an infranetes provider (no .infranetes section); its crate has to call \
               export_provider!",
    },
    // What it says about itself.
    Refusal {
        case: "a manifest that is none",
        make: |dir| {
            plain(patched(dir, "x.so", "infranetes provider\nabi=", "infranetes Provider\nabi="))
        },
        said: "the manifest of {dir}/x.so is damaged: its first line is wrong; build it again",
    },
    Refusal {
        case: "the next ABI",
        make: |dir| plain(patched(dir, "x.so", "\nabi=1.", "\nabi=2.")),
        said: "provider infranetes-loader {sdk} ({dir}/x.so) speaks ABI 2.0.0 (sdk {sdk}), this host speaks ABI 1.0.0; \
               rebuild it with an infranetes-sdk of ABI 1",
    },
    Refusal {
        case: "another C library",
        make: |dir| plain(patched(dir, "x.so", "linux-gnu\npanic", "linux-mus\npanic")),
        said: "{dir}/x.so is built for {arch}-unknown-linux-mus, this host is {target}; build it with --target {target}",
    },
    Refusal {
        case: "panics that abort",
        make: |dir| plain(patched(dir, "x.so", "panic=unwind\n\0", "panic=abort\n\n\0")),
        said: "{dir}/x.so is built with panic=abort: one bug in it would take this process down; build it with panic = \
               \"unwind\"",
    },
    Refusal {
        case: "a symbol of another ABI",
        make: |dir| plain(patched(dir, "x.so", SYMBOL, &SYMBOL.replace("V1_f", "V2_f"))),
        said: "the manifest of {dir}/x.so is damaged: its symbol \"INFRANETES_PROVIDER_V2_fixture_hello\" does not begin with \
               INFRANETES_PROVIDER_V1_; build it again",
    },
    // What the linker and its types say.
    Refusal {
        case: "a symbol that is not there",
        make: |dir| plain(patched(dir, "x.so", SYMBOL, &SYMBOL.replace("hello", "hallo"))),
        said: "{dir}/x.so cannot be used; rebuild it with a released infranetes-sdk <- it does not export \
               INFRANETES_PROVIDER_V1_fixture_hallo, which its manifest names",
    },
    Refusal {
        case: "a library that this host lacks",
        make: |dir| plain(patched(dir, "x.so", "libgcc_s.so.1", "libgcc_x.so.1")),
        said: "the dynamic linker refuses {dir}/x.so; `ldd {dir}/x.so` tells what it needs of this host <- libgcc_x.so.1: \
               cannot open shared object file: No such file or directory",
    },
    Refusal {
        case: "ABI 1 that is not",
        make: |_| plain(fixture("liar")),
        said: "{liar} cannot be used; rebuild it with a released infranetes-sdk <- its ABI does not match this host <- \
               {difference}",
    },
    Refusal {
        case: "ABI 1 that is not, found by a child process",
        make: |_| {
            let probe = env!("CARGO_BIN_EXE_infranetes-probe");
            (Loader::new().with_probe(probe), spec(fixture("liar")))
        },
        said: "{liar} cannot be used; rebuild it with a released infranetes-sdk: its ABI does not match this host: \
               {difference}",
    },
    // Programs that are missing.
    Refusal {
        case: "no program to try it out",
        make: |dir| (Loader::new().with_probe("/no/probe"), spec(hello(dir))),
        said: "cannot run /no/probe to try the plugin out; install infranetes-probe beside this program <- No such file or \
               directory (os error 2)",
    },
    Refusal {
        case: "no way to isolate it",
        make: |dir| (Loader::new(), spec(hello(dir)).with_isolation(Isolation::Process)),
        said: "this program runs no plugins in processes of their own; give {dir}/x.so no `isolation`",
    },
    Refusal {
        case: "no program to isolate it",
        make: |dir| {
            let loader = Loader::new().with_helper(Helper::new("/no/helper"));
            (loader, spec(hello(dir)).with_isolation(Isolation::Process))
        },
        said: "cannot run /no/helper as the process of a plugin <- No such file or directory (os error 2)",
    },
    // Its start.
    Refusal {
        case: "a field that is missing",
        make: |dir| (Loader::new(), spec(hello(dir)).with_config_json("{}")),
        said: "the provider bad ({dir}/x.so) failed to start <- the provider's configuration ([config]) is wrong <- missing \
               field `network`",
    },
    Refusal {
        case: "a field too many",
        make: |dir| {
            let config = r#"{"network":"n","nettwork":"x"}"#;
            (Loader::new(), spec(hello(dir)).with_config_json(config))
        },
        said: "the provider bad ({dir}/x.so) failed to start <- the provider's configuration ([config]) is wrong <- unknown \
               field `nettwork`, expected `network`",
    },
    Refusal {
        case: "a field of another type",
        make: |dir| (Loader::new(), spec(hello(dir)).with_config_json(r#"{"network":7}"#)),
        said: "the provider bad ({dir}/x.so) failed to start <- the provider's configuration ([config]) is wrong <- invalid \
               type: integer `7`, expected a string",
    },
    Refusal {
        case: "a start that fails",
        make: |_| starting(r#"{"start":"error"}"#),
        said: "the provider bad ({trouble}) failed to start <- the cloud does not know us <- 401",
    },
    Refusal {
        case: "a start that fails, in a process of its own",
        make: |_| {
            let (_, spec) = starting(r#"{"start":"error"}"#);
            (loader(), spec.with_isolation(Isolation::Process))
        },
        said: "the provider bad ({trouble}) failed to start <- the cloud does not know us <- 401",
    },
    Refusal {
        case: "a start that panics",
        make: |_| starting(r#"{"start":"panic"}"#),
        said: "the provider bad ({trouble}) failed to start <- plugin/start panicked: start went wrong",
    },
    Refusal {
        case: "a start that asks for an unknown secret",
        make: |_| starting(r#"{"start":"secret","secret":"unknown"}"#),
        said: "the provider bad ({trouble}) failed to start <- no secret named \"unknown\"",
    },
    Refusal {
        case: "a start that hangs",
        make: |_| starting(r#"{"start":"hang"}"#),
        said: "the provider bad ({trouble}) did not start within 0.7 s; its log says what it waits for",
    },
    Refusal {
        case: "a start that blocks its thread",
        make: |_| starting(r#"{"start":"block"}"#),
        said: "the provider bad ({trouble}) did not start within 0.7 s; its log says what it waits for",
    },
];

#[tokio::test]
async fn each_refusal_names_the_file_what_was_expected_what_was_found_and_what_to_do() {
    let mut wrong = Vec::new();
    for Refusal { case, make, said } in REFUSALS {
        let directory = tempfile::tempdir().expect("a directory");
        let (loader, spec) = make(directory.path());
        let expected = fill_in(said, directory.path(), &spec.path);
        let found = match loader.load(spec).await {
            Ok(_) => "it was loaded".to_owned(),
            Err(error) => chain(&error),
        };
        if found != expected {
            wrong.push(format!("{case}:\n  expected {expected}\n  found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_somebody_else_owns_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = hello(directory.path());
    std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
    let error = Loader::new().load(spec(path.clone())).await.expect_err("it is nobody's");
    let path = path.display();
    let expected = format!(
        "{path} is owned by uid 65534; it must belong to root or to the user of this process: `chown root {path}`"
    );
    assert_eq!(chain(&error), expected);
}

#[tokio::test]
async fn a_signature_of_a_stranger_is_refused_with_its_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = hello(directory.path());
    let digest = vet(&path, None).expect("vetted").digest().expect("a digest");
    let stranger = key();
    let path = signed(path, &stranger.sign(&digest).to_string());
    let error = trusting(&key()).load(spec(path.clone())).await.expect_err("not trusted");
    let expected = format!(
        "the signature of {} is not good; install the file with the signature that belongs to it <- it was made with {}, \
         which is none of the trusted keys",
        path.display(),
        stranger.public()
    );
    assert_eq!(chain(&error), expected);
}

#[tokio::test]
async fn a_sticky_directory_and_the_right_digest_are_fine() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = in_open_directory(directory.path(), linked);
    let inner = path.parent().expect("a directory");
    // There others may add, but not replace what is ours.
    std::fs::set_permissions(inner, PermissionsExt::from_mode(0o1777)).expect("chmod");
    let spec = spec(path.clone());
    let loaded = Loader::new().load(spec.clone()).await.expect("no digest pinned");
    assert_eq!(loaded.sha256(), None);
    let digest = vet(&path, None).expect("vetted").digest().expect("a digest");
    for right in [digest.clone(), format!("sha256:{digest}"), digest.to_uppercase()] {
        let loaded = Loader::new().load(spec.clone().with_sha256(right)).await.expect("right");
        assert_eq!(loaded.sha256(), Some(digest.as_str()));
    }
}

/// What differs from host to host, and from build to build.
fn fill_in(said: &str, dir: &Path, path: &Path) -> String {
    let digest = || vet(path, None).and_then(|vetted| vetted.digest()).unwrap_or_default();
    let mut text = said.replace("{dir}", &dir.display().to_string());
    for (name, value) in [
        ("{liar}", fixture("liar").display().to_string()),
        ("{trouble}", fixture("trouble").display().to_string()),
        (
            "{difference}",
            "the module: package infranetes-loader instead of infranetes-abi".to_owned(),
        ),
        ("{other machine}", OTHER_MACHINE.1.to_owned()),
        ("{arch}", std::env::consts::ARCH.to_owned()),
        ("{target}", infranetes_sdk::bridge::MANIFEST_TARGET.to_owned()),
        ("{sdk}", infranetes_sdk::bridge::SDK_VERSION.to_owned()),
    ] {
        text = text.replace(name, &value);
    }
    match text.contains("{digest}") {
        true => text.replace("{digest}", &digest()),
        false => text,
    }
}

fn plain(path: PathBuf) -> (Loader, PluginSpec) {
    (Loader::new(), spec(path))
}

fn spec(path: PathBuf) -> PluginSpec {
    PluginSpec::new("bad", path).with_config_json(r#"{"network":"n"}"#)
}

/// The provider that misbehaves, with little patience.
fn starting(config: &str) -> (Loader, PluginSpec) {
    let spec = PluginSpec::new("bad", fixture("trouble"))
        .with_config_json(config)
        .with_services(std::sync::Arc::new(Memory::default()));
    (Loader::new().with_start_timeout(Duration::from_millis(700)), spec)
}

fn key() -> SecretKey {
    SecretKey::generate().expect("a key")
}

fn trusting(key: &SecretKey) -> Loader {
    Loader::new().with_trusted_keys([key.public()])
}

fn signed(path: PathBuf, line: &str) -> PathBuf {
    std::fs::write(Signature::path_of(&path), line).expect("write the signature");
    path
}

fn write(dir: &Path, data: &[u8]) -> PathBuf {
    let path = dir.join("x.so");
    std::fs::write(&path, data).expect("write a file");
    path
}

fn hello(dir: &Path) -> PathBuf {
    changed(dir, |_| {})
}

fn changed(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut data = std::fs::read(fixture("hello")).expect("read the fixture");
    change(&mut data);
    write(dir, &data)
}

fn with_mode(path: PathBuf, mode: u32) -> PathBuf {
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
    path
}

fn in_open_directory(dir: &Path, fill: fn(&Path) -> PathBuf) -> PathBuf {
    let inner = dir.join("inner");
    std::fs::create_dir(&inner).expect("mkdir");
    let path = fill(&inner);
    with_mode(inner, 0o777);
    path
}

fn linked(dir: &Path) -> PathBuf {
    let path = dir.join("x.so");
    std::os::unix::fs::symlink(fixture("hello"), &path).expect("symlink");
    path
}

fn pipe(dir: &Path) -> PathBuf {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let path = dir.join("x.so");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).expect("make a pipe");
    path
}

const SYMBOL: &str = "symbol=INFRANETES_PROVIDER_V1_fixture_hello";
/// Where an ELF file says what it is, and for which hardware.
const ELF_TYPE: usize = 16;
const ELF_MACHINE: usize = 18;
/// Hardware that is not this host's.
const OTHER_MACHINE: (u8, &str) =
    if cfg!(target_arch = "x86_64") { (183, "aarch64") } else { (62, "x86_64") };
