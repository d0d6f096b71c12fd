//! The `[config]` table of an instance.

use serde::Deserialize;

use crate::script::Script;

/// What an instance is started with. Everything may be left out.
///
/// ```toml
/// [config]
/// seed = 7
///
/// [config.script]
/// delay = [5, 50]
/// machines = { boot = 2000, hidden = [0, 3000] }
///
/// [[config.script.faults]]
/// method = "create"
/// when = { nth = 2 }
/// action = { fail = { kind = "throttled", retry_after_ms = 500 } }
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Every chance of the instance's cloud comes from this number.
    pub seed: u64,
    /// What the cloud does.
    pub script: Script,
}
