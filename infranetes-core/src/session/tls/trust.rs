//! Whom the node trusts on a connection, and how it proves itself there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use infranetes_agent_protocol::{MEETING_PROTOCOL, SESSION_PROTOCOL};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use super::ca::NodeCa;
use crate::session::SessionError;

/// The node's CA, and the certificate by which agents know the node.
pub(super) struct NodeTrust {
    pub(super) ca: NodeCa,
    /// How long an agent's certificate lives.
    pub(super) life: Duration,
    provider: Arc<CryptoProvider>,
    own: Mutex<Option<OwnCertificate>>,
}

struct OwnCertificate {
    key: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl NodeTrust {
    pub(super) fn new(ca: NodeCa, life: Duration) -> Self {
        let provider = Arc::new(provider());
        Self { ca, life, provider, own: Mutex::new(None) }
    }

    /// Settings for an agent that has a certificate of ours.
    pub(super) fn enrolled(&self) -> Result<ClientConfig, SessionError> {
        self.client(self.verifier()?, &[SESSION_PROTOCOL])
    }

    /// Settings for an agent that has none yet, and where it shows whether it has one after all.
    pub(super) fn enrolling(&self) -> Result<(ClientConfig, Arc<Anybody>), SessionError> {
        let anybody = Arc::new(Anybody {
            ours: self.verifier()?,
            provider: Arc::clone(&self.provider),
            is_ours: AtomicBool::new(false),
        });
        let verifier = Arc::clone(&anybody) as Arc<dyn ServerCertVerifier>;
        Ok((self.client(verifier, &[MEETING_PROTOCOL, SESSION_PROTOCOL])?, anybody))
    }

    fn verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, SessionError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate().clone()).map_err(|cause| local("trust its CA", cause))?;
        let builder = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        );
        Ok(builder.build().map_err(|cause| local("trust its CA", cause))?)
    }

    fn client(
        &self,
        verifier: Arc<dyn ServerCertVerifier>,
        protocols: &[&[u8]],
    ) -> Result<ClientConfig, SessionError> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|cause| local("set TLS up", cause))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.own()?)));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would outlive the certificates that opened it.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// The node's own certificate; a new one in time.
    fn own(&self) -> Result<Arc<CertifiedKey>, SessionError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = own.as_ref().filter(|own| SystemTime::now() < own.renew_at) {
            return Ok(Arc::clone(&own.key));
        }
        let certified =
            self.ca.issue_node(OWN_LIFE).map_err(|cause| local("make its certificate", cause))?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.key.as_slice()));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&der)
            .map_err(|cause| local("use its certificate", cause))?;
        let key = Arc::new(CertifiedKey::new(vec![certified.certificate], key));
        let renew_at = SystemTime::now() + OWN_LIFE / 2;
        *own = Some(OwnCertificate { key: Arc::clone(&key), renew_at });
        Ok(key)
    }
}

/// Accepts every certificate: who it is, the proofs of the enrolment tell. What is checked is that the peer has the key of
/// what it shows.
#[derive(Debug)]
pub(super) struct Anybody {
    ours: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
    is_ours: AtomicBool,
}

impl Anybody {
    /// Whether the peer has a certificate of ours for the name that was dialled: it enrolled before.
    pub(super) fn is_ours(&self) -> bool {
        self.is_ours.load(Ordering::Acquire)
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ours = self.ours.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        self.is_ours.store(ours.is_ok(), Ordering::Release);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What agents prefer goes first: a key share for another group would cost a round trip.
fn provider() -> CryptoProvider {
    use rustls::crypto::ring::{cipher_suite as suites, default_provider, kx_group as groups};
    CryptoProvider {
        cipher_suites: vec![
            suites::TLS13_AES_128_GCM_SHA256,
            suites::TLS13_CHACHA20_POLY1305_SHA256,
            suites::TLS13_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![groups::SECP256R1, groups::X25519],
        ..default_provider()
    }
}

pub(super) fn local(
    what: &str,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SessionError {
    SessionError::Local { problem: format!("it could not {what}"), cause: cause.into() }
}

/// Life of the node's own certificate. It is made new at half of it, and open sessions outlive it.
const OWN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
