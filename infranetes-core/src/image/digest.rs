//! Content digests: what a blob is named by, and the check that it is what its name says.

use std::fmt;
use std::str::FromStr;

use ring::digest as hash;

/// The digest of some content, `sha256:…` or `sha512:…`; parsed once, so that it is safe in paths and URLs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// An image's id: the digest of its configuration, the same whichever registry it came from.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(Digest);

/// A text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is sha256: with 64, or sha512: with 128 lower-case hexadecimal digits")]
pub struct ParseDigestError;

/// Digests content as it arrives.
#[derive(Clone)]
pub(crate) struct Hasher {
    algorithm: Algorithm,
    context: hash::Context,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Digest {
    /// The SHA-256 of `content`.
    pub fn of(content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content);
        hasher.finish()
    }

    /// The digest of `content` by the algorithm that this digest uses.
    pub(crate) fn same_kind_of(&self, content: &[u8]) -> Digest {
        let mut hasher = self.hasher();
        hasher.update(content);
        hasher.finish()
    }

    /// Starts to digest content that should have this digest.
    pub(crate) fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm)
    }

    /// A file name that holds the whole digest.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    /// The digest that [`Digest::file_name`] made `name` from.
    pub(crate) fn from_file_name(name: &str) -> Option<Digest> {
        let (algorithm, hex) = name.split_once('-')?;
        format!("{algorithm}:{hex}").parse().ok()
    }
}

impl ImageId {
    /// The id of the image whose configuration has this digest.
    pub fn new(config: Digest) -> ImageId {
        ImageId(config)
    }

    /// The digest of the image's configuration.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Hasher {
        Hasher { algorithm, context: hash::Context::new(algorithm.implementation()) }
    }

    pub(crate) fn update(&mut self, content: &[u8]) {
        self.context.update(content);
    }

    pub(crate) fn finish(self) -> Digest {
        let hex = hex::encode(self.context.finish().as_ref()).into();
        Digest { algorithm: self.algorithm, hex }
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn implementation(self) -> &'static hash::Algorithm {
        match self {
            Algorithm::Sha256 => &hash::SHA256,
            Algorithm::Sha512 => &hash::SHA512,
        }
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        let (name, hex) = text.split_once(':').ok_or(ParseDigestError)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(ParseDigestError),
        };
        let lower_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !lower_hex || hex.len() != algorithm.implementation().output_len() * 2 {
            return Err(ParseDigestError);
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ImageId {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<ImageId, ParseDigestError> {
        text.parse().map(ImageId)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_parsed_whole_or_refused() {
        let good = Digest::of(b"hello").to_string();
        assert_eq!(good, "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        let long = format!("sha512:{}", "a".repeat(128));
        let parsed: Digest = long.parse().unwrap();
        assert_eq!(Digest::from_file_name(&parsed.file_name()), Some(parsed));
        let upper = good.replace('a', "A");
        let bad = ["", "sha256:", "sha256:abc", "md5:00", &good[..70], &upper, "sha256:../../etc"];
        for text in bad {
            assert_eq!(text.parse::<Digest>(), Err(ParseDigestError), "{text}");
        }
    }
}
