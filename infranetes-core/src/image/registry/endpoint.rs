//! One registry endpoint, asked for one repository: authentication, redirects, and statuses made into errors.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::super::config::{Endpoint, Limits};
use super::super::credentials::Credentials;
use super::super::pull_error::PullFailure;
use super::attempt::{Attempt, Transient};
use super::auth::{Challenge, Identity, TokenRequest, read_token};
use super::http::{HttpClients, is_about_certificates};

/// One endpoint and one repository on it. Lives as long as one pull.
pub(in super::super) struct RegistryEndpoint {
    endpoint: Endpoint,
    /// The repository with the endpoint's prefix before it.
    repository: String,
    identity: Identity,
    clients: Arc<HttpClients>,
    limits: Limits,
}

const USER_AGENT: &str = concat!("infranetes/", env!("CARGO_PKG_VERSION"));
const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN_BYTES: u64 = 1 << 20;

impl RegistryEndpoint {
    pub(in super::super) fn new(
        endpoint: Endpoint,
        repository: &str,
        credentials: Option<Credentials>,
        clients: Arc<HttpClients>,
        limits: Limits,
    ) -> RegistryEndpoint {
        let prefix = endpoint.base.path().trim_matches('/');
        let separator = if prefix.is_empty() { "" } else { "/" };
        let repository = format!("{prefix}{separator}{repository}");
        let identity = Identity::new(credentials);
        RegistryEndpoint { endpoint, repository, identity, clients, limits }
    }

    /// Host and port, as errors name it.
    pub(in super::super) fn name(&self) -> &str {
        self.endpoint.name()
    }

    /// Asks for `what` (`manifests` or `blobs`) with the name `name`; from the byte `from` on, if the
    /// registry can do that: a status of 200 instead of 206, or 416, says that it cannot.
    pub(in super::super) async fn get(
        &self,
        what: &str,
        name: &str,
        accept: Option<&'static str>,
        from: u64,
    ) -> Result<Response<Incoming>, Attempt> {
        let path = format!("/v2/{}/{what}/{name}", self.repository);
        let uri = self.uri(&path)?;
        let used = self.identity.header.lock().await.clone();
        let mut response = self.follow(&uri, accept, from, used.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let renewed = self.renew(response.headers(), used).await?;
            response = self.follow(&uri, accept, from, Some(renewed)).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => Ok(response),
            status => Err(self.refusal(self.name(), status, response.headers())),
        }
    }

    /// Sends a GET and goes where the answers point. Only the endpoint itself learns who asks.
    async fn follow(
        &self,
        first: &Uri,
        accept: Option<&'static str>,
        from: u64,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Attempt> {
        let mut uri = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(Method::GET).uri(&uri);
            if let Some(accept) = accept {
                request = request.header(header::ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = authorization.as_ref().filter(|_| same_origin(&uri, first))
            {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = self.send(request, Bytes::new()).await?;
            match redirect(&response) {
                Some(location) => uri = self.next_uri(&uri, location)?,
                None => return Ok(response),
            }
        }
        Err(self.protocol(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Where a redirect leads: never from HTTPS to plain HTTP.
    fn next_uri(&self, from: &Uri, location: &str) -> Result<Uri, Attempt> {
        let bad = || self.protocol("it redirects to what is no HTTP URL".to_owned());
        let next = if location.starts_with('/') && !location.starts_with("//") {
            let authority = from.authority().ok_or_else(bad)?;
            let scheme = from.scheme_str().ok_or_else(bad)?;
            format!("{scheme}://{authority}{location}").parse().map_err(|_| bad())?
        } else {
            location.parse::<Uri>().map_err(|_| bad())?
        };
        match (from.scheme_str(), next.scheme_str()) {
            (_, Some("https")) | (Some("http"), Some("http")) => Ok(next),
            (_, Some("http")) => Err(self.protocol("it redirects from HTTPS to HTTP".to_owned())),
            _ => Err(bad()),
        }
    }

    /// Gets a header that the registry may accept, after it did not accept `used`. Requests that run side by
    /// side and were refused with the same header get one new one.
    async fn renew(
        &self,
        headers: &HeaderMap,
        used: Option<HeaderValue>,
    ) -> Result<HeaderValue, Attempt> {
        let unauthorized = |registry: &str| {
            let given = self.identity.is_known();
            Attempt::Final(PullFailure::Unauthorized { registry: registry.to_owned(), given })
        };
        let mut current = self.identity.header.lock().await;
        if let Some(newer) = current.as_ref().filter(|newer| Some(*newer) != used.as_ref()) {
            return Ok(newer.clone());
        }
        let renewed = match Challenge::read(headers) {
            Some(Challenge::Basic) => {
                self.identity.basic().filter(|basic| Some(basic) != used.as_ref())
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let (service, scope) = (service.as_deref(), scope.as_deref());
                let request = self.identity.token_request(&realm, service, scope, &self.repository);
                match request {
                    Some(request) => Some(self.token(request).await?),
                    None => None,
                }
            }
            None => None,
        };
        current.clone_from(&renewed);
        renewed.ok_or_else(|| unauthorized(self.name()))
    }

    async fn token(&self, token: TokenRequest) -> Result<HeaderValue, Attempt> {
        let plain = token.uri.scheme_str() != Some("https");
        if plain && self.endpoint.base.scheme_str() == Some("https") {
            return Err(self.protocol("its token service is not reached over HTTPS".to_owned()));
        }
        let service = token.uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::builder().uri(&token.uri);
        if let Some(authorization) = token.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let mut body = Bytes::new();
        if let Some(form) = &token.form {
            request = request.method(Method::POST);
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            body = Bytes::copy_from_slice(form.as_bytes());
        }
        let response = self.send(request, body).await?;
        match response.status() {
            StatusCode::OK => {}
            status => return Err(self.refusal(&service, status, response.headers())),
        }
        let body = read_bounded(response, MAX_TOKEN_BYTES, self.limits.idle, &service).await?;
        read_token(&body).ok_or_else(|| {
            let why = "its token service answers without a token".to_owned();
            Attempt::Final(PullFailure::Protocol { registry: service, why })
        })
    }

    /// Sends one request and waits for the head of the answer.
    async fn send(
        &self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, Attempt> {
        let request = request.header(header::USER_AGENT, USER_AGENT).body(Full::new(body));
        let request =
            request.map_err(|_| self.protocol("it names a URL that is none".to_owned()))?;
        let ca_file = self.endpoint.ca_file.as_deref();
        self.clients.prepare(request.uri(), ca_file).await.map_err(|source| {
            PullFailure::Certificates { registry: self.name().to_owned(), source }
        })?;
        let patience = self.limits.connect + self.limits.idle;
        match timeout(patience, self.clients.send(request, ca_file)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if is_about_certificates(&error) => {
                let (registry, attempts) = (self.name().to_owned(), 1);
                let source = Arc::new(error);
                Err(PullFailure::Unreachable { registry, attempts, source }.into())
            }
            Ok(Err(error)) => Err(Attempt::Again(Transient::Unreachable(Arc::new(error)))),
            Err(_) => Err(Attempt::Again(Transient::Stalled)),
        }
    }

    fn refusal(&self, who: &str, status: StatusCode, headers: &HeaderMap) -> Attempt {
        let registry = who.to_owned();
        let retry_after = retry_after(headers);
        match status {
            StatusCode::UNAUTHORIZED => {
                PullFailure::Unauthorized { registry, given: self.identity.is_known() }.into()
            }
            StatusCode::FORBIDDEN => PullFailure::Forbidden { registry }.into(),
            StatusCode::NOT_FOUND => PullFailure::NotFound { registry }.into(),
            StatusCode::TOO_MANY_REQUESTS => Attempt::Again(Transient::Throttled { retry_after }),
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Attempt::Again(Transient::Fault { status: status.as_u16(), retry_after })
            }
            status => {
                let why = format!("it answers with the status {}", status.as_u16());
                PullFailure::Protocol { registry, why }.into()
            }
        }
    }

    fn protocol(&self, why: String) -> Attempt {
        Attempt::Final(PullFailure::Protocol { registry: self.name().to_owned(), why })
    }

    fn uri(&self, path: &str) -> Result<Uri, Attempt> {
        let mut parts = self.endpoint.base.clone().into_parts();
        parts.path_and_query = path.parse().ok();
        Uri::from_parts(parts).map_err(|_| self.protocol("its path makes no URL".to_owned()))
    }
}

/// Reads a whole body of at most `limit` bytes, which may pause for at most `idle`.
pub(in super::super) async fn read_bounded(
    response: Response<Incoming>,
    limit: u64,
    idle: Duration,
    registry: &str,
) -> Result<Bytes, Attempt> {
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    while let Some(frame) = timeout(idle, body.frame()).await.map_err(|_| Transient::Stalled)? {
        let frame = frame.map_err(|error| {
            let error: Arc<dyn Error + Send + Sync> = Arc::new(error);
            Transient::Unreachable(error)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(PullFailure::TooLarge { registry: registry.to_owned(), limit }.into());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

impl From<Transient> for Attempt {
    fn from(why: Transient) -> Attempt {
        Attempt::Again(why)
    }
}

fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        })
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    one.scheme() == other.scheme() && host(one) == host(other) && port(one) == port(other)
}

fn redirect(response: &Response<Incoming>) -> Option<&str> {
    match response.status().as_u16() {
        301 | 302 | 303 | 307 | 308 => response.headers().get(header::LOCATION)?.to_str().ok(),
        _ => None,
    }
}

/// Reads `Retry-After` in seconds; its other form, a date, needs clocks that agree and is treated as absent.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
