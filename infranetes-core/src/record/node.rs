//! What the record says about the node itself, version 1.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::record::codec;
use crate::record::fields::{Nanos, from_nanos, to_nanos};
use crate::record::{Entry, RecordError, Table};

/// The key under which the record's own birth stands.
pub(crate) const BORN: &str = "born";

#[derive(Serialize, Deserialize)]
struct BornRecord {
    at: Nanos,
}

/// Writes when the record began.
pub(crate) fn encode_born(at: SystemTime) -> Entry {
    codec::encode(Table::Node, BORN, &BornRecord { at: to_nanos(at) })
}

/// Reads when the record began.
pub(crate) fn decode_born(entry: &Entry) -> Result<SystemTime, RecordError> {
    let record: BornRecord = codec::decode(entry)?;
    Ok(from_nanos(record.at))
}
