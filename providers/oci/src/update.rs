//! New limits for a container that exists: all of them, or none and a reason.
//!
//! A created container gets them by its configuration, a running one by the runtime. What the runtime cannot change is done
//! here: the out-of-memory score of every process, and room below a smaller memory limit. The kernel of version 2 answers a
//! limit below what is used by killing; that is asked first, by taking back what can be taken.

use std::fs;
use std::io;
use std::path::Path;

use infranetes_sdk::v1::{ContainerState, Resources};
use infranetes_sdk::{ProviderError, Result};
use serde_json::{Map, Value};

use crate::cgroup::{Cgroup, Cgroups};
use crate::client::Runtime;
use crate::container::Container;
use crate::convert::{self, capabilities};
use crate::error::io_error;

/// Changes the limits of a container; 0 and empty keep what is.
pub(crate) async fn update(
    container: &Container,
    runtime: &Runtime,
    cgroups: &Cgroups,
    asked: &Resources,
) -> Result<()> {
    let resources = convert::resources(asked, &cgroups.limitable())?;
    let score = convert::oom_score(asked.oom_score_adj, capabilities::of_this_machine())?;
    // A start that is under way ends first.
    let _turn = container.turn.lock().await;
    match container.state() {
        ContainerState::Created => {
            let path = container.bundle.join("config.json");
            let limits = serde_json::to_value(&resources).map_err(io::Error::from);
            limits
                .and_then(|limits| rewrite(&path, limits, score))
                .map_err(io_error("cannot write the container's configuration"))
        }
        ContainerState::Running => {
            if let Some(limit) = resources.memory.as_ref().and_then(|memory| memory.limit) {
                make_room(&container.cgroup, limit)?;
            }
            if resources != convert::spec::Resources::default() {
                runtime.update(container.id(), &resources).await?;
            }
            score.map_or(Ok(()), |score| set_score(&container.cgroup, score))
        }
        _ => Err(ProviderError::conflict(format!("container {} has exited", container.id()))),
    }
}

fn rewrite(path: &Path, limits: Value, score: Option<i32>) -> io::Result<()> {
    let mut spec: Value = serde_json::from_slice(&fs::read(path)?)?;
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        let resources = linux.entry("resources").or_insert_with(|| Value::Object(Map::new()));
        merge(resources, limits);
    }
    if let (Some(score), Some(process)) = (score, spec.get_mut("process")) {
        process["oomScoreAdj"] = score.into();
    }
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(&spec)?)?;
    fs::rename(new, path)
}

/// Puts what is said over what was; objects key by key.
fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

/// Takes back what is over a limit to come; what cannot be taken back is a reason to refuse.
fn make_room(cgroup: &Cgroup, limit: i64) -> Result<()> {
    let Ok(limit) = u64::try_from(limit) else { return Ok(()) };
    let used = cgroup.memory_used();
    if used <= limit {
        return Ok(());
    }
    cgroup.reclaim(used - limit);
    let used = cgroup.memory_used();
    if used <= limit {
        return Ok(());
    }
    Err(ProviderError::conflict(format!(
        "memory cannot be limited to {limit} bytes: {used} are used, and the kernel cannot take them back"
    )))
}

/// Sets the score of every process. One that is just ending has none.
fn set_score(cgroup: &Cgroup, score: i32) -> Result<()> {
    let mut denied = 0;
    for pid in cgroup.pids() {
        let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
        let is = fs::read_to_string(&path).unwrap_or_default();
        if is.trim().parse() == Ok(score) {
            continue;
        }
        match fs::write(&path, score.to_string()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied += 1,
            Err(error) if gone(&error) => {}
            Err(error) => return Err(io_error("cannot set oom_score_adj")(error)),
        }
    }
    // As at its start: lowering takes a capability that a service on a node may lack.
    if denied > 0 {
        tracing::warn!(asked = score, processes = denied, "oom_score_adj cannot be lowered here");
    }
    Ok(())
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let before = serde_json::json!({
            "process": { "args": ["x"] },
            "linux": { "resources": { "cpu": { "shares": 2, "quota": 5 }, "pids": { "limit": 9 } } },
        });
        fs::write(&path, before.to_string()).unwrap();
        let limits = serde_json::json!({ "cpu": { "quota": 7 }, "memory": { "limit": 1 } });
        rewrite(&path, limits, Some(500)).unwrap();
        let after: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "process": { "args": ["x"], "oomScoreAdj": 500 },
            "linux": { "resources": {
                "cpu": { "shares": 2, "quota": 7 }, "pids": { "limit": 9 }, "memory": { "limit": 1 },
            } },
        });
        assert_eq!(after, expected);
    }
}
