//! What is durable about a sandbox's connection: all that a DEL needs, written before the ADD begins.
//!
//! ```text
//! STATE/SANDBOX/          root's alone
//!   connection.json       this file
//!   stdin                 what the plugin that runs now reads
//! STATE/ranges.json       from where the kubelet wants pods to get their addresses
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::CniError;
use crate::list::NetworkList;

/// A connection that may exist in part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Connection {
    pub(crate) version: u32,
    pub(crate) list: NetworkList,
    pub(crate) bin_dirs: Vec<PathBuf>,
    pub(crate) args: String,
    pub(crate) interface: String,
    pub(crate) runtime: Map<String, Value>,
    /// What the chain said; absent until it did.
    pub(crate) result: Option<Value>,
}

/// The directory of a sandbox, made or not.
#[derive(Clone, Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    pub(crate) fn of(root: &Path, sandbox: &str) -> Self {
        Self(root.join(sandbox))
    }

    pub(crate) fn stdin(&self) -> PathBuf {
        self.0.join("stdin")
    }

    /// `None` where nothing was begun.
    pub(crate) fn load(&self) -> Result<Option<Connection>, CniError> {
        let connection: Option<Connection> = load(&self.0.join(FILE))?;
        match connection {
            Some(connection) if connection.version != VERSION => {
                let problem = format!("version {} is not known", connection.version);
                Err(CniError::io("read", &self.0)(io::Error::other(problem)))
            }
            connection => Ok(connection),
        }
    }

    /// Writes it whole or not at all, and durably.
    pub(crate) fn save(&self, connection: &Connection) -> Result<(), CniError> {
        let parent = self.0.parent().unwrap_or(&self.0);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.and_then(|()| File::open(parent)?.sync_data())
            .and_then(|()| save(&self.0.join(FILE), connection))
            .map_err(CniError::io("write", &self.0))
    }

    /// Forgets it. Gone already is success.
    pub(crate) fn remove(&self) -> Result<(), CniError> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CniError::io("remove", &self.0)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a file of ours; `None` where there is none.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CniError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CniError::io("read", path)(error)),
    };
    let value = serde_json::from_slice(&text).map_err(io::Error::other);
    value.map(Some).map_err(CniError::io("read", path))
}

/// Writes a file whole or not at all, and durably.
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_data()
}

pub(crate) const VERSION: u32 = 1;
const FILE: &str = "connection.json";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_connection_comes_back_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::of(root.path(), "s1");
        assert_eq!(dir.load().unwrap(), None);
        dir.remove().unwrap();
        let list = json!({"name": "n", "version": "1.0.0", "disable_check": false, "plugins": [{"type": "p", "x": [1]}]});
        let mut connection = Connection {
            version: VERSION,
            list: serde_json::from_value(list).unwrap(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            args: "A=b".into(),
            interface: "eth0".into(),
            runtime: Map::new(),
            result: None,
        };
        dir.save(&connection).unwrap();
        assert_eq!(dir.load().unwrap().as_ref(), Some(&connection));
        connection.result = Some(json!({"ips": []}));
        dir.save(&connection).unwrap();
        assert_eq!(dir.load().unwrap().as_ref(), Some(&connection));
        connection.version = 9;
        dir.save(&connection).unwrap();
        assert!(dir.load().is_err());
        dir.remove().unwrap();
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
    }
}
