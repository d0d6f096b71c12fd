//! What a machine is told before it can talk to anybody.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The version of [`UserData`] that this crate writes and reads.
pub const USER_DATA_VERSION: u32 = 1;

/// The user-data of a machine, as JSON. Everything in it is worthless once the agent enrolled.
///
/// Fields are only ever added, optional ones; a reader ignores what it does not know and refuses another version.
#[derive(Clone, Serialize, Deserialize)]
pub struct UserData {
    /// [`USER_DATA_VERSION`].
    pub version: u32,
    /// The name that the agent's certificate will carry: a DNS name.
    pub agent_name: String,
    /// The node's CA certificate, PEM.
    pub ca_pem: String,
    /// The one-time token, base64.
    pub token: String,
    /// Where the agent listens (`tcp://ADDRESS:PORT`, `unix:///PATH`); absent means the agent's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserData")
            .field("version", &self.version)
            .field("agent_name", &self.agent_name)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}
