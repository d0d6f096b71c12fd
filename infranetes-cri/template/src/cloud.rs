//! A cloud for beginners: a server is a file, and nothing runs in it. Replace it by the client of a real one.
//!
//! What it has in common with real ones: it, and not the memory of this process, knows what exists; and a request that was
//! cut off has either not happened, or shows in the list.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The servers of one directory.
#[derive(Clone)]
pub struct Cloud {
    directory: Arc<Path>,
    boot: Duration,
    /// Whoever looks and then writes holds it, so that two requests with one token make one server.
    writing: Arc<Mutex<()>>,
}

/// A server, as its file has it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name, which is unique.
    pub id: String,
    /// What the request for it was called.
    pub token: String,
    pub size: String,
    /// May hold secrets: this type has no `Debug`, and the directory belongs to the host alone.
    pub user_data: Vec<u8>,
    pub tags: BTreeMap<String, String>,
    pub created_unix_ms: u64,
    pub power: Power,
    /// Worked out from the time; not in the file.
    #[serde(skip)]
    pub is_booting: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    On,
    Off,
}

/// Why the cloud did not do it. A message never repeats its cause: whoever prints it walks the chain.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error("there is no server {0:?}")]
    NoServer(String),
    #[error("another server has the token or the name of {0:?}")]
    Taken(String),
    #[error("the directory of the servers cannot be used")]
    Disk(#[from] std::io::Error),
    #[error("the file of the server {0:?} is damaged")]
    Damaged(String, #[source] serde_json::Error),
    #[error("this process is about to end")]
    Stopped,
}

impl Cloud {
    /// Servers that live in `directory`, and run `boot` after they were created.
    pub fn open(directory: PathBuf, boot: Duration) -> Self {
        Self {
            directory: directory.into(),
            boot,
            writing: Arc::default(),
        }
    }

    /// Makes a server, or answers the one that an earlier request of the same kind made.
    pub async fn create(&self, server: Server) -> Result<Server, CloudError> {
        self.blocking(move |cloud| {
            let _guard = cloud.lock();
            let taken = |other: &Server| other.token == server.token || other.id == server.id;
            if let Some(other) = cloud.read_all()?.into_iter().find(taken) {
                return match other.is_made_as(&server) {
                    true => Ok(other),
                    false => Err(CloudError::Taken(server.id)),
                };
            }
            cloud.write(&Server {
                created_unix_ms: now_unix_ms(),
                ..server.clone()
            })?;
            cloud.read(&server.id)
        })
        .await
    }

    /// A server by its id.
    pub async fn server(&self, id: String) -> Result<Server, CloudError> {
        self.blocking(move |cloud| cloud.read(&id)).await
    }

    /// All servers, in the order of their ids.
    pub async fn servers(&self) -> Result<Vec<Server>, CloudError> {
        self.blocking(Self::read_all).await
    }

    /// Turns a server on or off; it is then so, whatever it was before.
    pub async fn set_power(&self, id: String, power: Power) -> Result<(), CloudError> {
        self.blocking(move |cloud| {
            let _guard = cloud.lock();
            let server = cloud.read(&id)?;
            cloud.write(&Server { power, ..server })
        })
        .await
    }

    /// Removes a server.
    pub async fn delete(&self, id: String) -> Result<(), CloudError> {
        self.blocking(move |cloud| {
            let _guard = cloud.lock();
            match fs::remove_file(cloud.path(&id)?) {
                Err(error) if error.kind() == ErrorKind::NotFound => Err(CloudError::NoServer(id)),
                removed => Ok(removed?),
            }
        })
        .await
    }

    /// Files block, and so belong onto threads that may: the one that runs calls stays free for others. A caller that
    /// goes away leaves the work to be finished, so that nothing is half done.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, CloudError> + Send + 'static,
    ) -> Result<T, CloudError> {
        let cloud = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&cloud)).await;
        done.unwrap_or(Err(CloudError::Stopped))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_all(&self) -> Result<Vec<Server>, CloudError> {
        let mut servers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name().into_string().unwrap_or_default();
            let Some(id) = name.strip_suffix(ENDING) else {
                continue;
            };
            match self.read(id) {
                // It went while we looked.
                Err(CloudError::NoServer(_)) => {}
                server => servers.push(server?),
            }
        }
        servers.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(servers)
    }

    fn read(&self, id: &str) -> Result<Server, CloudError> {
        let text = match fs::read(self.path(id)?) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(CloudError::NoServer(id.to_owned()));
            }
            text => text?,
        };
        let damaged = |source| CloudError::Damaged(id.to_owned(), source);
        let mut server: Server = serde_json::from_slice(&text).map_err(damaged)?;
        let boots_until = server.created_unix_ms.saturating_add(millis(self.boot));
        server.is_booting = now_unix_ms() < boots_until;
        Ok(server)
    }

    /// Renaming is all or nothing: nobody reads half a file, whenever this process ends.
    fn write(&self, server: &Server) -> Result<(), CloudError> {
        let path = self.path(&server.id)?;
        let new = path.with_extension("new");
        let text = serde_json::to_vec(server).map_err(std::io::Error::from)?;
        fs::write(&new, text)?;
        Ok(fs::rename(new, path)?)
    }

    /// An id that is no name is no server; above all it must not become a path.
    fn path(&self, id: &str) -> Result<PathBuf, CloudError> {
        match is_name(id) {
            true => Ok(self.directory.join(format!("{id}{ENDING}"))),
            false => Err(CloudError::NoServer(id.to_owned())),
        }
    }
}

impl Server {
    /// Whether both came from the same request.
    fn is_made_as(&self, other: &Self) -> bool {
        let made = |server: &Self| Self {
            created_unix_ms: 0,
            power: Power::On,
            is_booting: true,
            ..server.clone()
        };
        made(self) == made(other)
    }
}

/// `[a-z0-9-]{1,63}`.
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

fn now_unix_ms() -> u64 {
    millis(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const ENDING: &str = ".json";
