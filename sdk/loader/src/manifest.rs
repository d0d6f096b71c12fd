//! What a plugin says about itself, and whether that fits this host.

use std::fmt;
use std::path::Path;

use infranetes_sdk::bridge::abi::manifest::SYMBOL_PREFIX;
use infranetes_sdk::bridge::abi::{self, manifest::MAGIC};
use infranetes_sdk::bridge::{MANIFEST_RUSTC, MANIFEST_TARGET, SDK_VERSION};

use crate::error::LoadError;

/// The manifest of a plugin. Only `abi`, `target` and `panic` are gates; the rest is for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The provider's name.
    pub name: String,
    /// The provider's version.
    pub version: String,
    /// The version of the ABI that it speaks.
    pub abi: String,
    /// The version of the SDK that it was built with.
    pub sdk: String,
    /// The exported symbol.
    pub symbol: String,
    /// The compiler.
    pub rustc: String,
    /// The target triple.
    pub target: String,
    /// The panic strategy.
    pub panic: String,
}

/// Reads the one manifest of a section.
pub(crate) fn parse(path: &Path, section: &[u8]) -> Result<Manifest, LoadError> {
    let damaged = |what: &str| LoadError::Manifest { path: path.into(), what: what.into() };
    let text = std::str::from_utf8(section).map_err(|_| damaged("it is not text"))?;
    let mut manifests = Vec::new();
    for part in text.split('\0').filter(|part| !part.is_empty()) {
        let lines = part.strip_prefix(MAGIC).ok_or_else(|| damaged("its first line is wrong"))?;
        manifests.push(parse_lines(lines));
    }
    let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
    match manifests.as_slice() {
        [] => Err(damaged("it is empty")),
        [manifest] => Ok(manifest.clone()),
        several => Err(LoadError::SeveralProviders {
            path: path.into(),
            count: several.len(),
            names: names.join(", "),
        }),
    }
}

fn parse_lines(lines: &str) -> Manifest {
    let value = |key: &str| {
        let lines = lines.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(name, _)| *name == key).map(|(_, value)| value).next_back().unwrap_or("")
    };
    Manifest {
        name: value("name").into(),
        version: value("version").into(),
        abi: value("abi").into(),
        sdk: value("sdk").into(),
        symbol: value("symbol").into(),
        rustc: value("rustc").into(),
        target: value("target").into(),
        panic: value("panic").into(),
    }
}

impl Manifest {
    /// For a plugin that could not be looked at yet.
    pub(crate) fn of_unknown(path: &Path) -> Self {
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let unknown = || "unknown".to_owned();
        Self {
            name: name.unwrap_or_else(unknown),
            version: unknown(),
            abi: unknown(),
            sdk: unknown(),
            symbol: String::new(),
            rustc: unknown(),
            target: unknown(),
            panic: unknown(),
        }
    }

    /// For a plugin that is part of this program.
    pub(crate) fn of_linked(name: &str) -> Self {
        Self {
            name: name.into(),
            version: "linked".into(),
            abi: abi::VERSION.into(),
            sdk: SDK_VERSION.into(),
            symbol: String::new(),
            rustc: MANIFEST_RUSTC.into(),
            target: MANIFEST_TARGET.into(),
            panic: "unwind".into(),
        }
    }

    /// Refuses what this host cannot run.
    pub(crate) fn check(&self, path: &Path) -> Result<(), LoadError> {
        if major(&self.abi) != major(abi::VERSION) {
            return Err(LoadError::AbiVersion {
                path: path.into(),
                manifest: Box::new(self.clone()),
                expected: abi::VERSION.into(),
            });
        }
        if self.target != MANIFEST_TARGET {
            return Err(LoadError::Target {
                path: path.into(),
                found: self.target.clone(),
                expected: MANIFEST_TARGET.into(),
            });
        }
        if self.panic != "unwind" {
            return Err(LoadError::PanicAbort { path: path.into(), found: self.panic.clone() });
        }
        if !self.symbol.starts_with(SYMBOL_PREFIX) {
            let what = format!("its symbol {:?} does not begin with {SYMBOL_PREFIX}", self.symbol);
            return Err(LoadError::Manifest { path: path.into(), what });
        }
        Ok(())
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, version, abi, sdk, rustc, target, .. } = self;
        write!(f, "{name} {version} (ABI {abi}, sdk {sdk}, rustc {rustc}, {target})")
    }
}

/// "1" of "1.0.0".
pub(crate) fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutation::{Numbers, rounds};

    fn parse_text(text: &str) -> Result<Manifest, LoadError> {
        parse(Path::new("x.so"), text.as_bytes())
    }

    #[test]
    fn unknown_keys_and_padding_are_skipped() {
        let text = format!("\0\0{MAGIC}abi=1.0.0\nfuture=yes\nname=x\n\n\0\0\0");
        let manifest = parse_text(&text).expect("one manifest");
        assert_eq!((manifest.abi.as_str(), manifest.name.as_str()), ("1.0.0", "x"));
    }

    #[test]
    fn damaged_manifests_are_refused_with_what_is_wrong() {
        for (text, expected) in
            [("", "it is empty"), ("\0\0", "it is empty"), ("garbage", "its first line is wrong")]
        {
            let error = parse_text(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let error = parse(Path::new("x.so"), &[0xff, 0xfe]).expect_err("no text").to_string();
        assert!(error.contains("it is not text"), "{error}");
    }

    #[test]
    fn two_manifests_are_two_providers() {
        let text = format!("{MAGIC}name=a\n\0{MAGIC}name=b\n\0");
        let error = parse_text(&text).expect_err("two").to_string();
        let expected = "x.so holds 2 providers (a, b); one file is one provider: keep export_provider! out of libraries that other \
                        plugins link";
        assert_eq!(error, expected);
    }

    #[test]
    fn any_bytes_are_a_manifest_or_a_refusal() {
        let good = format!("{MAGIC}abi=1.0.0\nname=x\nsymbol=INFRANETES_PROVIDER_V1_x\n\0");
        let mut numbers = Numbers::new();
        for _ in 0..rounds(20_000) {
            let bytes = numbers.mutate(good.as_bytes());
            if let Ok(manifest) = parse(Path::new("x.so"), &bytes) {
                // What may be loaded says so itself.
                let _ = manifest.check(Path::new("x.so"));
                assert!(manifest.to_string().len() < 10_000);
            }
        }
    }
}
