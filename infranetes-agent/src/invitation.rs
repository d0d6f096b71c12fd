//! The user-data, read and checked: what this agent may become, and the secret that proves it was invited.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use infranetes_agent_protocol::{USER_DATA_VERSION, UserData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use zeroize::{Zeroize, Zeroizing};

use crate::listener::{Listen, ListenError};

/// A parsed invitation.
pub struct Invitation {
    /// The name that the certificate will carry.
    pub agent_name: ServerName<'static>,
    /// The only CA whose certificates count.
    pub ca: CertificateDer<'static>,
    /// The one-time token.
    pub token: Zeroizing<Vec<u8>>,
    /// Where the node expects the agent, if it says so.
    pub listen: Option<Listen>,
}

impl Invitation {
    /// Parses user-data.
    pub fn parse(text: &[u8]) -> Result<Self, InvitationError> {
        if text.len() > MAX_BYTES {
            return Err(InvitationError::TooLong(text.len()));
        }
        let mut data: UserData = serde_json::from_slice(text).map_err(InvitationError::NotJson)?;
        let parsed = Self::from_data(&data);
        data.token.zeroize();
        parsed
    }

    /// Reads user-data from a file and deletes it, so that the token is nowhere but in memory.
    pub fn take(path: &Path) -> Result<Self, InvitationError> {
        let text = std::fs::read(path).map(Zeroizing::new).map_err(|cause| {
            InvitationError::Unreadable { path: path.display().to_string(), cause }
        })?;
        std::fs::remove_file(path).map_err(|cause| InvitationError::NotDeleted {
            path: path.display().to_string(),
            cause,
        })?;
        Self::parse(&text)
    }

    fn from_data(data: &UserData) -> Result<Self, InvitationError> {
        if data.version != USER_DATA_VERSION {
            return Err(InvitationError::Version(data.version));
        }
        let agent_name = ServerName::try_from(data.agent_name.clone())
            .map_err(|_| InvitationError::Field("agent_name"))?;
        let ca = CertificateDer::from_pem_slice(data.ca_pem.as_bytes())
            .map_err(|_| InvitationError::Field("ca_pem"))?;
        let token = base64::engine::general_purpose::STANDARD
            .decode(&data.token)
            .map(Zeroizing::new)
            .map_err(|_| InvitationError::Field("token"))?;
        if token.len() < TOKEN_BYTES_MIN {
            return Err(InvitationError::Field("token"));
        }
        let listen = data.listen.as_deref().map(Listen::parse).transpose()?;
        Ok(Self { agent_name, ca, token, listen })
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation")
            .field("agent_name", &self.agent_name)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// Why user-data is no invitation. Never repeats its content.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    /// The file could not be read.
    #[error("the user-data {path} cannot be read")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file could not be deleted.
    #[error("the user-data {path} cannot be deleted, and a token must not stay on disk")]
    NotDeleted {
        /// The file.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// More than any invitation has.
    #[error("the user-data has {0} bytes; an invitation has at most {MAX_BYTES}")]
    TooLong(usize),
    /// Not the JSON of an invitation.
    #[error("the user-data is no invitation")]
    NotJson(#[source] serde_json::Error),
    /// From another time.
    #[error("the user-data has version {0}; this agent reads version {USER_DATA_VERSION}")]
    Version(u32),
    /// A field that cannot be.
    #[error("the user-data's field {0} is not valid")]
    Field(&'static str),
    /// `listen` is no address.
    #[error("the user-data's field listen is not valid")]
    Listen(#[from] ListenError),
}

/// The smallest user-data limit of a large cloud, which no invitation comes near.
const MAX_BYTES: usize = 16 * 1024;

const TOKEN_BYTES_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn user_data() -> UserData {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        UserData {
            version: USER_DATA_VERSION,
            agent_name: "a1.agent.infranetes".into(),
            ca_pem: ca.pem(),
            token: base64::engine::general_purpose::STANDARD.encode([7; 32]),
            listen: Some("tcp://127.0.0.1:7443".into()),
        }
    }

    fn parse(change: impl FnOnce(&mut UserData)) -> Result<Invitation, InvitationError> {
        let mut data = user_data();
        change(&mut data);
        Invitation::parse(&serde_json::to_vec(&data).unwrap())
    }

    #[test]
    fn an_invitation_is_read() {
        let invitation = parse(|_| ()).unwrap();
        assert_eq!(invitation.agent_name.to_str(), "a1.agent.infranetes");
        assert_eq!(invitation.token.as_slice(), [7; 32]);
    }

    #[test]
    fn what_is_no_invitation_is_refused_with_the_field() {
        let field = |change: fn(&mut UserData)| match parse(change) {
            Err(InvitationError::Field(field)) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(|data| data.agent_name = "not a name".into()), "agent_name");
        assert_eq!(field(|data| data.ca_pem = "-----BEGIN".into()), "ca_pem");
        assert_eq!(field(|data| data.token = "%".into()), "token");
        assert_eq!(field(|data| data.token = "AAAA".into()), "token");
        assert!(matches!(parse(|data| data.version = 9), Err(InvitationError::Version(9))));
        assert!(matches!(
            parse(|data| data.listen = Some("ftp://x".into())),
            Err(InvitationError::Listen(_))
        ));
        assert!(matches!(Invitation::parse(b"#cloud-config"), Err(InvitationError::NotJson(_))));
        assert!(matches!(
            Invitation::parse(&vec![b' '; MAX_BYTES + 1]),
            Err(InvitationError::TooLong(_))
        ));
    }

    #[test]
    fn a_taken_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user-data");
        std::fs::write(&path, serde_json::to_vec(&user_data()).unwrap()).unwrap();
        Invitation::take(&path).unwrap();
        assert!(!path.exists());
        assert!(matches!(Invitation::take(&path), Err(InvitationError::Unreadable { .. })));
    }

    #[test]
    fn a_token_does_not_show_in_debug_output() {
        let token = user_data().token;
        assert!(!format!("{:?}", user_data()).contains(&token));
        assert!(!format!("{:?}", parse(|_| ()).unwrap()).contains("7, 7"));
    }
}
