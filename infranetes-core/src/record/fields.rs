//! Fields that several records share.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::{IdRange, PidMode, SandboxResources, UserNamespace};

/// Nanoseconds since 1970.
pub(crate) type Nanos = u64;

pub(crate) fn to_nanos(time: SystemTime) -> Nanos {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn from_nanos(nanos: Nanos) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

pub(crate) fn opt_nanos(time: Option<SystemTime>) -> Option<Nanos> {
    time.map(to_nanos)
}

pub(crate) fn opt_from_nanos(nanos: Option<Nanos>) -> Option<SystemTime> {
    nanos.map(from_nanos)
}

/// Bytes, as base64 text.
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ResourcesField {
    cpu_millis: u64,
    memory_bytes: u64,
}

impl From<&SandboxResources> for ResourcesField {
    fn from(resources: &SandboxResources) -> Self {
        Self { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }
}

impl From<ResourcesField> for SandboxResources {
    fn from(field: ResourcesField) -> Self {
        Self { cpu_millis: field.cpu_millis, memory_bytes: field.memory_bytes }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PidModeField {
    Container,
    Pod,
    Machine,
    Target(String),
}

impl From<&PidMode> for PidModeField {
    fn from(mode: &PidMode) -> Self {
        match mode {
            PidMode::Container => Self::Container,
            PidMode::Pod => Self::Pod,
            PidMode::Machine => Self::Machine,
            PidMode::Target(id) => Self::Target(id.clone()),
        }
    }
}

impl From<PidModeField> for PidMode {
    fn from(field: PidModeField) -> Self {
        match field {
            PidModeField::Container => Self::Container,
            PidModeField::Pod => Self::Pod,
            PidModeField::Machine => Self::Machine,
            PidModeField::Target(id) => Self::Target(id),
        }
    }
}

/// (first, count) of users, then of groups.
#[derive(Serialize, Deserialize)]
pub(crate) struct UsersField {
    uids: (u32, u32),
    gids: (u32, u32),
}

impl From<UserNamespace> for UsersField {
    fn from(users: UserNamespace) -> Self {
        let pair = |range: IdRange| (range.first, range.count);
        Self { uids: pair(users.uids), gids: pair(users.gids) }
    }
}

impl From<UsersField> for UserNamespace {
    fn from(field: UsersField) -> Self {
        let range = |(first, count)| IdRange { first, count };
        Self { uids: range(field.uids), gids: range(field.gids) }
    }
}
