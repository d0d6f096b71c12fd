//! The agent's key, and the two small documents that it signs itself: a request for a certificate, and a certificate that only
//! carries it.
//!
//! Both are written byte by byte (DER, ITU-T X.690), because each has one shape: a general library for certificates costs a
//! booting machine more instructions than all of its key's arithmetic. Nothing is read here.

use std::fmt;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// A P-256 key that was born here and never leaves.
#[derive(Clone)]
pub(crate) struct Key(Arc<dyn SigningKey>);

impl Key {
    /// Makes one.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| KeyError::NoRandomness)?;
        let bytes = Zeroizing::new(made.as_ref().to_vec());
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(bytes.as_slice()));
        any_ecdsa_type(&der).map(Self).map_err(KeyError::Unusable)
    }

    /// The request (PKCS#10, RFC 2986) for a certificate of this key. It names nobody: who the agent is, the node knows.
    pub(crate) fn certificate_request(&self) -> Result<Vec<u8>, KeyError> {
        let info = sequence(&[&INTEGER_0, &EMPTY_SEQUENCE, &self.public()?, &NO_ATTRIBUTES]);
        self.signed(&info)
    }

    /// A certificate (RFC 5280) for the time before there is a real one. TLS wants one to carry the key; nobody is to trust it.
    pub(crate) fn carrier(&self) -> Result<CertificateDer<'static>, KeyError> {
        let validity = sequence(&[&FIRST_TIME, &LAST_TIME]);
        let issuer = EMPTY_SEQUENCE;
        let subject = EMPTY_SEQUENCE;
        let certificate = sequence(&[
            &VERSION_3,
            &INTEGER_1,
            &ECDSA_WITH_SHA256,
            &issuer,
            &validity,
            &subject,
            &self.public()?,
        ]);
        self.signed(&certificate).map(CertificateDer::from)
    }

    /// This key with a chain for it.
    pub(crate) fn certified(&self, chain: Vec<CertificateDer<'static>>) -> CertifiedKey {
        CertifiedKey::new(chain, Arc::clone(&self.0))
    }

    /// SubjectPublicKeyInfo.
    fn public(&self) -> Result<Vec<u8>, KeyError> {
        self.0.public_key().map(|public| public.to_vec()).ok_or(KeyError::NotP256)
    }

    /// What is to be signed, how, and the signature: the outer shape of both documents.
    fn signed(&self, content: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signer = self.0.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signature =
            signer.ok_or(KeyError::NotP256)?.sign(content).map_err(KeyError::Unusable)?;
        let bits = value(BIT_STRING, &[&[0], &signature]);
        Ok(sequence(&[content, &ECDSA_WITH_SHA256, &bits]))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// Why there is no key, or nothing signed with it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The kernel gives none.
    #[error("the system gives no randomness")]
    NoRandomness,
    /// It was made, and is no good.
    #[error("the key cannot be used")]
    Unusable(#[source] rustls::Error),
    /// It is not what it was made as.
    #[error("the key is not a P-256 key")]
    NotP256,
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(SEQUENCE, parts)
}

/// Tag, length and content. Lengths below 128 have one byte; others are told by how many bytes they have.
fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut der = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => der.push(short),
        Ok(byte) => der.extend([0x81, byte]),
        // Nothing here comes near the greatest length that two bytes hold.
        Err(_) => der.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    parts.iter().for_each(|part| der.extend_from_slice(part));
    der
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const INTEGER_0: [u8; 3] = [0x02, 1, 0];
const INTEGER_1: [u8; 3] = [0x02, 1, 1];
const EMPTY_SEQUENCE: [u8; 2] = [SEQUENCE, 0];
const NO_ATTRIBUTES: [u8; 2] = [0xa0, 0];
/// `[0] INTEGER 2`: versions count from zero.
const VERSION_3: [u8; 5] = [0xa0, 3, 0x02, 1, 2];
/// The algorithm 1.2.840.10045.4.3.2.
const ECDSA_WITH_SHA256: [u8; 12] =
    [SEQUENCE, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const FIRST_TIME: [u8; 15] = *b"\x17\x0d700101000000Z";
/// What RFC 5280 says for "no end".
const LAST_TIME: [u8; 17] = *b"\x18\x0f99991231235959Z";

#[cfg(test)]
mod tests {
    use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKeyData};
    use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    #[test]
    fn a_request_is_read_and_proves_its_key() {
        let key = Key::generate().unwrap();
        let request = key.certificate_request().unwrap();
        let read = CertificateSigningRequestParams::from_der(&request.as_slice().into()).unwrap();
        assert_eq!(read.public_key.algorithm(), &PKCS_ECDSA_P256_SHA256);
        assert!(key.public().unwrap().ends_with(read.public_key.der_bytes()));
        let mut forged = request;
        *forged.last_mut().unwrap() ^= 1;
        CertificateSigningRequestParams::from_der(&forged.as_slice().into()).unwrap_err();
    }

    #[test]
    fn the_carrier_is_a_certificate_that_its_own_key_signed() {
        let key = Key::generate().unwrap();
        let carrier = key.carrier().unwrap();
        let (rest, read) = X509Certificate::from_der(&carrier).unwrap();
        assert!(rest.is_empty());
        let public = read.public_key().subject_public_key.data.as_ref();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public)
            .verify(read.tbs_certificate.as_ref(), &read.signature_value.data)
            .unwrap();
        assert!(read.validity().is_valid());
        key.certified(vec![carrier.clone()]).keys_match().unwrap();
    }

    #[test]
    fn lengths_are_written_as_der_wants_them() {
        for (length, head) in
            [(0, &[9, 0][..]), (127, &[9, 127]), (128, &[9, 0x81, 128]), (300, &[9, 0x82, 1, 44])]
        {
            let written = value(9, &[&vec![7; length]]);
            assert_eq!(written.strip_suffix(&*vec![7; length]), Some(head), "{length}");
        }
    }

    #[test]
    fn a_key_does_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", Key::generate().unwrap()), "Key(hidden)");
    }
}
