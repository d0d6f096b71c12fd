//! Who this agent is: a key that never leaves, a certificate, and until it has one, a token that works once.
//!
//! ```text
//!  Invited(token) ── Complete on the connection that proved itself ──► Enrolled ── rotation ──► Enrolled
//! ```
//!
//! A rotation may give the agent another name: so it has nothing in common any more with what is in a checkpoint of its machine.
//!
//! Both proofs of an enrolment cover the TLS exporter of their connection, so that a proof is worth nothing on any other
//! connection, and whoever sits in the middle of two connections can prove itself on neither.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use infranetes_agent_protocol::{
    AGENT_PROOF_PREFIX, MEETING_PROTOCOL, NODE_PROOF_PREFIX, SESSION_PROTOCOL,
};
use ring::{digest, hmac};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeroize::Zeroizing;

use crate::invitation::Invitation;
use crate::key::{Key, KeyError};
use crate::times::BootTimes;

/// The agent's identity; one for the life of the process.
#[derive(Debug)]
pub struct Identity {
    /// Changes where the old one is in a checkpoint.
    name: RwLock<ServerName<'static>>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    /// The first key: it opens the enrolment's connection and gets the first certificate.
    key: Key,
    current: RwLock<Arc<CertifiedKey>>,
    state: Mutex<State>,
    times: Arc<BootTimes>,
}

/// Keying material of one TLS connection.
pub type Channel = [u8; 32];

/// What `Begin` answers: the request for a certificate, and the proof that goes with it.
pub struct Begun {
    /// PKCS#10, DER.
    pub certificate_request: Vec<u8>,
    /// Proves the request to the node.
    pub proof: Vec<u8>,
    /// The key of the request, for [`Identity::complete`].
    pub key: PendingKey,
}

/// A key without a certificate yet.
pub struct PendingKey(Key);

impl Identity {
    /// Takes an invitation up: makes the first key and a certificate that only carries it.
    pub fn new(invitation: Invitation, times: Arc<BootTimes>) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        roots.add(invitation.ca).map_err(IdentityError::Ca)?;
        let provider = Arc::new(provider());
        let key = Key::generate()?;
        let current = Arc::new(key.certified(vec![key.carrier()?]));
        Ok(Self {
            name: RwLock::new(invitation.agent_name),
            roots: Arc::new(roots),
            provider,
            key,
            current: RwLock::new(current),
            state: Mutex::new(State::Invited { token: invitation.token }),
            times,
        })
    }

    /// Whether enrolment is over.
    pub fn is_enrolled(&self) -> bool {
        matches!(*self.state(), State::Enrolled)
    }

    /// The settings for the first connection: TLS 1.3 with a certificate of our own making. The node proves itself in it.
    pub(crate) fn meeting_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, IdentityError> {
        let config = self.config()?.with_no_client_auth();
        Ok(self.finished(config.with_cert_resolver(self.current()), MEETING_PROTOCOL))
    }

    /// The settings for sessions: TLS 1.3 with a client certificate of the node's CA.
    pub(crate) fn session_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, IdentityError> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|cause| IdentityError::Verifier(Box::new(cause)))?;
        let config = self.config()?.with_client_cert_verifier(verifier);
        Ok(self.finished(config.with_cert_resolver(self.current()), SESSION_PROTOCOL))
    }

    fn config(&self) -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, IdentityError> {
        ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|cause| IdentityError::Verifier(Box::new(cause)))
    }

    /// No resumption: a resumed session would outlive the certificate that opened it.
    fn finished(&self, mut config: ServerConfig, protocol: &[u8]) -> Arc<ServerConfig> {
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    fn current(self: &Arc<Self>) -> Arc<Current> {
        Arc::new(Current(Arc::clone(self)))
    }

    /// Begins an enrolment: checks that the node knows the token, and proves that the agent does.
    pub fn begin(&self, channel: &Channel, node_proof: &[u8]) -> Result<Begun, IdentityError> {
        let request = self.key.certificate_request()?;
        let state = self.state();
        let State::Invited { token } = &*state else { return Err(IdentityError::AlreadyEnrolled) };
        let mac = hmac::Key::new(hmac::HMAC_SHA256, token);
        let expected = [NODE_PROOF_PREFIX, channel].concat();
        hmac::verify(&mac, &expected, node_proof).map_err(|_| IdentityError::Proof)?;
        let hash = digest::digest(&digest::SHA256, &request);
        let own = [AGENT_PROOF_PREFIX, channel, hash.as_ref()].concat();
        let proof = hmac::sign(&mac, &own).as_ref().to_vec();
        Ok(Begun { certificate_request: request, proof, key: PendingKey(self.key.clone()) })
    }

    /// Ends the enrolment with the certificate: forgets the token. What fails before that changes nothing.
    pub fn complete(&self, key: &PendingKey, chain: Vec<Vec<u8>>) -> Result<(), IdentityError> {
        let certified = self.check_chain(key, chain, &self.name())?;
        let mut state = self.state();
        if matches!(*state, State::Enrolled) {
            return Err(IdentityError::AlreadyEnrolled);
        }
        // Dropping the token overwrites it.
        *state = State::Enrolled;
        self.install(certified);
        self.times.enrolled();
        Ok(())
    }

    /// A new key and the request for its certificate.
    pub fn begin_rotation(&self) -> Result<(Vec<u8>, PendingKey), IdentityError> {
        let key = Key::generate()?;
        Ok((key.certificate_request()?, PendingKey(key)))
    }

    /// Uses a new certificate from the next handshake on, under another name if one is given.
    pub fn complete_rotation(
        &self,
        key: &PendingKey,
        chain: Vec<Vec<u8>>,
        name: Option<ServerName<'static>>,
    ) -> Result<(), IdentityError> {
        let name = name.unwrap_or_else(|| self.name());
        let certified = self.check_chain(key, chain, &name)?;
        *self.name.write().unwrap_or_else(PoisonError::into_inner) = name;
        self.install(certified);
        Ok(())
    }

    fn name(&self) -> ServerName<'static> {
        self.name.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A certificate counts when it carries our key and this name and comes from the node's CA.
    fn check_chain(
        &self,
        key: &PendingKey,
        chain: Vec<Vec<u8>>,
        name: &ServerName<'static>,
    ) -> Result<Arc<CertifiedKey>, IdentityError> {
        if chain.len() > CHAIN_MAX {
            return Err(IdentityError::Chain("it is too long"));
        }
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let Some((leaf, rest)) = chain.split_first() else {
            return Err(IdentityError::Chain("it is empty"));
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|cause| IdentityError::Verifier(Box::new(cause)))?;
        verifier
            .verify_server_cert(leaf, rest, name, &[], UnixTime::now())
            .map_err(IdentityError::Certificate)?;
        let certified = key.0.certified(chain);
        certified.keys_match().map_err(IdentityError::Certificate)?;
        Ok(Arc::new(certified))
    }

    fn install(&self, certified: Arc<CertifiedKey>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certified;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum State {
    Invited { token: Zeroizing<Vec<u8>> },
    Enrolled,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invited { .. } => "Invited",
            Self::Enrolled => "Enrolled",
        })
    }
}

/// Serves whichever certificate is the newest.
#[derive(Debug)]
struct Current(Arc<Identity>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Few algorithms, and those first that share code with what the agent does anyway (P-256, SHA-256): on an emulated CPU, code costs
/// most the first time it runs.
fn provider() -> CryptoProvider {
    use rustls::crypto::ring::{cipher_suite as suites, default_provider, kx_group as groups};
    CryptoProvider {
        cipher_suites: vec![
            suites::TLS13_AES_128_GCM_SHA256,
            suites::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![groups::SECP256R1, groups::X25519],
        ..default_provider()
    }
}

/// Why an identity could not be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The token was used.
    #[error("this agent is enrolled; a token works once")]
    AlreadyEnrolled,
    /// The peer does not know the token, or proved it for another connection.
    #[error("the proof does not fit the token and this connection")]
    Proof,
    /// The chain cannot be one.
    #[error("the certificate chain cannot be used: {0}")]
    Chain(&'static str),
    /// The certificate is not for this key and name, or not from the node.
    #[error("the certificate is not valid for this agent")]
    Certificate(#[source] rustls::Error),
    /// The CA in the user-data is none.
    #[error("the node's CA certificate cannot be used")]
    Ca(#[source] rustls::Error),
    /// No key could be made.
    #[error("no key could be made")]
    Key(#[from] KeyError),
    /// The TLS settings contradict each other.
    #[error("TLS cannot be set up")]
    Verifier(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The node's chains have one certificate; an intermediate or two may come.
const CHAIN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer,
        KeyPair, PublicKeyData,
    };

    const TOKEN: [u8; 32] = [7; 32];
    const NAME: &str = "a1.agent.infranetes";
    const HERE: Channel = [1; 32];
    const ELSEWHERE: Channel = [2; 32];

    struct Node {
        ca: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Node {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = params.self_signed(&key).unwrap().der().clone();
            Self { ca, issuer: Issuer::new(params, key) }
        }

        fn invite(&self) -> Identity {
            let invitation = Invitation {
                agent_name: ServerName::try_from(NAME).unwrap(),
                ca: self.ca.clone(),
                token: Zeroizing::new(TOKEN.to_vec()),
                listen: None,
            };
            Identity::new(invitation, Arc::new(BootTimes::starting())).unwrap()
        }

        fn sign(&self, name: &str, key: &impl PublicKeyData) -> Vec<Vec<u8>> {
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            vec![params.signed_by(key, &self.issuer).unwrap().der().to_vec()]
        }
    }

    fn proof(token: &[u8], prefix: &[u8], channel: &Channel) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, token);
        hmac::sign(&key, &[prefix, channel].concat()).as_ref().to_vec()
    }

    #[test]
    fn a_proof_counts_on_its_own_connection_alone() {
        let identity = Node::new().invite();
        let good = proof(&TOKEN, NODE_PROOF_PREFIX, &HERE);
        assert!(identity.begin(&HERE, &good).is_ok());
        let bad = [
            (ELSEWHERE, good.clone()),
            (HERE, proof(&[8; 32], NODE_PROOF_PREFIX, &HERE)),
            // The agent's own words, sent back.
            (HERE, proof(&TOKEN, AGENT_PROOF_PREFIX, &HERE)),
            (HERE, good[..31].to_vec()),
            (HERE, Vec::new()),
        ];
        for (channel, proof) in bad {
            let refused = identity.begin(&channel, &proof);
            assert!(matches!(refused, Err(IdentityError::Proof)));
        }
        assert!(identity.begin(&HERE, &good).is_ok(), "wrong proofs do not lock the node out");
    }

    #[test]
    fn the_agents_proof_covers_its_request_and_its_connection() {
        let identity = Node::new().invite();
        let begun = identity.begin(&HERE, &proof(&TOKEN, NODE_PROOF_PREFIX, &HERE)).unwrap();
        let hash = digest::digest(&digest::SHA256, &begun.certificate_request);
        let covered = [AGENT_PROOF_PREFIX, &HERE, hash.as_ref()].concat();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &TOKEN);
        assert!(hmac::verify(&key, &covered, &begun.proof).is_ok());
    }

    #[test]
    fn a_rotation_can_give_another_name_and_only_the_one_that_it_says() {
        let node = Node::new();
        let identity = node.invite();
        let other = || ServerName::try_from("a9.agent.infranetes").ok();
        let begin = || {
            let (request, key) = identity.begin_rotation().unwrap();
            let request = request.as_slice().into();
            let public = CertificateSigningRequestParams::from_der(&request).unwrap().public_key;
            (key, public)
        };
        let (key, public) = begin();
        let for_the_old = node.sign(NAME, &public);
        assert!(identity.complete_rotation(&key, for_the_old, other()).is_err());
        let for_the_new = node.sign("a9.agent.infranetes", &public);
        assert!(identity.complete_rotation(&key, for_the_new.clone(), None).is_err());
        identity.complete_rotation(&key, for_the_new, other()).unwrap();
        // From then on that is its name.
        let (key, public) = begin();
        assert!(identity.complete_rotation(&key, node.sign(NAME, &public), None).is_err());
        let again = node.sign("a9.agent.infranetes", &public);
        identity.complete_rotation(&key, again, None).unwrap();
    }

    #[test]
    fn only_a_certificate_for_this_key_and_name_from_this_node_counts() {
        let (node, stranger) = (Node::new(), Node::new());
        let identity = node.invite();
        let begin = || identity.begin(&HERE, &proof(&TOKEN, NODE_PROOF_PREFIX, &HERE));
        let begun = begin().unwrap();
        let request = begun.certificate_request.as_slice().into();
        let key = CertificateSigningRequestParams::from_der(&request).unwrap().public_key;
        let other = KeyPair::generate().unwrap();
        let bad = [
            stranger.sign(NAME, &key),
            node.sign("a2.agent.infranetes", &key),
            node.sign(NAME, &other),
            vec![b"no certificate".to_vec()],
            Vec::new(),
            vec![Vec::new(); CHAIN_MAX + 1],
        ];
        for chain in bad {
            assert!(identity.complete(&begun.key, chain).is_err());
            assert!(!identity.is_enrolled());
        }
        identity.complete(&begun.key, node.sign(NAME, &key)).unwrap();
        assert!(identity.is_enrolled());
        let again = identity.complete(&begun.key, node.sign(NAME, &key));
        assert!(matches!(again, Err(IdentityError::AlreadyEnrolled)));
        assert!(matches!(begin(), Err(IdentityError::AlreadyEnrolled)));
    }
}
