//! Version and encoding of records: JSON with an explicit version, and the way up from every older one.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::record::{Entry, RecordError, Table};

/// The version that this build writes.
pub(crate) const VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Read {
    version: u32,
    record: serde_json::Value,
}

/// Encodes a record of the current version.
pub(crate) fn encode<T: Serialize>(table: Table, key: &str, record: &T) -> Entry {
    // Records are plain structs of text and numbers: their encoding cannot fail.
    let value = serde_json::to_vec(&Written { version: VERSION, record }).unwrap_or_default();
    Entry { table, key: key.to_owned(), value }
}

/// Decodes a record of this or any older version.
pub(crate) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, RecordError> {
    let read: Read = serde_json::from_slice(&entry.value).map_err(|error| damaged(entry, error))?;
    if read.version > VERSION {
        let path = name(entry);
        return Err(RecordError::TooNew { path, found: read.version, known: VERSION });
    }
    let record = upgrade(entry.table, read.version, read.record)
        .ok_or_else(|| damaged(entry, format!("no version {} was ever written", read.version)))?;
    serde_json::from_value(record).map_err(|error| damaged(entry, error))
}

/// Lifts a record to the current version, one version at a time.
///
/// When a record changes: raise [`VERSION`], add the step from the version before, keep a stored example of that one in
/// `tests/records/`.
fn upgrade(_table: Table, version: u32, record: serde_json::Value) -> Option<serde_json::Value> {
    match version {
        1 => Some(record),
        _ => None,
    }
}

/// What an entry that cannot be read is called in errors; its content may be secret.
pub(crate) fn damaged(
    entry: &Entry,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RecordError {
    RecordError::Damaged { path: name(entry), cause: cause.into() }
}

fn name(entry: &Entry) -> String {
    format!("{:?}/{}", entry.table, entry.key)
}
