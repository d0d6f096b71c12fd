//! Links of a daemon that serves them over TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::host_of;

/// A certificate that signed itself, for a server on loopback, and a client that trusts it alone.
pub struct Identity {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
    connector: TlsConnector,
}

impl Identity {
    /// Makes one, with its files in a directory.
    pub fn make(dir: &Path) -> Result<Identity> {
        let names = vec!["127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names)?;
        let (certificate, key) = (dir.join("server.pem"), dir.join("server-key.pem"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        let mut trusted = RootCertStore::empty();
        trusted.add(made.cert.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        Ok(Identity { certificate, key, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Connects to a link's server.
    pub async fn connect(&self, url: &str) -> Result<TlsStream<TcpStream>> {
        let host = host_of(url)?;
        let (name, _) = host.rsplit_once(':').context("a link has a port")?;
        let stream = TcpStream::connect(host).await?;
        Ok(self.connector.connect(ServerName::try_from(name.to_owned())?, stream).await?)
    }
}
