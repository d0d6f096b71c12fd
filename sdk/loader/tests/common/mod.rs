//! What the loader's tests share: the fixtures that cargo built from `examples/`, and a host that remembers.

#![expect(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use infranetes_loader::isolation::{Helper, Isolation};
use infranetes_loader::{LoadError, LoadedPlugin, Loader, PluginSpec};
use infranetes_sdk::{HostServices, LogLevel, ProviderError, Result, Secret, async_trait};

/// A plugin that cargo built from `examples/`; or, to try plugins of another compiler, SDK or profile with this loader,
/// one in the directory that `INFRANETES_FIXTURES` names.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let file = format!("libfixture_{name}.so");
    if let Some(directory) = std::env::var_os("INFRANETES_FIXTURES") {
        return Path::new(&directory).join(file);
    }
    let test = std::env::current_exe().expect("the path of this test");
    let target = test.parent().and_then(Path::parent).expect("target directory");
    let built = target.join("examples").join(file);
    // `cargo test --test NAME` runs without building examples.
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("run by cargo");
    let source = format!("{package}/examples/fixture_{name}.rs");
    let changed = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
    let fresh = changed(&built) >= changed(Path::new(&source)) && built.exists();
    assert!(fresh, "{built:?} is missing or old: run `cargo test -p infranetes-loader`");
    built
}

/// A copy of a fixture, changed, with the right owner and mode.
pub(crate) fn patched(directory: &Path, name: &str, from: &str, to: &str) -> PathBuf {
    assert_eq!(from.len(), to.len(), "a patch must not move anything");
    let mut data = std::fs::read(fixture("hello")).expect("read the fixture");
    let places: Vec<usize> = data
        .windows(from.len())
        .enumerate()
        .filter_map(|(place, window)| (window == from.as_bytes()).then_some(place))
        .collect();
    assert!(!places.is_empty(), "{from:?} is not in the fixture");
    for place in places {
        data[place..place + to.len()].copy_from_slice(to.as_bytes());
    }
    let path = directory.join(name);
    std::fs::write(&path, data).expect("write the copy");
    path
}

/// Loads the plugin that misbehaves.
pub(crate) async fn trouble(config: &str) -> (LoadedPlugin, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    let plugin = load_trouble(config, memory.clone()).await.expect("the fixture starts");
    (plugin, memory)
}

/// As [`trouble`], with the host given and the result as it is.
pub(crate) async fn load_trouble(
    config: &str,
    memory: Arc<Memory>,
) -> std::result::Result<LoadedPlugin, LoadError> {
    let spec = PluginSpec::new("t0", fixture(misbehaving()))
        .with_config_json(config)
        .with_isolation(isolation())
        .with_services(memory);
    loader().with_start_timeout(Duration::from_millis(700)).load(spec).await
}

/// A loader that can run plugins in processes of their own.
pub(crate) fn loader() -> Loader {
    let helper = Helper::new(env!("CARGO_BIN_EXE_infranetes-probe")).with_argument("--serve");
    Loader::new().with_helper(helper)
}

/// Tests in `allocators` have a plugin whose allocator is not the host's.
fn misbehaving() -> &'static str {
    if module_path!().starts_with("allocators") { "tagged" } else { "trouble" }
}

/// Tests in files whose names begin with `isolated` have each plugin in a process of its own.
pub(crate) fn isolation() -> Isolation {
    match module_path!().starts_with("isolated") {
        true => Isolation::Process,
        false => Isolation::None,
    }
}

/// Host services that remember what they were told.
#[derive(Default)]
pub(crate) struct Memory {
    lines: Mutex<Vec<(LogLevel, String, String)>>,
    samples: Mutex<Vec<String>>,
}

impl Memory {
    /// How often a metric was told.
    pub(crate) fn samples(&self, name: &str) -> usize {
        self.samples.lock().expect("not poisoned").iter().filter(|sample| *sample == name).count()
    }

    /// Waits until a metric was told.
    pub(crate) async fn wait_for_sample(&self, name: &str) {
        wait_until(&format!("the metric {name}"), || self.samples(name) > 0).await;
    }

    /// Waits for a log line that contains a text.
    pub(crate) async fn wait_for_line(&self, level: LogLevel, text: &str) {
        wait_until(&format!("the line {text:?}"), || self.has_line(level, text)).await;
    }

    /// How many log lines there are, and bytes in the longest.
    pub(crate) fn lines(&self) -> (usize, usize) {
        let lines = self.lines.lock().expect("not poisoned");
        (lines.len(), lines.iter().map(|(_, _, message)| message.len()).max().unwrap_or_default())
    }

    /// Whether there is such a log line.
    pub(crate) fn has_line(&self, level: LogLevel, text: &str) -> bool {
        let lines = self.lines.lock().expect("not poisoned");
        lines.iter().any(|(l, _, message)| *l == level && message.contains(text))
    }
}

#[async_trait]
impl HostServices for Memory {
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        let line = (level, target.to_owned(), message.to_owned());
        self.lines.lock().expect("not poisoned").push(line);
    }

    fn metric(&self, name: &str, _value: f64) {
        assert!(name != "panic", "a host service that panics");
        self.samples.lock().expect("not poisoned").push(name.to_owned());
    }

    async fn secret(&self, name: &str) -> Result<Secret> {
        match name {
            "known" => Ok(Secret::new("12345")),
            "panics" => panic!("a host service that panics"),
            _ => Err(ProviderError::not_found(format!("no secret named {name:?}"))),
        }
    }
}

/// Waits for a state, at most ten seconds.
pub(crate) async fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !there() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(" <- ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
