//! Detached signatures: `PLUGIN.so.sig` beside the plugin says who vouches for its bytes.
//!
//! Text of one line, `ed25519:KEY SIGNATURE`, both in base64. Signed is the line `CONTEXT`, followed by the SHA-256 digest of the
//! file in hex and a line feed: no signature made for anything else can be taken for one.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustix::fs::{Mode, OFlags};

/// Somebody who may vouch for plugins.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// What signs plugins. `Debug` hides it.
pub struct SecretKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

/// A signature, and whose it says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    key: PublicKey,
    bytes: Vec<u8>,
}

/// Why keys or signatures cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The file of the signature cannot be read.
    #[error("cannot read the signature {path}; `infranetes-cri plugin sign` makes one", path = path.display())]
    Read {
        /// The signature.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no signature.
    #[error("it is no line of the form `ed25519:KEY SIGNATURE`")]
    NoSignature,
    /// It is no public key.
    #[error("{0:?} is no public key; one looks like ed25519:, followed by 44 characters of base64")]
    NoPublicKey(String),
    /// It is no secret key.
    #[error("it is no ed25519 key in PKCS#8 form, in PEM")]
    NoSecretKey,
    /// A new key cannot be made.
    #[error("the system gives no randomness for a key")]
    NoRandomness,
    /// Nobody who is trusted made it.
    #[error("it was made with {0}, which is none of the trusted keys")]
    NotTrusted(PublicKey),
    /// It was made for other bytes.
    #[error(
        "it does not belong to these bytes: the file was changed after it was signed, or the signature was"
    )]
    Wrong,
}

impl Signature {
    /// Where the signature of a plugin lies: beside it.
    pub fn path_of(plugin: &Path) -> PathBuf {
        let mut path = OsString::from(plugin);
        path.push(".sig");
        path.into()
    }

    /// Reads the signature of a plugin.
    pub fn read(plugin: &Path) -> Result<Signature, SignatureError> {
        let path = Self::path_of(plugin);
        read_small(&path).map_err(|source| SignatureError::Read { path, source })?.parse()
    }

    /// Whether one of `trusted` made it for a file with this digest; answers which.
    pub fn verify(&self, sha256: &str, trusted: &[PublicKey]) -> Result<PublicKey, SignatureError> {
        let key = trusted.iter().find(|key| **key == self.key);
        let key = key.ok_or_else(|| SignatureError::NotTrusted(self.key.clone()))?;
        UnparsedPublicKey::new(&ED25519, &key.0)
            .verify(&message(sha256), &self.bytes)
            .map_err(|_| SignatureError::Wrong)?;
        Ok(key.clone())
    }
}

impl SecretKey {
    /// A new one.
    pub fn generate() -> Result<SecretKey, SignatureError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| SignatureError::NoRandomness)?;
        Self::of(pkcs8.as_ref().to_vec())
    }

    /// Reads one in PEM, as [`SecretKey::to_pem`] and `openssl genpkey -algorithm ed25519` write it.
    pub fn from_pem(text: &str) -> Result<SecretKey, SignatureError> {
        let inside = text
            .split_once(PEM_BEGIN)
            .and_then(|(_, rest)| rest.split_once(PEM_END))
            .ok_or(SignatureError::NoSecretKey)?;
        let base64: String = inside.0.split_whitespace().collect();
        Self::of(STANDARD.decode(base64).map_err(|_| SignatureError::NoSecretKey)?)
    }

    /// The key as a file has it. Secret.
    pub fn to_pem(&self) -> String {
        let base64 = STANDARD.encode(&self.pkcs8);
        let lines: Vec<&str> = base64
            .as_bytes()
            .chunks(PEM_COLUMNS)
            .filter_map(|line| std::str::from_utf8(line).ok())
            .collect();
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", lines.join("\n"))
    }

    /// What others verify with.
    pub fn public(&self) -> PublicKey {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(key)
    }

    /// Vouches for a file with this digest.
    pub fn sign(&self, sha256: &str) -> Signature {
        let bytes = self.pair.sign(&message(sha256)).as_ref().to_vec();
        Signature { key: self.public(), bytes }
    }

    fn of(pkcs8: Vec<u8>) -> Result<SecretKey, SignatureError> {
        // OpenSSL leaves the public half out.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8)
            .map_err(|_| SignatureError::NoSecretKey)?;
        Ok(SecretKey { pair, pkcs8 })
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let bytes = text.strip_prefix(PREFIX).and_then(|base64| STANDARD.decode(base64).ok());
        let key = bytes.and_then(|bytes| bytes.try_into().ok());
        key.map(PublicKey)
            .ok_or_else(|| SignatureError::NoPublicKey(text.chars().take(80).collect()))
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, bytes) = text.trim().split_once(' ').ok_or(SignatureError::NoSignature)?;
        let key = key.parse().map_err(|_| SignatureError::NoSignature)?;
        let bytes = STANDARD.decode(bytes).map_err(|_| SignatureError::NoSignature)?;
        Ok(Signature { key, bytes })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, STANDARD.encode(&self.bytes))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

fn message(sha256: &str) -> Vec<u8> {
    format!("{CONTEXT}{sha256}\n").into_bytes()
}

/// Not blocking, because a pipe would wait for its writer; and no more than a signature may have.
fn read_small(path: &Path) -> std::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The first line of what is signed.
const CONTEXT: &str = "infranetes plugin signature 1\n";
const PREFIX: &str = "ed25519:";
const KEY_BYTES: usize = 32;
const FILE_BYTES_MAX: u64 = 4096;
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
const PEM_COLUMNS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// From RFC 8032, 7.1, test 1: seed and public key.
    const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn a_key_survives_its_file_and_one_of_openssl_is_read() {
        let key = SecretKey::generate().expect("a key");
        let again = SecretKey::from_pem(&key.to_pem()).expect("the same");
        assert_eq!(again.public(), key.public());
        assert!(!format!("{key:?}").contains(&STANDARD.encode(&key.pkcs8[16..48])));

        // As OpenSSL writes it: version 1, without the public half.
        let head = hex::decode("302e020100300506032b657004220420").expect("hex");
        let pkcs8 = [head, hex::decode(SEED).expect("hex")].concat();
        let pem = format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", STANDARD.encode(pkcs8));
        let key = SecretKey::from_pem(&pem).expect("a key of OpenSSL");
        assert_eq!(key.public().0.as_slice(), hex::decode(PUBLIC).expect("hex"));
        assert_eq!(key.public().to_string().parse::<PublicKey>().expect("a key"), key.public());
    }

    #[test]
    fn a_signature_is_good_for_one_digest_and_one_key() {
        let (key, other) =
            (SecretKey::generate().expect("a key"), SecretKey::generate().expect("a key"));
        let (digest, changed) = ("a".repeat(64), "b".repeat(64));
        let text = key.sign(&digest).to_string();
        let signature: Signature = text.parse().expect("a signature");
        let trusted = [other.public(), key.public()];
        assert_eq!(signature.verify(&digest, &trusted).expect("good"), key.public());
        let wrong = signature.verify(&changed, &trusted);
        assert!(matches!(wrong, Err(SignatureError::Wrong)));
        let stranger = signature.verify(&digest, &trusted[..1]);
        assert!(
            matches!(stranger, Err(SignatureError::NotTrusted(found)) if found == key.public())
        );
        // Another's signature under a trusted name.
        let forged = Signature { key: key.public(), ..other.sign(&digest) };
        assert!(matches!(forged.verify(&digest, &trusted), Err(SignatureError::Wrong)));
    }

    #[test]
    fn what_is_no_key_or_signature_is_refused() {
        for text in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:!"] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
            assert!(format!("{text} AAAA").parse::<Signature>().is_err(), "{text}");
            assert!(SecretKey::from_pem(text).is_err(), "{text}");
        }
        let public = SecretKey::generate().expect("a key").public();
        assert!(format!("{public} no base64").parse::<Signature>().is_err());
        assert!(SecretKey::from_pem(&format!("{PEM_BEGIN}\nAAAA\n{PEM_END}")).is_err());
    }
}
