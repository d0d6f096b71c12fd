//! A connection's chain of plugins, run forwards and backwards.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::error::CniError;
use crate::plugin::{Calls, Verb};
use crate::result;
use crate::state::Connection;

/// What a chain is run with.
pub(crate) struct Chain<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) calls: Calls,
}

impl<'a> Chain<'a> {
    /// The chain of a connection; plugins are looked for where they are now, then where they were.
    pub(crate) fn new(
        connection: &'a Connection,
        sandbox: &str,
        namespace: String,
        stdin: PathBuf,
        bin_dirs: &[PathBuf],
    ) -> Self {
        let mut bin_dirs = bin_dirs.to_vec();
        let old = connection.bin_dirs.iter().filter(|dir| !bin_dirs.contains(dir));
        let old: Vec<PathBuf> = old.cloned().collect();
        bin_dirs.extend(old);
        let calls = Calls {
            bin_dirs,
            container: sandbox.to_owned(),
            namespace,
            interface: connection.interface.clone(),
            args: connection.args.clone(),
            stdin,
        };
        Self { connection, calls }
    }

    /// ADD, plugin by plugin, each with the result of the one before; the last one's is the chain's.
    pub(crate) async fn add(&self) -> Result<Value, CniError> {
        let list = &self.connection.list;
        let deadline = Instant::now() + ADD_LIMIT;
        let mut previous: Option<Value> = None;
        for plugin in &list.plugins {
            let config = list.stdin_of(plugin, previous.as_ref(), &self.connection.runtime);
            let kind = plugin.kind();
            let limit = deadline.saturating_duration_since(Instant::now());
            let output = self.calls.run(kind, Verb::Add, &config, limit).await?;
            let result = result::parse(&output, &list.version).map_err(|problem| {
                CniError::NoResult { plugin: kind.to_owned(), verb: Verb::Add.name(), problem }
            })?;
            previous = Some(result);
        }
        previous.ok_or_else(|| CniError::NoAddress(list.name.clone()))
    }

    /// CHECK, in the order of ADD; the first plugin that finds something ends it.
    pub(crate) async fn check(&self) -> Result<(), CniError> {
        let list = &self.connection.list;
        let result = self.connection.result.as_ref().ok_or(CniError::NotConnected)?;
        for plugin in &list.plugins {
            let config = list.stdin_of(plugin, Some(result), &self.connection.runtime);
            self.calls.run(plugin.kind(), Verb::Check, &config, self.part()).await?;
        }
        Ok(())
    }

    /// DEL, backwards. It goes on past failures, so that one plugin does not keep what another made.
    pub(crate) async fn del(&self) -> Result<(), CniError> {
        let list = &self.connection.list;
        let mut errors = Vec::new();
        for plugin in list.plugins.iter().rev() {
            let result = self.connection.result.as_ref();
            let config = list.stdin_of(plugin, result, &self.connection.runtime);
            let deleted = self.calls.run(plugin.kind(), Verb::Del, &config, self.part()).await;
            errors.extend(deleted.err());
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(CniError::Several(errors)),
        }
    }

    /// A plugin's part of the chain's time: those who come later in it have theirs, whatever the first ones do.
    fn part(&self) -> Duration {
        let plugins = u32::try_from(self.connection.list.plugins.len()).unwrap_or(u32::MAX);
        DEL_LIMIT / plugins.max(1)
    }
}

/// For all of them together. The engine gives 110 s, of which the DEL of an earlier attempt may have taken a part.
const ADD_LIMIT: Duration = Duration::from_secs(60);
/// The engine gives 60 s.
const DEL_LIMIT: Duration = Duration::from_secs(45);
