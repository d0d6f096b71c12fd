//! The node's certificate authority: it signs agents' certificates and the node's own, and nobody else trusts it.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::record::{Change, Entry, RecordError, RecordStore, Table};

/// The node's CA. Made once, kept in the record; whoever has its key is the node.
pub struct NodeCa {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, DER.
pub(super) struct Certified {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl NodeCa {
    /// Makes a new one.
    pub fn generate() -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Crypto)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("infranetes node CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        valid_for(&mut params, CA_LIFE);
        let certificate = params.self_signed(&key).map_err(CaError::Crypto)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// The node's CA from its record; the first call makes it. The record is written before it signs anything.
    pub async fn load_or_create(store: &dyn RecordStore) -> Result<Self, CaError> {
        let mut kept = None;
        let mut take = |entry: Entry| {
            if entry.table == Table::Node && entry.key == KEY {
                kept = Some(entry);
            }
        };
        store.visit(&mut take).await.map_err(CaError::Record)?;
        if let Some(entry) = kept {
            return Self::from_bytes(&Zeroizing::new(entry.value));
        }
        let ca = Self::generate()?;
        let entry =
            Entry { table: Table::Node, key: KEY.to_owned(), value: ca.to_bytes().to_vec() };
        store.commit(vec![Change::Put(entry)]).await.map_err(CaError::Record)?;
        Ok(ca)
    }

    /// Everything that [`NodeCa::from_bytes`] needs, the key included: keep it where only the node can read it.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let key = self.issuer.key().serialized_der();
        let length = u32::try_from(self.certificate.len()).unwrap_or(u32::MAX);
        let parts = [&[FORMAT][..], &length.to_be_bytes(), &self.certificate, key];
        // One allocation: a vector that grows leaves its old self behind.
        let mut bytes =
            Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes
    }

    /// Reads what [`NodeCa::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CaError> {
        let (format, rest) = bytes.split_first().ok_or(CaError::Damaged)?;
        if *format != FORMAT {
            return Err(CaError::Format(*format));
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(CaError::Damaged)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| CaError::Damaged)?;
        let (certificate, key) = rest.split_at_checked(length).ok_or(CaError::Damaged)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let key = PrivatePkcs8KeyDer::from(key);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(CaError::Crypto)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Crypto)?;
        Ok(Self { certificate, issuer })
    }

    /// The CA's certificate: public.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Signs an agent's request. Nothing of it counts but the key, which the request proves to be the agent's.
    pub(super) fn sign_agent(
        &self,
        request: &[u8],
        agent_name: &str,
        life: Duration,
    ) -> Result<CertificateDer<'static>, RequestError> {
        if request.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLong);
        }
        let request = CertificateSigningRequestDer::from(request);
        let request =
            CertificateSigningRequestParams::from_der(&request).map_err(RequestError::Malformed)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(RequestError::Algorithm);
        }
        let mut params =
            CertificateParams::new([agent_name.to_owned()]).map_err(RequestError::Malformed)?;
        params.distinguished_name = named("infranetes agent");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // For a server alone: an agent must not pass for the node at another agent.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, life);
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(RequestError::Malformed)?;
        Ok(certificate.der().clone())
    }

    /// A new key and certificate for the node's own side of sessions.
    pub(super) fn issue_node(&self, life: Duration) -> Result<Certified, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Crypto)?;
        let mut params =
            CertificateParams::new(["node.infranetes".to_owned()]).map_err(CaError::Crypto)?;
        params.distinguished_name = named("infranetes node");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, life);
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Crypto)?;
        Ok(Certified {
            certificate: certificate.der().clone(),
            key: Zeroizing::new(key.serialize_der()),
        })
    }
}

impl fmt::Debug for NodeCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCa(hidden)")
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From a little before now, because clocks of machines are never quite the node's.
fn valid_for(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The record failed.
    #[error("the node's CA could not be kept")]
    Record(#[source] RecordError),
    /// What was kept is none.
    #[error("what the record keeps as the node's CA is damaged")]
    Damaged,
    /// Written by a newer version.
    #[error("the node's CA has format {0}; this version reads {FORMAT}")]
    Format(u8),
    /// Key or certificate failed.
    #[error("the node's CA cannot be used")]
    Crypto(#[source] rcgen::Error),
}

/// Why a request for a certificate was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("it is longer than any request of an agent")]
    TooLong,
    #[error("it is not for a P-256 key")]
    Algorithm,
    #[error("it cannot be read or does not prove its key")]
    Malformed(#[source] rcgen::Error),
}

/// Key of the CA in the node's table.
const KEY: &str = "ca";
const FORMAT: u8 = 1;
const REQUEST_BYTES_MAX: usize = 4096;
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_ca_is_the_same_ca() {
        let ca = NodeCa::generate().unwrap();
        let again = NodeCa::from_bytes(&ca.to_bytes()).unwrap();
        assert_eq!(ca.certificate(), again.certificate());
        assert_eq!(ca.to_bytes(), again.to_bytes());
    }

    #[test]
    fn what_is_no_ca_is_refused() {
        let bytes = NodeCa::generate().unwrap().to_bytes();
        assert!(matches!(NodeCa::from_bytes(&[]), Err(CaError::Damaged)));
        assert!(matches!(NodeCa::from_bytes(&[9, 0, 0]), Err(CaError::Format(9))));
        assert!(matches!(NodeCa::from_bytes(&bytes[..40]), Err(CaError::Damaged)));
        assert!(matches!(NodeCa::from_bytes(&bytes[..bytes.len() - 1]), Err(CaError::Crypto(_))));
    }

    #[test]
    fn only_a_request_that_proves_its_key_is_signed() {
        let ca = NodeCa::generate().unwrap();
        let life = Duration::from_secs(60);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let mut bytes = request.der().to_vec();
        assert!(ca.sign_agent(&bytes, "a.agent.infranetes", life).is_ok());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(matches!(
            ca.sign_agent(&bytes, "a.agent.infranetes", life),
            Err(RequestError::Malformed(_))
        ));
        assert!(matches!(
            ca.sign_agent(&[0; REQUEST_BYTES_MAX + 1], "a", life),
            Err(RequestError::TooLong)
        ));
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(matches!(
            ca.sign_agent(request.der(), "a.agent.infranetes", life),
            Err(RequestError::Algorithm)
        ));
    }

    #[test]
    fn the_key_does_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", NodeCa::generate().unwrap()), "NodeCa(hidden)");
    }
}
