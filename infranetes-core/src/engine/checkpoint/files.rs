//! The engine's part of a checkpoint's directory.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::{ContainerId, SandboxId};
use crate::record::sandbox::ShapeField;
use crate::session::{VolumeMount, VolumeMountSource};
use crate::spec::ContainerSpec;

/// What a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) sandbox: SandboxId,
    pub(super) provider: String,
    /// The agent in the machine keeps its key, and with it its name.
    pub(super) agent_name: String,
    pub(super) shape: ShapeField,
    pub(super) users: String,
    /// What its interfaces in the node's pod network are called; `None` where it brings its own network.
    #[serde(default)]
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) containers: Vec<DescribedContainer>,
}

/// A container in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DescribedContainer {
    /// What the machine calls it.
    pub(super) id: ContainerId,
    pub(super) name: String,
    pub(super) image_id: String,
    /// The last piece of its output that the first pod's log has.
    pub(super) log_sequence: u64,
    pub(super) resources: String,
    pub(super) process: DescribedProcess,
    pub(super) mounts: Vec<DescribedMount>,
}

/// What its first process was started as, as far as a record knows that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DescribedProcess {
    working_dir: String,
    tty: bool,
    stdin: bool,
    stdin_once: bool,
    uid: Option<i64>,
    gid: Option<i64>,
    user_name: String,
    supplemental_groups: Vec<i64>,
    privileged: bool,
    /// Command, arguments, variables: only a digest, and only while it is known.
    #[serde(default)]
    words: Option<String>,
}

/// What it has mounted, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DescribedMount {
    pub(super) destination: String,
    /// Id of a volume of the machine; empty for an image.
    pub(super) volume: String,
    /// Id of an image; empty for a volume.
    pub(super) image: String,
    pub(super) sub_path: String,
    pub(super) read_only: bool,
}

#[derive(Serialize, Deserialize)]
struct File1 {
    version: u32,
    sha256: String,
    /// A [`Description`] in JSON: what the digest is of.
    body: String,
}

impl From<&ContainerSpec> for DescribedProcess {
    fn from(spec: &ContainerSpec) -> Self {
        Self {
            working_dir: spec.working_dir.clone(),
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            uid: spec.security.uid,
            gid: spec.security.gid,
            user_name: spec.security.user_name.clone(),
            supplemental_groups: spec.security.supplemental_groups.clone(),
            privileged: spec.security.privileged,
            words: words(spec),
        }
    }
}

impl DescribedProcess {
    /// What of the other is different, in one word.
    pub(super) fn difference(&self, other: &Self) -> Option<&'static str> {
        let rows = [
            ("working directory", self.working_dir == other.working_dir),
            ("terminal", self.tty == other.tty),
            ("standard input", (self.stdin, self.stdin_once) == (other.stdin, other.stdin_once)),
            (
                "user",
                (self.uid, self.gid, &self.user_name) == (other.uid, other.gid, &other.user_name),
            ),
            ("groups", self.supplemental_groups == other.supplemental_groups),
            ("privileges", self.privileged == other.privileged),
            (
                "command, arguments or environment",
                self.words.is_none() || other.words.is_none() || self.words == other.words,
            ),
        ];
        rows.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }
}

/// A record that was read again has none of it, and says nothing then.
fn words(spec: &ContainerSpec) -> Option<String> {
    if spec.command.is_empty() && spec.args.is_empty() && spec.env.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    let mut take = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    for word in spec.command.iter().chain([&String::new()]).chain(&spec.args) {
        take(word.as_bytes());
    }
    let env: BTreeMap<&str, &[u8]> =
        spec.env.iter().map(|var| (var.name.as_str(), &var.value[..])).collect();
    for (name, value) in env.into_iter().filter(|(name, _)| !is_of_the_node(name)) {
        take(name.as_bytes());
        take(value);
    }
    Some(hex::encode(hash.finalize()))
}

/// The kubelet tells every container of Services, which come and go.
fn is_of_the_node(name: &str) -> bool {
    name.contains("_SERVICE_HOST") || name.contains("_PORT")
}

impl From<&VolumeMount> for DescribedMount {
    fn from(mount: &VolumeMount) -> Self {
        let (volume, image) = match &mount.source {
            VolumeMountSource::Volume(id) => (id.clone(), String::new()),
            VolumeMountSource::Image(image) => (String::new(), image.id.clone()),
        };
        Self {
            destination: mount.destination.clone(),
            volume,
            image,
            sub_path: mount.sub_path.clone(),
            read_only: mount.options.iter().any(|option| option == "ro"),
        }
    }
}

/// Looks at the caller's directory, and makes the provider's in it.
pub(super) async fn begin(directory: &Path) -> Result<PathBuf, EngineError> {
    let path = directory.to_owned();
    blocking(directory, move || {
        private(&path)?;
        if fs::read_dir(&path)?.next().is_some() {
            return Err(invalid("it is not empty"));
        }
        let machine = path.join(MACHINE);
        DirBuilder::new().mode(0o700).create(&machine)?;
        Ok(machine)
    })
    .await
}

/// Makes what is in it a checkpoint.
pub(super) async fn finish(directory: &Path, description: Description) -> Result<(), EngineError> {
    let path = directory.to_owned();
    blocking(directory, move || {
        let body = serde_json::to_string(&description)?;
        let file = File1 { version: VERSION, sha256: digest(&body), body };
        let mut options = OpenOptions::new();
        let mut to = options.write(true).create_new(true).mode(0o600).open(path.join(POD))?;
        to.write_all(&serde_json::to_vec(&file)?)?;
        to.sync_all()?;
        File::open(&path)?.sync_all()
    })
    .await
}

/// Takes back what was begun.
pub(super) async fn clear(directory: &Path) {
    let path = directory.to_owned();
    let cleared = blocking(directory, move || {
        for removed in [fs::remove_file(path.join(POD)), fs::remove_dir_all(path.join(MACHINE))] {
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    });
    if let Err(error) = cleared.await {
        let error = Cause::of(error.kind(), &error).chain();
        tracing::error!(error, "a part of a checkpoint is left behind");
    }
}

/// Reads what a checkpoint is of, and answers the provider's directory with it.
pub(super) async fn read(directory: &Path) -> Result<(Description, PathBuf), EngineError> {
    let path = directory.to_owned();
    blocking(directory, move || {
        private(&path)?;
        let damaged = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let mut text = Vec::new();
        // Without NONBLOCK, a pipe in the file's place would hold us for ever.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path.join(POD))
            .map_err(|error| damaged(format!("{POD} cannot be read ({error})")))?;
        if !file.metadata()?.is_file() {
            return Err(damaged(format!("{POD} is no file")));
        }
        file.take(POD_MAX).read_to_end(&mut text)?;
        let unreadable = |error: serde_json::Error| damaged(format!("{POD} is damaged ({error})"));
        let file: File1 = serde_json::from_slice(&text).map_err(unreadable)?;
        if file.version != VERSION {
            return Err(damaged(format!("{POD} has version {}, which is not known", file.version)));
        }
        if digest(&file.body) != file.sha256 {
            return Err(damaged(format!("{POD} is damaged: its digest does not fit")));
        }
        let description = serde_json::from_str(&file.body).map_err(unreadable)?;
        Ok((description, path.join(MACHINE)))
    })
    .await
}

/// Refuses a directory in which others could put their machine in the place of ours.
fn private(path: &Path) -> io::Result<()> {
    if !path.is_absolute() {
        return Err(invalid("it is not an absolute path"));
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(invalid("it is not a directory"));
    }
    let ours = found.uid() == 0 || found.uid() == rustix::process::geteuid().as_raw();
    if !ours || found.mode() & OTHERS_WRITE != 0 {
        let problem = format!(
            "others may write to it: it belongs to user {} with mode {:o}, and should be root's without write permission for group and others",
            found.uid(),
            found.mode() & 0o7777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(())
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

async fn blocking<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|done| done).map_err(|error| EngineError::Checkpoint {
        directory: directory.to_owned(),
        cause: Cause::of(kind(&error), &error),
    })
}

fn kind(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::NotFound => {
            FailureKind::Invalid
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::Exhausted,
        io::ErrorKind::PermissionDenied => FailureKind::Denied,
        _ => FailureKind::Unavailable,
    }
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

const VERSION: u32 = 1;
const POD: &str = "pod.json";
const MACHINE: &str = "machine";
const POD_MAX: u64 = 16 << 20;
const OTHERS_WRITE: u32 = 0o022;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use infranetes_sdk::pod::MachineType;
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;
    use crate::testing;

    fn description() -> Description {
        Description {
            sandbox: SandboxId::from_random([1; 32]),
            provider: "qemu".into(),
            agent_name: "a.agent".into(),
            shape: (&MachineType { name: "m".into(), memory_bytes: 7, ..Default::default() })
                .into(),
            users: "None".into(),
            interfaces: Some(vec!["eth0".into()]),
            containers: vec![DescribedContainer {
                id: ContainerId::from_random([2; 32]),
                name: "main".into(),
                image_id: "sha256:1".into(),
                log_sequence: 3,
                resources: String::new(),
                process: (&testing::container_spec("main")).into(),
                mounts: Vec::new(),
            }],
        }
    }

    #[tokio::test]
    async fn what_was_written_is_read_and_what_was_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let place = begin(dir.path()).await.unwrap();
        assert!(place.is_dir());
        finish(dir.path(), description()).await.unwrap();
        assert_eq!(read(dir.path()).await.unwrap(), (description(), place));
        let error = begin(dir.path()).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Invalid, "{error}");

        let text = fs::read_to_string(dir.path().join(POD)).unwrap();
        for (damage, words) in [
            (text.replace("qemu", "qumu"), "its digest does not fit"),
            (text[..text.len() / 2].to_owned(), "is damaged"),
            (text.replace("\"version\":1", "\"version\":9"), "version 9"),
        ] {
            fs::write(dir.path().join(POD), damage).unwrap();
            let error = read(dir.path()).await.unwrap_err();
            let chain = Cause::of(error.kind(), &error).chain();
            assert_eq!(error.kind(), FailureKind::Invalid, "{chain}");
            assert!(chain.contains(words), "{chain}");
        }
        clear(dir.path()).await;
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        assert_eq!(read(dir.path()).await.unwrap_err().kind(), FailureKind::Invalid);
    }

    #[tokio::test]
    async fn what_others_could_have_put_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        for (name, mode) in [("group", 0o770), ("all", 0o777), ("tmp", 0o1777)] {
            let open = place(name, mode);
            let error = begin(&open).await.unwrap_err();
            assert_eq!(error.kind(), FailureKind::Denied, "{error}");
            assert!(fs::read_dir(&open).unwrap().next().is_none());
            assert_eq!(read(&open).await.unwrap_err().kind(), FailureKind::Denied);
        }
        let written = place("written", 0o755);
        begin(&written).await.unwrap();
        finish(&written, description()).await.unwrap();

        let linked = place("linked", 0o755);
        symlink(written.join(POD), linked.join(POD)).unwrap();
        let piped = place("piped", 0o755);
        mkfifoat(CWD, piped.join(POD), Mode::RWXU).unwrap();
        symlink(&written, dir.path().join("link")).unwrap();
        for path in [linked, piped, dir.path().join("link")] {
            assert_eq!(read(&path).await.unwrap_err().kind(), FailureKind::Invalid, "{path:?}");
        }
    }

    #[test]
    fn a_process_that_was_started_as_another_is_told_apart() {
        let spec = testing::container_spec("main");
        let same = DescribedProcess::from(&spec);
        assert_eq!(same.difference(&DescribedProcess::from(&spec)), None);
        let mut other = spec.clone();
        other.args = vec!["other".into()];
        let words = Some("command, arguments or environment");
        assert_eq!(same.difference(&DescribedProcess::from(&other)), words);
        let mut other = spec;
        other.security.uid = Some(7);
        assert_eq!(same.difference(&DescribedProcess::from(&other)), Some("user"));
    }
}
