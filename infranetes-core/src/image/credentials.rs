//! What a pull proves itself with to a registry. Never shown: not in logs, not in `Debug`, not in errors.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Credentials for one registry, in one of the forms of CRI's `AuthConfig`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    server: Option<String>,
    proof: Proof,
}

/// CRI's `AuthConfig`, field by field; an empty field is an absent one.
#[derive(Clone, Default)]
pub struct AuthFields {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: Secret,
    /// `username:password` in base64; used when `username` is empty.
    pub auth: Secret,
    /// The registry that these credentials are for: a host name, or a URL of it.
    pub server_address: String,
    /// A refresh token: exchanged at the registry's token service.
    pub identity_token: Secret,
    /// A bearer token: sent to the registry as it is.
    pub registry_token: Secret,
}

/// The fields of an `AuthConfig` make no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The `auth` field is not base64 of `username:password`.
    #[error("the auth field of the pull credentials is not base64 of username:password")]
    Auth,
    /// A password without a user.
    #[error("the pull credentials have a password and no username")]
    NoUsername,
}

/// A text that shows itself to nobody and is wiped from memory when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    Basic { username: String, password: Secret },
    IdentityToken(Secret),
    RegistryToken(Secret),
}

impl Credentials {
    /// A user with a password.
    pub fn basic(username: impl Into<String>, password: impl Into<Secret>) -> Credentials {
        let proof = Proof::Basic { username: username.into(), password: password.into() };
        Credentials { server: None, proof }
    }

    /// The same credentials, given to the registry `server` and to no other.
    pub fn only_for(mut self, server: impl Into<String>) -> Credentials {
        self.server = Some(server.into());
        self
    }

    /// Reads the forms of CRI's `AuthConfig`; all fields empty is an anonymous pull, hence `None`.
    ///
    /// A registry token wins over an identity token, which wins over a password.
    pub fn from_auth(fields: AuthFields) -> Result<Option<Credentials>, CredentialsError> {
        let proof = if !fields.registry_token.is_empty() {
            Proof::RegistryToken(fields.registry_token)
        } else if !fields.identity_token.is_empty() {
            Proof::IdentityToken(fields.identity_token)
        } else if !fields.username.is_empty() {
            Proof::Basic { username: fields.username, password: fields.password }
        } else if !fields.auth.is_empty() {
            decode_auth(&fields.auth)?
        } else if !fields.password.is_empty() {
            return Err(CredentialsError::NoUsername);
        } else {
            return Ok(None);
        };
        let server = Some(fields.server_address).filter(|address| !address.is_empty());
        Ok(Some(Credentials { server, proof }))
    }

    /// Whether these credentials are for the registry `host`.
    ///
    /// Credentials that name no server are for the registry of the image they came with.
    pub(crate) fn are_for(&self, host: &str) -> bool {
        let Some(server) = &self.server else { return true };
        canonical_host(server) == canonical_host(host)
    }

    pub(crate) fn proof(&self) -> &Proof {
        &self.proof
    }
}

impl Secret {
    /// The text itself, for the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The host of a server address, with the names of the Docker hub folded into one.
fn canonical_host(address: &str) -> String {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = bare.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

fn decode_auth(auth: &Secret) -> Result<Proof, CredentialsError> {
    let bytes = STANDARD.decode(auth.expose().trim()).map_err(|_| CredentialsError::Auth)?;
    let bytes = Zeroizing::new(bytes);
    let text = std::str::from_utf8(&bytes).map_err(|_| CredentialsError::Auth)?;
    let (username, password) = text.split_once(':').ok_or(CredentialsError::Auth)?;
    // Some tools pad the decoded form with NUL bytes.
    let password = password.trim_end_matches('\0');
    Ok(Proof::Basic { username: username.to_owned(), password: password.into() })
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "(empty)" } else { "(hidden)" })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.proof {
            Proof::Basic { .. } => "password",
            Proof::IdentityToken(_) => "identity token",
            Proof::RegistryToken(_) => "registry token",
        };
        f.debug_struct("Credentials").field("form", &form).field("server", &self.server).finish()
    }
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(edit: impl FnOnce(&mut AuthFields)) -> AuthFields {
        let mut fields = AuthFields::default();
        edit(&mut fields);
        fields
    }

    #[test]
    fn every_form_of_the_fields_becomes_the_right_proof() {
        let basic = |user: &str, password: &str| Proof::Basic {
            username: user.into(),
            password: password.into(),
        };
        let cases = [
            (fields(|_| ()), Ok(None)),
            (
                fields(|f| {
                    f.username = "ann".into();
                    f.password = "pw".into();
                }),
                Ok(Some(basic("ann", "pw"))),
            ),
            (fields(|f| f.auth = STANDARD.encode("ann:p:w").into()), Ok(Some(basic("ann", "p:w")))),
            (fields(|f| f.auth = STANDARD.encode("ann").into()), Err(CredentialsError::Auth)),
            (fields(|f| f.auth = "%%%".into()), Err(CredentialsError::Auth)),
            (fields(|f| f.password = "pw".into()), Err(CredentialsError::NoUsername)),
            (
                fields(|f| {
                    f.identity_token = "id".into();
                    f.username = "ann".into();
                }),
                Ok(Some(Proof::IdentityToken("id".into()))),
            ),
            (fields(|f| f.registry_token = "t".into()), Ok(Some(Proof::RegistryToken("t".into())))),
        ];
        for (number, (fields, expected)) in cases.into_iter().enumerate() {
            let got = Credentials::from_auth(fields).map(|made| made.map(|made| made.proof));
            assert!(got == expected, "case {number}");
        }
    }

    #[test]
    fn credentials_are_only_for_the_server_they_name() {
        let open = Credentials::basic("ann", "pw");
        assert!(open.are_for("any.example"));
        let cases = [
            ("reg.example", "reg.example", true),
            ("https://reg.example/v2/", "reg.example", true),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("reg.example:5000", "reg.example", false),
            ("reg.example", "evil.example", false),
            ("reg.example.evil.example", "reg.example", false),
        ];
        for (server, host, expected) in cases {
            let bound = open.clone().only_for(server);
            assert_eq!(bound.are_for(host), expected, "{server} for {host}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let shown = format!(
            "{:?} {:?} {:?}",
            Credentials::basic("ann", "sesame"),
            Secret::from("sesame"),
            fields(|f| f.identity_token = "sesame".into()),
        );
        assert!(!shown.contains("sesame"), "{shown}");
        assert!(!shown.contains("ann"), "{shown}");
    }
}
