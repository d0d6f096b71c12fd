//! A store in memory: for embedders that want no durability, for tests, and for the simulated world, where it outlives
//! the engines that crash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::record::{Change, Entry, RecordError, RecordStore, Table};

/// Records in memory. Clones are the same store.
#[derive(Clone, Default)]
pub struct MemoryStore {
    entries: Arc<Mutex<Entries>>,
}

type Entries = BTreeMap<(Table, String), Vec<u8>>;

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[async_trait]
impl RecordStore for MemoryStore {
    async fn visit(&self, take: &mut (dyn FnMut(Entry) + Send)) -> Result<(), RecordError> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |((table, key), value): (&(Table, String), &Vec<u8>)| Entry {
            table: *table,
            key: key.clone(),
            value: value.clone(),
        };
        entries.iter().map(entry).for_each(take);
        Ok(())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), RecordError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Put(Entry { table, key, value }) => {
                    entries.insert((table, key), value);
                }
                Change::Delete { table, key } => {
                    entries.remove(&(table, key));
                }
            }
        }
        Ok(())
    }
}
