//! Names of things, as types of their own: one cannot be taken for another.
//!
//! Clones of an id share its text: it stands in many places for as long as what it names.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A sandbox: 64 lower-case hexadecimal digits, random, never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(Arc<str>);

/// A container: 64 lower-case hexadecimal digits, random, never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(Arc<str>);

/// A machine, in its provider's own words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub String);

/// Text that is no id: ids are 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id has 64 lower-case hexadecimal digits; got {length} bytes")]
pub struct InvalidId {
    /// How long the text was; the text itself may be anything, so it is not repeated.
    pub length: usize,
}

macro_rules! hex_id {
    ($name:ident) => {
        impl $name {
            /// Makes the id out of 32 random bytes.
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(hex::encode(bytes).into())
            }

            /// Parses an id.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if text.len() == ID_LENGTH && digits {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { length: text.len() })
                }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}

hex_id!(SandboxId);
hex_id!(ContainerId);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 32 bytes in hexadecimal.
const ID_LENGTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_lower_case_hexadecimal_digits() {
        let id = SandboxId::from_random([0xab; 32]);
        assert_eq!(SandboxId::parse(id.as_str()), Ok(id));
        for bad in ["", "ab", &"AB".repeat(32), &"zz".repeat(32), &"ab".repeat(33)] {
            assert_eq!(SandboxId::parse(bad), Err(InvalidId { length: bad.len() }), "{bad}");
        }
    }
}
