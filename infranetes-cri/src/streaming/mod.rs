//! What kubectl's exec, attach and port-forward are connected to: an HTTP server of this node whose links work once.
//!
//! ```text
//!  kubelet ── Exec (CRI) ──► service ── a link ──► table             kubelet ◄── http://127.0.0.1:PORT/exec/TOKEN
//!  kubelet ── HTTP, upgraded to SPDY or WebSocket ──► http ──► over_spdy, over_websocket ──► program, ports ──► engine
//! ```
//!
//! # What it promises
//! - A link is unguessable, works once, and for a minute. That is all that protects it: the server listens on loopback, or
//!   speaks TLS.
//! - A slow client slows down its own stream and nothing else; one that goes away ends what it began: its command is killed
//!   with all that it started, its connection to a port is closed.
//! - Everything that a client can make wait here is bounded: connections, links, streams, bytes, idle time.
//!
//! # What it does not do
//! It knows no pods and no users: the kubelet asked who may do this before it asked for the link.

mod channels;
mod http;
mod links;
mod over_spdy;
mod over_websocket;
mod ports;
mod program;
mod resize;
pub mod spdy;
mod status;
mod tunnel;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use infranetes_core::engine::Engine;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub use self::links::{Links, Outputs, Target, TooManyLinks};

/// How the server is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingConfig {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key, PEM; `None` speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// A stream on which nothing moves for so long ends.
    pub idle_timeout: Duration,
}

/// Where the server's identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A server that listens.
pub struct StreamingServer {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    links: Links,
    idle_timeout: Duration,
}

/// The server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// The address cannot be used.
    #[error("the streaming server cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A PEM file cannot be used.
    #[error("{} holds no {what} for the streaming server", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate and key do not make a server.
    #[error("the streaming server's certificate and key cannot be used")]
    Identity(#[source] rustls::Error),
}

impl StreamingServer {
    /// Listens.
    pub async fn bind(config: &StreamingConfig) -> Result<Self, StreamingError> {
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let address = config.listen;
        let failed = |source| StreamingError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let links = Links::new(format!("{scheme}://{bound}"));
        Ok(Self { listener, tls, links, idle_timeout: config.idle_timeout })
    }

    /// Makes links to it.
    pub fn links(&self) -> Links {
        self.links.clone()
    }

    /// Serves until the future is dropped, which cuts off all streams.
    pub async fn serve(self, engine: Engine) {
        http::serve(self.listener, self.tls, self.links, engine, self.idle_timeout).await;
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, StreamingError> {
    let pem = |path: &Path, what: &'static str| {
        let path = path.to_owned();
        move |source| StreamingError::Pem { path, what, source }
    };
    let certificates = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem(&files.certificate, "certificates"))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(pem(&files.key, "private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(StreamingError::Identity)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(StreamingError::Identity)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
