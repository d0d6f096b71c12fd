//! How the store is set up: where it lies, which registries it talks to and how, and every limit it keeps.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::credentials::Credentials;
use super::platform::Platform;
use super::reference::Reference;

/// What an [`ImageStore`](super::ImageStore) is opened with.
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// The directory of the store; made if it is missing. It belongs to one store at a time.
    pub root: PathBuf,
    /// The registries that need more than the defaults.
    pub registries: RegistriesConfig,
    /// What the machines run: the image of an index that is pulled.
    pub platform: Platform,
    /// Images that are reported as pinned, so that nobody collects them.
    pub pinned: Vec<Reference>,
    /// The limits of pulls.
    pub limits: Limits,
}

/// The registries that need more than the defaults.
#[derive(Debug, Clone, Default)]
pub struct RegistriesConfig {
    /// By the registry's host as it stands in references: `docker.io`, `reg.example:5000`.
    pub hosts: BTreeMap<String, RegistryConfig>,
    /// Tried, in this order, before every registry that has no mirrors of its own.
    pub default_mirrors: Vec<Endpoint>,
}

/// One registry.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Tried, in this order, before the registry itself.
    pub mirrors: Vec<Endpoint>,
    /// How the registry itself is reached; by default over HTTPS at its own name.
    pub itself: Option<Endpoint>,
}

/// One server that speaks the distribution protocol.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub(crate) base: Uri,
    /// A file of PEM certificates that this endpoint's chain may end in, besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whom this endpoint is told about.
    pub credentials: EndpointCredentials,
}

/// What an endpoint may be given to prove who asks.
#[derive(Debug, Clone, Default)]
pub enum EndpointCredentials {
    /// Nothing: pulls from it are anonymous. The default of a mirror.
    #[default]
    Anonymous,
    /// The credentials of the pull. The default of the registry itself; for a mirror only if one trusts it
    /// with the passwords of the registry that it mirrors.
    FromPull,
    /// Always these.
    Own(Credentials),
}

/// The text of an endpoint is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a registry endpoint: {why}")]
pub struct EndpointError {
    url: String,
    why: &'static str,
}

/// The limits of pulls. The defaults suit a node; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Images pulled at once; more wait.
    pub parallel_pulls: usize,
    /// Layers downloaded at once, over all pulls.
    pub parallel_layers: usize,
    /// Time to connect.
    pub connect: Duration,
    /// Time in which the registry must answer or send the next bytes.
    pub idle: Duration,
    /// Time of one pull as a whole.
    pub whole: Duration,
    /// Requests for one thing to one endpoint, the first included, before the pull fails.
    pub attempts: u32,
    /// Wait before the second attempt; doubled for each one after it.
    pub first_backoff: Duration,
    /// Longest wait between attempts, and longest `Retry-After` that is waited for.
    pub max_backoff: Duration,
    /// Bytes of a manifest, an index or an image configuration.
    pub document_bytes: u64,
    /// Layers of one image.
    pub layers: usize,
    /// Bytes of one layer.
    pub layer_bytes: u64,
    /// How long what an unfinished pull left behind is kept, so that the next one continues from it.
    pub keep_unfinished: Duration,
}

impl ImageStoreConfig {
    /// A store in `root` for machines like this node, with default limits and no special registries.
    pub fn new(root: impl Into<PathBuf>) -> ImageStoreConfig {
        ImageStoreConfig {
            root: root.into(),
            registries: RegistriesConfig::default(),
            platform: Platform::of_this_node(),
            pinned: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl RegistriesConfig {
    /// The endpoints for images of the registry `host`, in the order in which they are tried. Never empty:
    /// the registry itself is the last.
    pub(crate) fn endpoints(&self, host: &str) -> Result<Vec<Endpoint>, EndpointError> {
        let configured = self.hosts.get(host);
        let mirrors = match configured {
            Some(registry) if !registry.mirrors.is_empty() => &registry.mirrors,
            _ => &self.default_mirrors,
        };
        let mut endpoints = mirrors.clone();
        endpoints.push(match configured.and_then(|registry| registry.itself.clone()) {
            Some(itself) => itself,
            None => Endpoint::of_registry(host)?,
        });
        Ok(endpoints)
    }
}

impl Endpoint {
    /// An endpoint at `url`: `https://host[:port][/prefix]`, or `http://…` where plain HTTP is wanted, which
    /// is never used otherwise. A prefix goes before the repository, as proxying registries want it:
    /// `https://proxy.example/hub` asks for `https://proxy.example/v2/hub/library/busybox/…`.
    ///
    /// It is given no credentials until `credentials` says so.
    pub fn new(url: &str) -> Result<Endpoint, EndpointError> {
        let refused = |why| EndpointError { url: without_user(url), why };
        let base: Uri = url.parse().map_err(|_| refused("it is not a URL"))?;
        match base.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(refused("it must start with https:// or http://")),
        }
        match base.authority() {
            Some(authority) if authority.as_str().contains('@') => {
                return Err(refused("credentials do not belong into the URL"));
            }
            Some(authority) if !authority.host().is_empty() => {}
            _ => return Err(refused("it names no host")),
        }
        if base.query().is_some() {
            return Err(refused("it has a query"));
        }
        Ok(Endpoint { base, ca_file: None, credentials: EndpointCredentials::Anonymous })
    }

    /// The registry itself, by default.
    fn of_registry(host: &str) -> Result<Endpoint, EndpointError> {
        // The hub's images are named by one host and served by another.
        let server = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let endpoint = Endpoint::new(&format!("https://{server}"))?;
        Ok(Endpoint { credentials: EndpointCredentials::FromPull, ..endpoint })
    }

    /// Host and port, as errors name it.
    pub(crate) fn name(&self) -> &str {
        self.base.authority().map_or("", |authority| authority.as_str())
    }
}

fn without_user(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://…{}", &url[..scheme], &url[at..]),
        _ => url.to_owned(),
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            parallel_pulls: 5,
            parallel_layers: 6,
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            whole: Duration::from_secs(60 * 60),
            attempts: 5,
            first_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(30),
            document_bytes: 4 << 20,
            layers: 512,
            layer_bytes: 64 << 30,
            keep_unfinished: Duration::from_secs(60 * 60),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_tried_mirrors_first_and_the_registry_last() {
        let mut config = RegistriesConfig::default();
        let own = RegistryConfig {
            mirrors: vec![Endpoint::new("http://127.0.0.1:5000").unwrap()],
            itself: None,
        };
        config.hosts.insert("docker.io".into(), own);
        config.default_mirrors.push(Endpoint::new("https://cache.example/all").unwrap());
        let names = |host: &str| -> Vec<String> {
            config.endpoints(host).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("docker.io"), ["127.0.0.1:5000", "registry-1.docker.io"]);
        assert_eq!(names("reg.example"), ["cache.example", "reg.example"]);
    }

    #[test]
    fn a_bad_endpoint_is_refused_and_never_shows_a_password() {
        let cases = [
            ("reg.example", "https://"),
            ("ftp://reg.example", "https://"),
            ("https://", "not a URL"),
            ("https://reg.example?x=1", "query"),
            ("https://ann:sesame@reg.example", "credentials"),
        ];
        for (url, why) in cases {
            let error = Endpoint::new(url).unwrap_err();
            assert!(error.why.contains(why), "{url}: {error}");
            assert!(!error.to_string().contains("sesame"), "{error}");
        }
    }
}
