//! Digests of images and layers.

use std::fmt::{self, Write as _};
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written "sha256:HEX".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest([u8; 32]);

/// A text that is no digest of ours.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a digest of the form sha256:HEX with 64 digits")]
pub(crate) struct NotADigest(String);

impl Digest {
    pub(crate) fn parse(text: &str) -> Result<Self, NotADigest> {
        let refuse = || NotADigest(text.chars().take(80).collect());
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii());
        let hex = hex.ok_or_else(refuse)?;
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let pair = &hex[2 * index..2 * index + 2];
            if pair.bytes().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }

    /// Names a directory. Twelve bytes keep the options of a mount with 128 layers within one page, and nobody finds two
    /// layers that share them.
    pub(crate) fn short(&self) -> String {
        hex(&self.0[..12])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Passes a reader on, and knows the digest and the length of what went through.
pub(crate) struct Digesting<R> {
    input: R,
    hasher: Sha256,
    length: u64,
}

impl<R: Read> Digesting<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, hasher: Sha256::new(), length: 0 }
    }

    /// Of all that was read so far.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest(self.hasher.finalize().into()), self.length)
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.length += count as u64;
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
