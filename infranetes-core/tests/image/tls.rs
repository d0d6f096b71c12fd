//! Over HTTPS: nothing ever falls back to plain HTTP.

use std::path::PathBuf;
use std::sync::Arc;

use infranetes_core::image::{Credentials, Endpoint, PullFailure as F};
use rustls_pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::node::Node;
use crate::registry::{Act, Image, PASSWORD, Registry, USER};

/// A registry over HTTPS, and how it is reached.
async fn secure(dir: &TempDir) -> (Registry, Endpoint) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let ca_file: PathBuf = dir.path().join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let registry = Registry::with_tls(Some(TlsAcceptor::from(Arc::new(config)))).await;
    let mut endpoint = registry.endpoint();
    endpoint.ca_file = Some(ca_file);
    (registry, endpoint)
}

#[tokio::test]
async fn a_trusted_registry_serves_and_is_never_left_for_plain_http() {
    let dir = TempDir::new().unwrap();
    let (registry, endpoint) = secure(&dir).await;
    let plain = Registry::start().await;
    let image = Image::new("secure", &[10_000]);
    for registry in [&registry, &plain] {
        image.publish(registry, "team/app", "1");
    }
    let node = Node::with_endpoints(endpoint, vec![]).await;
    let ann = || Some(Credentials::basic(USER, PASSWORD));

    let target = format!("{}/v2/team/app/manifests/1", plain.url());
    registry.script("manifests", &[Act::Redirect(target)]);
    let error = node.pull_as(ann()).await.unwrap_err();
    assert!(matches!(error.failure(), F::Protocol { .. }), "{error:?}");
    assert!(error.to_string().contains("from HTTPS to HTTP"), "{error}");
    registry.heal();

    registry.close(plain.give_tokens_to(None));
    let error = node.pull_as(ann()).await.unwrap_err();
    assert!(error.to_string().contains("token service is not reached over HTTPS"), "{error}");
    assert!(plain.asked("").is_empty(), "not even asked");

    registry.close(registry.give_tokens_to(Some(USER)));
    node.pull_as(ann()).await.unwrap();
    node.expect_whole(&image).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_ends_the_pull_at_once() {
    let dir = TempDir::new().unwrap();
    let (registry, mut endpoint) = secure(&dir).await;
    endpoint.ca_file = None;
    let node = Node::with_endpoints(endpoint.clone(), vec![]).await;
    let error = node.pull().await.unwrap_err();
    assert!(matches!(error.failure(), F::Unreachable { attempts: 1, .. }), "{error:?}");
    assert!(registry.asked("").is_empty());

    endpoint.ca_file = Some(dir.path().join("no such file"));
    let node = Node::with_endpoints(endpoint, vec![]).await;
    let error = node.pull().await.unwrap_err();
    assert!(matches!(error.failure(), F::Certificates { .. }), "{error:?}");
}
