//! What plugins of specification 1.1 are asked for a node rather than for a sandbox: whether they are ready (STATUS), and to give
//! back what no sandbox has any more (GC).
//!
//! Ready is what they said last: they are asked every ten seconds, by those who want to know, and nobody waits for the answer.
//!
//! A GC names all attachments that are to stay, and a plugin gives back everything else. So it is only asked for while something
//! is known to stay: a node that knows of nothing may have lost what it knew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::error::CniError;
use crate::list::{NetworkList, Plugin};
use crate::orphans;
use crate::plugin::{Calls, Verb};

/// What the plugins said last of their readiness.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readiness(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    /// `None` until they said something; then what is wrong, if anything is.
    answer: Option<Option<String>>,
    /// Who was asked, and when.
    asked: Option<(NetworkList, Instant)>,
    asking: bool,
}

impl Readiness {
    /// Why the plugins of this network cannot connect anybody, by what they said last. Asks them again where that is old.
    pub(crate) fn problem(&self, list: &NetworkList, place: &Place) -> Option<String> {
        if !list.can_status() {
            return None;
        }
        let mut said = self.said();
        let fresh = said.asked.as_ref().is_some_and(|(of, at)| of == list && at.elapsed() < FRESH);
        if !fresh && !said.asking && tokio::runtime::Handle::try_current().is_ok() {
            said.asking = true;
            said.asked = Some((list.clone(), Instant::now()));
            tokio::spawn(self.clone().ask(list.clone(), place.clone()));
        }
        said.answer.clone().unwrap_or_else(|| Some(NOT_YET.to_owned()))
    }

    async fn ask(self, list: NetworkList, place: Place) {
        let answer = place.run(&list, Verb::Status, &Map::new(), STATUS_LIMIT).await;
        let problem = answer.err().map(|error| error.chain());
        let mut said = self.said();
        if said.answer.as_ref() != Some(&problem) {
            match &problem {
                Some(problem) => {
                    tracing::warn!(network = list.name, problem, "the CNI plugins are not ready")
                }
                None => tracing::info!(network = list.name, "the CNI plugins are ready"),
            }
        }
        said.answer = Some(problem);
        said.asking = false;
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the plugins to give back what none of these attachments has. True when they were asked.
pub(crate) async fn collect(
    list: &NetworkList,
    place: &Place,
    stay: &BTreeSet<(String, String)>,
) -> Result<bool, CniError> {
    if !list.can_gc() || stay.is_empty() {
        return Ok(false);
    }
    let stay: Vec<Value> = stay
        .iter()
        .map(|(container, interface)| json!({"containerID": container, "ifname": interface}))
        .collect();
    // The specification had the second name at first, and plugins know either.
    let words = ["cni.dev/valid-attachments", "cni.dev/attachments"]
        .map(|key| (key.to_owned(), Value::from(stay.clone())));
    place.run(list, Verb::Gc, &Map::from_iter(words), GC_LIMIT).await.map(|()| true)
}

/// Where plugins are, and where a call has its standard input.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) bin_dirs: Vec<PathBuf>,
    pub(crate) state_dir: PathBuf,
}

impl Place {
    /// Runs all plugins with a verb of the node's; goes on past failures.
    async fn run(
        &self,
        list: &NetworkList,
        verb: Verb,
        words: &Map<String, Value>,
        limit: Duration,
    ) -> Result<(), CniError> {
        let stdin = self.state_dir.join(format!(".{}", verb.name().to_lowercase()));
        make(&self.state_dir)?;
        orphans::end(&stdin, orphans::GRACE).await?;
        let calls = Calls {
            bin_dirs: self.bin_dirs.clone(),
            container: String::new(),
            namespace: String::new(),
            interface: String::new(),
            args: String::new(),
            stdin,
        };
        let part = limit / u32::try_from(list.plugins.len()).unwrap_or(u32::MAX).max(1);
        let mut errors = Vec::new();
        for plugin in &list.plugins {
            let config = config(list, plugin, words);
            errors.extend(calls.run(plugin.kind(), verb, &config, part).await.err());
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(CniError::Several(errors)),
        }
    }
}

fn config(list: &NetworkList, plugin: &Plugin, words: &Map<String, Value>) -> Value {
    let mut config = list.stdin_of(plugin, None, &Map::new());
    if let Value::Object(config) = &mut config {
        config.extend(words.clone());
    }
    config
}

fn make(dir: &Path) -> Result<(), CniError> {
    fs::create_dir_all(dir).map_err(CniError::io("make", dir))
}

const NOT_YET: &str = "the CNI plugins were not heard yet on whether they are ready";
/// How long what they said counts.
const FRESH: Duration = Duration::from_secs(10);
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// Nobody is connected meanwhile.
const GC_LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A network of two plugins with a script, which has its directory as "$DIR".
    struct Network {
        dir: tempfile::TempDir,
        list: NetworkList,
    }

    impl Network {
        fn new(version: &str, more: Value, script: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["first", "second"] {
                let path = dir.path().join(name);
                let text = format!("#!/bin/sh\nDIR={}\n{script}\n", dir.path().display());
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let plugins = json!([{"type": "first"}, {"type": "second"}]);
            let mut list = json!({"cniVersion": version, "name": "n", "plugins": plugins});
            list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let conf = dir.path().join("net.d");
            fs::create_dir(&conf).unwrap();
            fs::write(conf.join("1.conflist"), list.to_string()).unwrap();
            Self { list: NetworkList::first(&conf).unwrap(), dir }
        }

        fn place(&self) -> Place {
            let bin_dirs = vec![self.dir.path().to_owned()];
            Place { bin_dirs, state_dir: self.dir.path().join("state") }
        }

        fn said(&self) -> String {
            fs::read_to_string(self.dir.path().join("said")).unwrap_or_default()
        }
    }

    fn stay() -> BTreeSet<(String, String)> {
        BTreeSet::from([("s1".to_owned(), "eth0".to_owned())])
    }

    const LISTEN: &str = "echo $CNI_COMMAND $(basename $0) $CNI_CONTAINERID $CNI_NETNS >> $DIR/said; cat >> $DIR/said";

    #[tokio::test]
    async fn every_plugin_hears_what_stays_even_after_one_that_fails() {
        let script = format!("{LISTEN}; [ $(basename $0) = second ] || exit 1");
        let network = Network::new("1.1.0", json!({}), &script);
        let error = collect(&network.list, &network.place(), &stay()).await.unwrap_err();
        assert!(error.to_string().contains("\"first\" failed at GC"), "{error}");
        let said = network.said();
        assert!(said.starts_with("GC first\n") && said.contains("GC second\n"), "{said}");
        let attachments = r#"[{"containerID":"s1","ifname":"eth0"}]"#;
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            assert!(said.contains(&format!("\"{key}\":{attachments}")), "{said}");
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_to_collect_who_does_not_know_how_or_where_nothing_is_known() {
        let none = BTreeSet::new();
        for (version, more, stay) in [
            ("1.0.0", json!({}), stay()),
            ("1.1.0", json!({"disableGC": true}), stay()),
            ("1.1.0", json!({}), none),
        ] {
            let network = Network::new(version, more, LISTEN);
            assert!(!collect(&network.list, &network.place(), &stay).await.unwrap());
            assert_eq!(network.said(), "", "{version}");
        }
    }

    #[tokio::test]
    async fn readiness_is_what_was_said_last() {
        let script =
            "[ -e $DIR/away ] && echo '{\"code\": 50, \"msg\": \"it is away\"}' && exit 1; true";
        let network = Network::new("1.1.0", json!({}), script);
        fs::write(network.dir.path().join("away"), "").unwrap();
        let readiness = Readiness::default();
        let until = async |want: &dyn Fn(Option<&str>) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let problem = readiness.problem(&network.list, &network.place());
                if want(problem.as_deref()) {
                    return;
                }
                assert!(Instant::now() < deadline, "{problem:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until(&|problem| problem == Some(NOT_YET)).await;
        until(&|problem| problem.is_some_and(|problem| problem.contains("it is away (code 50)")))
            .await;
        fs::remove_file(network.dir.path().join("away")).unwrap();
        until(&|problem| problem.is_none()).await;
        // A network without the verb is as ready as its files are.
        let older = Network::new("1.0.0", json!({}), "exit 1");
        assert_eq!(Readiness::default().problem(&older.list, &older.place()), None);
    }
}
