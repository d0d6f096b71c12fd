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
/// A field that may be missing needs no version: older builds pass over it. When a record changes otherwise: raise [`VERSION`], add the step from the version before, keep a stored example of that one in
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ContainerId, SandboxId};
    use crate::record::{container, node, sandbox};

    fn stored(table: Table, key: &str, text: &str) -> Entry {
        Entry { table, key: key.to_owned(), value: text.as_bytes().to_vec() }
    }

    fn sandbox_id() -> SandboxId {
        SandboxId::from_random([0x5a; 32])
    }

    /// Nothing of what an older version wrote may be lost on its way through this one.
    fn reads_and_writes_the_same(found: &Entry, again: &Entry) {
        let value = |entry: &Entry| -> serde_json::Value {
            serde_json::from_slice(&entry.value).expect("JSON")
        };
        assert_eq!((again.table, &again.key), (found.table, &found.key));
        assert_eq!(value(again), value(found));
    }

    #[test]
    fn records_of_version_1_are_read_without_loss() {
        let text = include_str!("../../tests/records/v1-sandbox.json");
        let entry = stored(Table::Sandboxes, sandbox_id().as_str(), text);
        let life = sandbox::decode(&entry).expect("a sandbox");
        assert_eq!(life.tries, 3);
        reads_and_writes_the_same(&entry, &sandbox::encode(&life));

        let id = ContainerId::from_random([0xc1; 32]);
        let text = include_str!("../../tests/records/v1-container.json");
        let entry = stored(Table::Containers, id.as_str(), text);
        let life = container::decode(&entry).expect("a container");
        assert_eq!(life.sandbox, sandbox_id());
        reads_and_writes_the_same(&entry, &container::encode(&life));

        let text = include_str!("../../tests/records/v1-container-mounts.json");
        let entry = stored(Table::Containers, id.as_str(), text);
        let life = container::decode(&entry).expect("a container with mounts");
        assert_eq!((life.spec.volumes.len(), life.kept.len()), (3, 2));
        reads_and_writes_the_same(&entry, &container::encode(&life));

        let text = include_str!("../../tests/records/v1-log.json");
        let entry = stored(Table::Logs, id.as_str(), text);
        let (_, mark) = container::decode_mark(&entry).expect("a mark");
        reads_and_writes_the_same(&entry, &container::encode_mark(&id, &mark));

        let text = include_str!("../../tests/records/v1-node.json");
        let entry = stored(Table::Node, node::BORN, text);
        let born = node::decode_born(&entry).expect("a birth");
        reads_and_writes_the_same(&entry, &node::encode_born(born));
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_says_why() {
        let good = include_str!("../../tests/records/v1-sandbox.json");
        let id = sandbox_id();
        let read = |text: &str| sandbox::decode(&stored(Table::Sandboxes, id.as_str(), text));
        let newer = read(&good.replace("\"version\": 1", "\"version\": 7"));
        assert!(matches!(newer, Err(RecordError::TooNew { found: 7, known: VERSION, .. })));
        for bad in [
            String::new(),
            "{}".to_owned(),
            good.replace("\"version\": 1", "\"version\": 0"),
            good.replace("\"goal\": \"stop\"", "\"goal\": \"fly\""),
            good.replace("\"phase\": \"ready\"", "\"phase\": \"x\""),
            good.replace("5a5a", "5b5b"),
        ] {
            assert!(matches!(read(&bad), Err(RecordError::Damaged { .. })), "{bad}");
        }
    }
}
