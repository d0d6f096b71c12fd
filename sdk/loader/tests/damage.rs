//! Damaged files: vetting never panics whatever it reads, and a child process takes the crash of what vetting cannot see.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{chain, fixture, loader};
use infranetes_loader::isolation::Isolation;
use infranetes_loader::{LoadError, Loader, PluginSpec};
use infranetes_sdk::CallContext;
use infranetes_sdk::pod::GetRequest;

fn probe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_infranetes-probe"))
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

#[test]
fn vetting_survives_any_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    let good = std::fs::read(fixture("hello")).expect("read the fixture");
    let path = directory.path().join("damaged.so");
    let mut numbers = Numbers(1);
    let (mut refused, rounds) = (0, 100);
    for round in 0..rounds {
        let mut data = good.clone();
        if round % 2 == 0 {
            data.truncate(numbers.below(good.len()));
        } else {
            // The file header and the last bytes, where the section headers are, decide how the rest is read.
            for _ in 0..8 {
                data[numbers.below(64)] ^= 1 << numbers.below(8);
                let tail = data.len() - 1 - numbers.below(2048);
                data[tail] ^= 1 << numbers.below(8);
            }
        }
        std::fs::write(&path, data).expect("write the copy");
        refused += usize::from(infranetes_loader::vet(&path, None).is_err());
    }
    assert!(refused >= rounds / 2, "only {refused} of {rounds} damaged files were refused");
}

#[test]
fn the_probe_tells_good_from_bad() {
    let run = |arguments: &[&str]| {
        let output = Command::new(probe()).args(arguments).output().expect("run the probe");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).expect("text"))
    };
    let hello = fixture("hello");
    let (code, text) = run(&[hello.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("infranetes-loader") && text.contains("ABI 1.0.0"), "{text}");

    let liar = fixture("liar");
    let (code, text) = run(&[liar.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("its ABI does not match this host"), "{text}");

    // Standard input is no plugin here.
    assert_eq!(run(&["--opened", hello.to_str().expect("UTF-8")]).0, Some(1));
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&["--sha256"]).0, Some(2));
}

#[tokio::test]
async fn a_file_that_crashes_its_loader_crashes_only_the_probe() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("crash.so");
    std::fs::write(&path, with_broken_code(&fixture("hello"))).expect("write the copy");
    let loader = Loader::new().with_probe(probe());
    let error = loader.load(PluginSpec::new("bad", &path)).await.expect_err("it is damaged");
    assert!(matches!(error, LoadError::Probe { .. }), "{}", chain(&error));
    assert!(error.to_string().contains("signal"), "{error}");

    let spec = PluginSpec::new("hello", fixture("hello")).with_config_json(r#"{"network":"n"}"#);
    let plugin = loader.load(spec.clone()).await.expect("a good file passes");
    let pods = plugin.pods().expect("machines");
    let machine = pods.get(CallContext::new("r1"), GetRequest { id: "hello".into() }).await;
    assert_eq!(machine.expect("an answer").zone, "n");

    let nowhere = Loader::new().with_probe("/no/such/probe").load(spec).await;
    let error = nowhere.expect_err("there is no such program");
    assert!(matches!(error, LoadError::NoProbe { .. }), "{}", chain(&error));
}

/// Flips anywhere, cuts, and damage where it hurts most: whatever happens, it happens to a child.
#[tokio::test]
async fn mutated_files_only_ever_end_a_child() {
    let directory = tempfile::tempdir().expect("a directory");
    let good = std::fs::read(fixture("hello")).expect("read the fixture");
    let mut numbers = Numbers(7);
    let (mut loaded, mut refused, mut crashed) = (0, 0, 0);
    for round in 0..40 {
        let mut data = good.clone();
        for _ in 0..1 << (round % 12) {
            let place = match round % 3 {
                0 => numbers.below(data.len()),
                1 => numbers.below(4096),
                _ => numbers.below(data.len() / 4),
            };
            data[place] ^= 1 << numbers.below(8);
        }
        let path = directory.path().join(format!("{round}.so"));
        std::fs::write(&path, data).expect("write the copy");
        let spec = PluginSpec::new("mutant", &path)
            .with_config_json(r#"{"network":"n"}"#)
            .with_isolation(Isolation::Process);
        let loader = loader().with_start_timeout(Duration::from_secs(5));
        match loader.load(spec).await {
            Err(LoadError::HelperEnded { .. } | LoadError::StartTimeout { .. }) => crashed += 1,
            Err(_) => refused += 1,
            Ok(plugin) => {
                loaded += 1;
                let Some(pods) = plugin.pods() else { continue };
                let context = CallContext::new("r1").with_timeout(Duration::from_secs(5));
                // An answer, or an error; that it comes is all.
                let _ = pods.get(context, GetRequest { id: "hello".into() }).await;
            }
        }
        std::fs::remove_file(&path).expect("remove the copy");
    }
    println!("{loaded} loaded, {refused} were refused, {crashed} crashed their process");
    assert!(refused + crashed > 0, "no damage was noticed");
}

/// All instructions are replaced by ones that trap, so that the first that runs inside `dlopen` ends the process.
fn with_broken_code(path: &Path) -> Vec<u8> {
    use object::{Object, ObjectSection};

    let mut data = std::fs::read(path).expect("read the fixture");
    let ranges: Vec<(u64, u64)> = {
        let file = object::File::parse(&*data).expect("an ELF file");
        let code = file.sections().filter(|section| section.kind() == object::SectionKind::Text);
        code.filter_map(|section| section.file_range()).collect()
    };
    assert!(!ranges.is_empty());
    for (start, length) in ranges {
        let (start, length) = (start as usize, length as usize);
        // On x86-64 this is `hlt`, and no valid instruction anywhere else we build for.
        data[start..start + length].fill(0xf4);
    }
    data
}
