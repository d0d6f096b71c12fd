//! Who asks: credentials to headers, and the exchange of credentials for tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Uri, header};
use http_auth::ChallengeRef;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::super::credentials::{Credentials, Proof, Secret};

/// What one endpoint is told about who asks.
pub(super) struct Identity {
    credentials: Option<Credentials>,
    /// The header that the registry accepted last, or that is to be tried first.
    pub(super) header: Mutex<Option<HeaderValue>>,
}

/// What a registry answers an unknown caller with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A password is wanted.
    Basic,
    /// A token is wanted, and is to be had here.
    Bearer { realm: Uri, service: Option<String>, scope: Option<String> },
}

/// The request for a token.
pub(super) struct TokenRequest {
    pub(super) uri: Uri,
    pub(super) authorization: Option<HeaderValue>,
    /// The form to post; a request without one is a GET.
    pub(super) form: Option<Zeroizing<String>>,
}

/// What stays as it is in a query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Identity {
    pub(super) fn new(credentials: Option<Credentials>) -> Identity {
        let first = match credentials.as_ref().map(Credentials::proof) {
            Some(Proof::RegistryToken(token)) => bearer(token.expose()),
            _ => None,
        };
        Identity { credentials, header: Mutex::new(first) }
    }

    /// Whether there is anything to prove oneself with.
    pub(super) fn is_known(&self) -> bool {
        self.credentials.is_some()
    }

    /// The header for a registry that wants a password; `None` if there is none.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Some(Proof::Basic { username, password }) = self.proof() else { return None };
        let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
        let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        sensitive(&Zeroizing::new(format!("Basic {}", *encoded)))
    }

    /// The request for a token to read `repository`. `None` if the credentials are a token already, which
    /// the registry did not accept.
    pub(super) fn token_request(
        &self,
        realm: &Uri,
        service: Option<&str>,
        scope: Option<&str>,
        repository: &str,
    ) -> Option<TokenRequest> {
        let pull = format!("repository:{repository}:pull");
        let mut fields = vec![("scope", scope.unwrap_or(&pull))];
        fields.extend(service.map(|service| ("service", service)));
        match self.proof() {
            Some(Proof::RegistryToken(_)) => None,
            Some(Proof::IdentityToken(token)) => {
                fields.push(("grant_type", "refresh_token"));
                fields.push(("client_id", "infranetes"));
                fields.push(("refresh_token", token.expose()));
                let form = Some(encode(&fields));
                Some(TokenRequest { uri: realm.clone(), authorization: None, form })
            }
            Some(Proof::Basic { .. }) | None => {
                let separator = if realm.query().is_some() { '&' } else { '?' };
                let uri = format!("{realm}{separator}{}", *encode(&fields)).parse().ok()?;
                Some(TokenRequest { uri, authorization: self.basic(), form: None })
            }
        }
    }

    fn proof(&self) -> Option<&Proof> {
        self.credentials.as_ref().map(Credentials::proof)
    }
}

impl Challenge {
    /// The challenge to answer: a token if the registry offers one, because tokens reach less far.
    pub(super) fn read(headers: &HeaderMap) -> Option<Challenge> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let offered = texts.filter_map(|text| http_auth::parse_challenges(text).ok()).flatten();
        let mut known: Vec<Challenge> = offered.filter_map(|offer| Challenge::of(&offer)).collect();
        let best = known.iter().position(|challenge| *challenge != Challenge::Basic).unwrap_or(0);
        (best < known.len()).then(|| known.swap_remove(best))
    }

    fn of(offer: &ChallengeRef<'_>) -> Option<Challenge> {
        let parameter = |name: &str| {
            let (_, value) = offer.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.to_unescaped())
        };
        if offer.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !offer.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let realm = parameter("realm")?.parse().ok()?;
        Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") })
    }
}

/// Reads the answer of a token service.
pub(super) fn read_token(body: &[u8]) -> Option<HeaderValue> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token =
        [answer.token, answer.access_token].into_iter().flatten().find(|t| !t.is_empty())?;
    bearer(Secret::from(token).expose())
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&Zeroizing::new(format!("Bearer {token}")))
}

/// A header that `Debug` does not show.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn encode(fields: &[(&str, &str)]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(value, QUERY));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::credentials::AuthFields;
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::read(&headers)
    }

    #[test]
    fn challenges_are_read_and_a_token_is_preferred() {
        let token = |scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: Uri::from_static("https://auth.example/token"),
                service: Some("registry, \"one\"".into()),
                scope: scope.map(str::to_owned),
            })
        };
        let bearer = r#"Bearer realm="https://auth.example/token",service="registry, \"one\"""#;
        let scoped = format!(r#"{bearer}, scope="repository:a/b:pull""#);
        let both = format!(r#"Basic realm="x", {bearer}"#);
        let cases = [
            (vec![], None),
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (vec![bearer], token(None)),
            (vec![scoped.as_str()], token(Some("repository:a/b:pull"))),
            (vec![both.as_str()], token(None)),
            (vec!["Basic realm=\"x\"", bearer], token(None)),
            (vec!["Negotiate"], None),
            (vec!["Bearer service=\"no realm\""], None),
            (vec!["%%%,,,==="], None),
        ];
        for (values, expected) in cases {
            assert_eq!(challenge(&values), expected, "{values:?}");
        }
    }

    #[test]
    fn each_proof_asks_for_its_token_in_its_way() {
        let realm = Uri::from_static("https://auth.example/token?x=1");
        let request = |fields: AuthFields| {
            let identity = Identity::new(Credentials::from_auth(fields).unwrap());
            identity.token_request(&realm, Some("s&t"), None, "a/b")
        };
        let anonymous = request(AuthFields::default()).unwrap();
        assert_eq!(
            anonymous.uri.to_string(),
            "https://auth.example/token?x=1&scope=repository%3Aa%2Fb%3Apull&service=s%26t"
        );
        assert!(anonymous.authorization.is_none() && anonymous.form.is_none());

        let fields =
            AuthFields { username: "ann".into(), password: "pw".into(), ..Default::default() };
        let basic = request(fields).unwrap();
        assert_eq!(basic.authorization.unwrap().to_str().unwrap(), "Basic YW5uOnB3");

        let fields = AuthFields { identity_token: "i d".into(), ..Default::default() };
        let refresh = request(fields).unwrap();
        assert_eq!(refresh.uri, realm);
        assert!(refresh.authorization.is_none());
        assert!(refresh.form.unwrap().ends_with("&refresh_token=i%20d"));

        let fields = AuthFields { registry_token: "t".into(), ..Default::default() };
        assert!(request(fields).is_none());
    }

    #[test]
    fn a_token_is_read_by_either_name_and_not_shown() {
        let cases: [(&[u8], Option<&str>); 6] = [
            (br#"{"token": "t"}"#, Some("Bearer t")),
            (br#"{"access_token": "a", "expires_in": 300}"#, Some("Bearer a")),
            (br#"{"token": "", "access_token": "a"}"#, Some("Bearer a")),
            (br#"{"token": "a\nb"}"#, None),
            (b"{}", None),
            (b"<html>", None),
        ];
        for (body, expected) in cases {
            let header = read_token(body);
            assert_eq!(header.as_ref().map(|h| h.to_str().unwrap()), expected);
            assert!(!format!("{header:?}").contains("Bearer"));
        }
    }
}
