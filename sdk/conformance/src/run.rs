//! One run of a suite: a name that no other run has, and numbers for what it asks for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) struct Run {
    /// `[a-z0-9]`.
    name: String,
    wishes: AtomicUsize,
}

/// What a new wish is called by.
pub(crate) struct Label {
    pub(crate) token: String,
    /// `[a-z0-9-]`.
    pub(crate) name: String,
    /// Those of the run, and one of its own.
    pub(crate) tags: HashMap<String, String>,
}

impl Run {
    pub(crate) fn new() -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:x}{:x}{run:x}", now & 0xff_ffff_ffff, std::process::id() & 0xffff);
        Self { name, wishes: AtomicUsize::new(0) }
    }

    /// What the names of all that this run makes begin with.
    pub(crate) fn prefix(&self) -> String {
        format!("conformance-{}-", self.name)
    }

    /// The tags that all carry that this run makes.
    pub(crate) fn tags(&self) -> HashMap<String, String> {
        HashMap::from([("conformance-run".into(), self.name.clone())])
    }

    pub(crate) fn label(&self) -> Label {
        let number = self.wishes.fetch_add(1, Ordering::Relaxed);
        let mut tags = self.tags();
        tags.insert("conformance-number".into(), number.to_string());
        Label {
            token: format!("{}-{number}", self.name),
            name: format!("{}{number}", self.prefix()),
            tags,
        }
    }
}
