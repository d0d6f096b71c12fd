//! References to images: `name`, `host/name:tag`, `host/name@digest`, with the defaults that everybody expects.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// A parsed reference, complete: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is not a reference to an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// The registry's host, with its port if the reference has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path on the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one. It decides over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository:tag`: what CRI calls a repo tag. A reference by digest alone has none.
    pub fn repo_tag(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}/{}:{tag}", self.registry, self.repository))
    }

    /// `registry/repository@digest`: what CRI calls a repo digest.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|why| {
            // Bounded, because it ends up in errors and logs.
            let text = text.chars().take(MAX_REPOSITORY).collect();
            ReferenceError { text, why }
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.len() > 2 * MAX_REPOSITORY + MAX_TAG {
        return Err("it is too long");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(digest.parse().map_err(|_| "what follows the @ is not a digest")?))
        }
        None => (text, None),
    };
    // A colon after the last slash starts a tag; before it, it can only be a port.
    let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_start..].find(':') {
        Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is empty or has characters that a tag cannot have");
    }
    let (registry, repository) = split_registry(name);
    if !is_host(&registry) {
        return Err("the registry is not a host name with an optional port");
    }
    if repository.is_empty() {
        return Err("the name is empty");
    }
    if repository.len() > MAX_REPOSITORY || !repository.split('/').all(is_component) {
        return Err("the name has characters that a name cannot have (it is lower case)");
    }
    let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
    Ok(Reference { registry, repository, tag, digest })
}

/// A first part with a dot or a colon, or `localhost`, is a registry; any other is part of the name.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first != first.to_ascii_lowercase() =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        "index.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if registry == DEFAULT_REGISTRY && !repository.is_empty() && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|first| word(*first))
        && bytes.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-'))
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("v6", port.strip_prefix(':').map_or(Some(port).filter(|p| !p.is_empty()), Some))
            }
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let good_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let good_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    name.split('.').all(good_label) && port.is_none_or(good_port)
}

/// Lower-case words, joined by one dot, one or two underscores, or dashes.
fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_in_words = bytes.first().is_some_and(|byte| word(*byte))
        && bytes.last().is_some_and(|byte| word(*byte));
    ends_in_words
        && bytes
            .split(|byte| word(*byte))
            .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || all_dashes(joint))
}

fn all_dashes(joint: &[u8]) -> bool {
    joint.iter().all(|byte| *byte == b'-')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = text.parse::<Reference>().map(|reference| reference.to_string());
        assert_eq!(got.as_deref(), Ok(expected), "{text}");
        // The complete form stands for itself.
        assert_eq!(expected.parse::<Reference>().unwrap().to_string(), expected);
    }

    #[test]
    fn short_references_are_completed() {
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("team/app", "docker.io/team/app:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest");
        check("index.docker.io/busybox", "docker.io/library/busybox:latest");
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/app:v1", "localhost:5000/app:v1");
        check("reg.example/a/b/c:T_1.2-x", "reg.example/a/b/c:T_1.2-x");
        check("[::1]:5000/app", "[::1]:5000/app:latest");
        check("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest");
        check("REG/app", "REG/app:latest");
        let digest = format!("sha256:{HEX}");
        check(&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}"));
        check(&format!("r.io/a:1@{digest}"), &format!("r.io/a:1@{digest}"));
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        let cases = [
            ("", "name is empty"),
            ("UPPER", "lower case"),
            ("a..b", "lower case"),
            ("a/", "lower case"),
            ("a/../b", "lower case"),
            ("a___b", "lower case"),
            ("a:", "tag"),
            ("a:b c", "tag"),
            ("a@sha256:12", "digest"),
            ("-x.y/a", "registry"),
            ("x.y:port/a", "registry"),
            ("x.y:99999/a", "registry"),
            ("reg.example/", "name is empty"),
            ("http://reg.example/a", "registry"),
        ];
        for (text, why) in cases {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.why.contains(why), "{text}: {error}");
        }
        assert!("a/".repeat(400).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_what_parses_is_stable(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let whole = reference.to_string();
                prop_assert_eq!(whole.parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
