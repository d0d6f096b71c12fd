//! The `[streaming]` table.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Invalid;
use super::file;
use super::resolve::{Result, absolute, duration};
use crate::streaming::{StreamingConfig, TlsFiles};

pub(super) fn resolve(written: file::Streaming) -> Result<StreamingConfig> {
    let path = |key: &'static str, path: Option<PathBuf>| {
        let path = path.filter(|path| !path.as_os_str().is_empty());
        path.map(|path| absolute(&["streaming", key], path)).transpose()
    };
    let certificate = path("certificate_file", written.certificate_file)?;
    let key = path("key_file", written.key_file)?;
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(Invalid::new(
                &["streaming", "certificate_file"],
                "a certificate needs its key_file",
            ));
        }
        (None, Some(_)) => {
            return Err(Invalid::new(
                &["streaming", "key_file"],
                "a key needs its certificate_file",
            ));
        }
    };
    Ok(StreamingConfig {
        listen: listen(written.listen.as_deref().unwrap_or(LISTEN), tls.is_some())?,
        tls,
        idle_timeout: duration(
            &["streaming", "idle_timeout"],
            written.idle_timeout,
            IDLE_TIMEOUT,
            Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600),
        )?,
    })
}

/// The address stands in links, so it has to be one; and links are secrets, so it is loopback or TLS.
fn listen(text: &str, has_tls: bool) -> Result<SocketAddr> {
    let invalid = |problem: String| Invalid::new(&["streaming", "listen"], problem);
    let address: SocketAddr = text
        .parse()
        .map_err(|_| invalid(format!("{text:?} is no address; write it like {LISTEN:?}")))?;
    if address.ip().is_unspecified() {
        return Err(invalid(format!("the kubelet cannot connect to {text:?}; name one address")));
    }
    if !address.ip().is_loopback() && !has_tls {
        let problem = "is not loopback, so it needs certificate_file and key_file";
        return Err(invalid(format!("{text:?} {problem}")));
    }
    Ok(address)
}

const LISTEN: &str = "127.0.0.1:0";
const IDLE_TIMEOUT: &str = "4h";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_served_on_loopback_or_over_tls() {
        let resolve = |listen: &str, certificate: Option<&str>, key: Option<&str>| {
            resolve(file::Streaming {
                listen: Some(listen.to_owned()),
                certificate_file: certificate.map(Into::into),
                key_file: key.map(Into::into),
                idle_timeout: None,
            })
        };
        for good in ["127.0.0.1:0", "[::1]:10010"] {
            assert_eq!(resolve(good, None, None).unwrap().listen.to_string(), good);
        }
        let tls = resolve("10.0.0.1:1", Some("/c"), Some("/k")).unwrap().tls.unwrap();
        assert_eq!((tls.certificate, tls.key), ("/c".into(), "/k".into()));
        for (listen, certificate, key, said) in [
            ("10.0.0.1:1", None, None, "needs certificate_file"),
            ("0.0.0.0:1", Some("/c"), Some("/k"), "name one address"),
            ("localhost:1", None, None, "is no address"),
            ("127.0.0.1:1", Some("/c"), None, "needs its key_file"),
            ("127.0.0.1:1", None, Some("/k"), "needs its certificate_file"),
            ("127.0.0.1:1", Some("c"), Some("/k"), "absolute path"),
        ] {
            let refused = resolve(listen, certificate, key).unwrap_err();
            assert!(refused.problem.contains(said), "{refused:?}");
        }
    }
}
