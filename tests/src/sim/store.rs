//! The durable store, with seams, and with the ways in which it can be broken on purpose.

use async_trait::async_trait;
use infranetes_core::record::{Change, Entry, MemoryStore, RecordError, RecordStore, Table};

use crate::sim::scenario::Sabotage;
use crate::sim::seam::Seams;

/// The store as an engine sees it.
pub struct SimStore {
    /// What is durable.
    pub inner: MemoryStore,
    /// Where it crashes.
    pub seams: Seams,
    /// How it lies.
    pub sabotage: Sabotage,
}

#[async_trait]
impl RecordStore for SimStore {
    async fn visit(&self, take: &mut (dyn FnMut(Entry) + Send)) -> Result<(), RecordError> {
        self.seams.pass("store: load").await;
        self.inner.visit(take).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), RecordError> {
        let what = describe(&changes);
        self.seams.pass(&format!("store: before {what}")).await;
        if !self.forgets(&changes) {
            self.inner.commit(changes).await?;
        }
        self.seams.pass(&format!("store: after {what}")).await;
        Ok(())
    }
}

impl SimStore {
    /// A store that says "durable" without writing: what a world is for to find out.
    fn forgets(&self, changes: &[Change]) -> bool {
        match self.sabotage {
            Sabotage::None | Sabotage::TokensIgnored | Sabotage::WritesLost => false,
            // An intent names a machine that the provider has not named yet.
            Sabotage::IntentsForgotten => changes.iter().any(|change| match change {
                Change::Put(entry) => {
                    let text = String::from_utf8_lossy(&entry.value).into_owned();
                    entry.table == Table::Sandboxes
                        && text.contains("\"machine\":{")
                        && text.contains("\"id\":null")
                }
                Change::Delete { .. } => false,
            }),
            Sabotage::WishesForgotten => changes.iter().any(|change| match change {
                Change::Put(entry) => {
                    let text = String::from_utf8_lossy(&entry.value).into_owned();
                    entry.table == Table::Sandboxes && text.contains("\"network\":\"unsettled\"")
                }
                Change::Delete { .. } => false,
            }),
            Sabotage::GoalsForgotten => changes.iter().any(|change| match change {
                Change::Put(entry) => {
                    let text = String::from_utf8_lossy(&entry.value).into_owned();
                    entry.table == Table::Sandboxes && text.contains("\"goal\":\"remove\"")
                }
                Change::Delete { .. } => false,
            }),
        }
    }
}

fn describe(changes: &[Change]) -> String {
    let words = changes.iter().map(|change| match change {
        Change::Put(entry) => format!("put {:?} {}", entry.table, short(&entry.key)),
        Change::Delete { table, key } => format!("delete {table:?} {}", short(key)),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn short(key: &str) -> &str {
    key.get(..8).unwrap_or(key)
}
