//! Which of an index's images suits the machines.

use std::fmt;

/// An operating system on an architecture, in the words of the OCI image format (Go's names).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`, `windows`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`; where an architecture has variants.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on `architecture`.
    pub fn linux(architecture: impl Into<String>) -> Platform {
        Platform { os: "linux".to_owned(), architecture: architecture.into(), variant: None }
    }

    /// What this program was built for.
    pub fn of_this_node() -> Platform {
        Platform::linux(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        })
    }

    /// How well `offered` runs on this platform; `None` if it does not. More is better.
    ///
    /// An exact variant is best; then none given, which means the architecture's baseline; then, for 32-bit
    /// ARM, the highest older variant, because newer cores run older code.
    pub(crate) fn suits(&self, offered: &Platform) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let wanted = self.variant.as_deref().or(baseline(&self.architecture));
        let offered = offered.variant.as_deref().filter(|variant| !variant.is_empty());
        match (wanted, offered) {
            (wanted, offered) if wanted == offered => Some(u8::MAX),
            (_, None) => Some(u8::MAX - 1),
            (Some(wanted), Some(offered)) if self.architecture == "arm" => {
                let (wanted, offered) = (arm_level(wanted)?, arm_level(offered)?);
                (offered <= wanted).then_some(offered)
            }
            _ => None,
        }
    }
}

fn baseline(architecture: &str) -> Option<&'static str> {
    match architecture {
        "arm64" => Some("v8"),
        "arm" => Some("v7"),
        _ => None,
    }
}

fn arm_level(variant: &str) -> Option<u8> {
    variant.strip_prefix('v')?.parse().ok().filter(|level| *level < 100)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let cases: [(&str, &[&str], Option<&str>); 9] = [
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["linux/arm64", "windows/amd64", "unknown/unknown"], None),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some("linux/amd64")),
            ("linux/arm64", &["linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/arm64/v8", &["linux/arm64"], Some("linux/arm64")),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6"], Some("linux/arm/v6")),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/arm", &["linux/arm/v7", "linux/arm/v6"], Some("linux/arm/v7")),
        ];
        for (wanted, offered, expected) in cases {
            let wanted = platform(wanted);
            let best = offered
                .iter()
                .filter_map(|text| Some((wanted.suits(&platform(text))?, *text)))
                .max_by_key(|(score, _)| *score)
                .map(|(_, text)| text);
            assert_eq!(best, expected, "{wanted} of {offered:?}");
        }
    }
}
