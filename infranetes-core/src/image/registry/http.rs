//! HTTP connections: made when a pull needs them, shared by the pulls that run, and gone with the last one.
//!
//! The certificates of the system take memory and time to load, which a daemon that pulls nothing should
//! not spend; hence nothing here lives longer than the pulls.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::super::store::{blocking, lock};

/// The connections of the pulls that run now.
pub(in super::super) struct HttpClients {
    connect_timeout: Duration,
    plain: Client<HttpConnector, Full<Bytes>>,
    /// By the file of certificates that are trusted besides the system's.
    tls: Mutex<HashMap<Option<PathBuf>, TlsClient>>,
}

type TlsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;
type BoxError = Arc<dyn Error + Send + Sync>;

/// Certificates cannot be read.
#[derive(Debug, thiserror::Error)]
enum CertificatesError {
    #[error("the file {} has no certificates that can be read", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("the system has no certificates to trust: install its package of CA certificates")]
    None,
}

/// How long an idle connection is kept for the next request of the same pull.
const IDLE_CONNECTION: Duration = Duration::from_secs(20);

impl HttpClients {
    pub(in super::super) fn new(connect_timeout: Duration) -> HttpClients {
        let plain = pooled().build(connector(connect_timeout));
        HttpClients { connect_timeout, plain, tls: Mutex::default() }
    }

    /// Makes sure that `uri` can be connected to.
    pub(super) async fn prepare(&self, uri: &Uri, ca_file: Option<&Path>) -> Result<(), BoxError> {
        let key = ca_file.map(Path::to_owned);
        if uri.scheme_str() != Some("https") || lock(&self.tls).contains_key(&key) {
            return Ok(());
        }
        let ca_file = key.clone();
        let config = blocking(move || tls_config(ca_file.as_deref())).await;
        let config = config.map_err(|error: io::Error| -> BoxError { Arc::new(error) })??;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .wrap_connector(connector(self.connect_timeout));
        lock(&self.tls).insert(key, pooled().build(connector));
        Ok(())
    }

    /// Sends a request whose URI is [prepared](HttpClients::prepare).
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        ca_file: Option<&Path>,
    ) -> Result<Response<Incoming>, ClientError> {
        if request.uri().scheme_str() != Some("https") {
            return self.plain.request(request).await;
        }
        let client = lock(&self.tls).get(&ca_file.map(Path::to_owned)).cloned();
        match client {
            Some(client) => client.request(request).await,
            // Answers with the error of a scheme that it does not speak.
            None => self.plain.request(request).await,
        }
    }
}

/// Whether the error says that the other side's certificate is not trusted: no retry helps then.
pub(super) fn is_about_certificates(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return matches!(tls, rustls::Error::InvalidCertificate(_));
        }
        // An io::Error hides what it wraps from `source`.
        let wrapped = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        next = match wrapped {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}

fn pooled() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(4);
    builder
}

fn connector(timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(timeout));
    connector.set_nodelay(true);
    // Which schemes are wanted is decided where requests are made.
    connector.enforce_http(false);
    connector
}

fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, BoxError> {
    let roots = trusted(ca_file).map_err(|error| -> BoxError { Arc::new(error) })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| -> BoxError { Arc::new(error) })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn trusted(ca_file: Option<&Path>) -> Result<RootCertStore, CertificatesError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let unreadable = |source| CertificatesError::File { path: path.to_owned(), source };
        let certificates = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(unreadable(rustls_pki_types::pem::Error::NoItemsFound));
        }
    }
    if roots.is_empty() { Err(CertificatesError::None) } else { Ok(roots) }
}
