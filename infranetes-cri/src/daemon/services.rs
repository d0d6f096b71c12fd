//! What this host does for an instance of a plugin: its log lines and samples, and the secrets that its file names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use infranetes_sdk::{
    HostServices, LogLevel, ProviderError, Result, Secret, TracingServices, async_trait,
};

use crate::config::ProviderInstance;

/// The services of one instance.
///
/// A secret is the content of its file at the time of the question, but for one newline at the end: what is written anew holds
/// from the next question on.
#[derive(Clone, Debug)]
pub struct InstanceServices {
    instance: String,
    secrets: BTreeMap<String, PathBuf>,
}

impl InstanceServices {
    /// Those of an instance.
    pub fn new(instance: &ProviderInstance) -> Self {
        Self { instance: instance.name.clone(), secrets: instance.secrets.clone() }
    }
}

#[async_trait]
impl HostServices for InstanceServices {
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        TracingServices.log(level, target, message);
    }

    fn metric(&self, name: &str, value: f64) {
        tracing::debug!(plugin = self.instance, metric = name, value, "a sample");
    }

    async fn secret(&self, name: &str) -> Result<Secret> {
        let Some(path) = self.secrets.get(name).cloned() else {
            let message = format!(
                "there is no secret {name:?}: [secrets] of the instance {:?} has to name its file",
                self.instance
            );
            return Err(ProviderError::not_found(message));
        };
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        read.map(Secret::new).map_err(|error| {
            let message = format!("the secret {name:?} cannot be read");
            ProviderError::credentials(message).with_source(error)
        })
    }
}

/// The file of a secret, which nobody but its owner may read.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).map_err(|e| io::Error::new(e.kind(), format!("{shown}: {e}")))?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other(format!("{shown} is not a regular file")));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let why = format!("{shown} is open to others (mode {mode:o}); `chmod 600 {shown}`");
        return Err(io::Error::other(why));
    }
    let mut bytes = Vec::new();
    file.take(SECRET_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_MAX {
        return Err(io::Error::other(format!("{shown} has more than {SECRET_MAX} bytes")));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}

/// More than any key or token has.
const SECRET_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use infranetes_sdk::ErrorKind;

    use super::*;
    use crate::chain;

    fn services(secrets: &[(&str, &Path)]) -> InstanceServices {
        let secrets = secrets.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf()));
        InstanceServices { instance: "cloud".to_owned(), secrets: secrets.collect() }
    }

    #[tokio::test]
    async fn a_secret_is_what_its_file_has_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let services = services(&[("token", &path)]);
        for (written, expected) in [("one", "one"), ("two\n", "two"), ("three\n\n", "three\n")] {
            fs::write(&path, written).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let secret = services.secret("token").await.unwrap();
            assert_eq!(secret.expose_str().unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn what_is_no_secret_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let [open, large, missing] =
            ["open", "large", "missing"].map(|name| directory.path().join(name));
        fs::write(&open, "x").unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&large, vec![b'x'; 65_537]).unwrap();
        fs::set_permissions(&large, fs::Permissions::from_mode(0o400)).unwrap();
        let places = [
            ("open", &*open),
            ("large", &*large),
            ("missing", &*missing),
            ("dir", directory.path()),
        ];
        let services = services(&places);
        for (name, kind, expected) in [
            (
                "other",
                ErrorKind::NotFound,
                "[secrets] of the instance \"cloud\" has to name its file",
            ),
            ("open", ErrorKind::Credentials, "is open to others (mode 640); `chmod 600 "),
            ("large", ErrorKind::Credentials, "has more than 65536 bytes"),
            ("missing", ErrorKind::Credentials, "No such file or directory"),
            ("dir", ErrorKind::Credentials, "is not a regular file"),
        ] {
            let error = services.secret(name).await.unwrap_err();
            assert_eq!(error.kind, kind, "{error:?}");
            let said = chain(&error);
            assert!(said.contains(&format!("{name:?}")) && said.contains(expected), "{said}");
        }
    }
}
