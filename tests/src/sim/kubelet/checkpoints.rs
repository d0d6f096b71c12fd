//! A pod that is written to the node's disk, and another one that goes on from there beside it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use infranetes_core::ids::{ContainerId, SandboxId};
use infranetes_core::status::{ContainerState, Phase};
use tokio::time::{Instant, sleep};

use super::{CALL_LIMIT, Kubelet, RUN_LIMIT, Running, plain_container};

impl Kubelet {
    /// The life of two pods, of which one comes out of the other.
    pub async fn live_twice(mut self) {
        let directories = tempfile::tempdir().expect("a directory can be made");
        let mut other = Kubelet::new(self.world.clone(), self.number + OTHERS);
        if let Some(running) = self.running().await
            && let Some(checkpoint) = self.written_down(&running, directories.path()).await
        {
            self.goes_on(&running, &checkpoint).await;
            other.comes_out_of(&checkpoint, &running).await;
            self.goes_on(&running, &checkpoint).await;
        }
        other.clean_up().await;
        self.clean_up().await;
    }

    async fn running(&mut self) -> Option<Running> {
        let sandbox = self.run().await?;
        let container = self.plain(&sandbox).await?;
        let status = self.engine().await.sandbox(&sandbox)?;
        Some(Running { sandbox, machine: status.machine?.id.0, container })
    }

    async fn plain(&mut self, sandbox: &SandboxId) -> Option<ContainerId> {
        let answer = self
            .call("create container", CALL_LIMIT, |engine| {
                let sandbox = sandbox.clone();
                async move { engine.create_container(&sandbox, plain_container()).await }
            })
            .await;
        let id = answer.ok()?;
        self.start(&id).await.then_some(id)
    }

    /// Asks again as long as its machine cannot be reached.
    async fn start(&mut self, id: &ContainerId) -> bool {
        self.until_done("start container", |engine, _| {
            let id = id.clone();
            async move { engine.start_container(&id).await }
        })
        .await
    }

    /// Each try has a directory of its own: what a dead engine left in one is nobody's.
    async fn written_down(&self, running: &Running, directories: &Path) -> Option<PathBuf> {
        let number = AtomicU32::new(0);
        let at = |number: u32| directories.join(number.to_string());
        for _ in 0..TRIES {
            let answer = self
                .call("checkpoint", CALL_LIMIT, |engine| {
                    let directory = at(number.fetch_add(1, Ordering::SeqCst) + 1);
                    let (sandbox, container) = (running.sandbox.clone(), running.container.clone());
                    async move {
                        std::fs::create_dir(&directory).expect("a directory can be made");
                        engine.checkpoint_sandbox(&sandbox, &[container], directory).await
                    }
                })
                .await;
            if answer.is_ok() {
                return Some(at(number.load(Ordering::SeqCst)));
            }
            // A session that broke comes back.
            sleep(Duration::from_secs(2)).await;
        }
        self.broken("a pod could not be written down");
        None
    }

    /// The pod runs, in its machine, and its agent is nobody who stands in the checkpoint.
    async fn goes_on(&self, running: &Running, checkpoint: &Path) {
        let machine = checkpoint.join("machine");
        let written = self.world.fleet.written_name(&machine.display().to_string());
        if written.is_none() || self.world.fleet.name_of(&running.machine) == written {
            self.broken("an agent kept the name that stands in a checkpoint");
        }
        let begin = Instant::now();
        while self.world.fleet.stands_still(&running.machine) {
            if begin.elapsed() > GO_ON_LIMIT {
                return self.broken("containers stand still after a checkpoint");
            }
            sleep(Duration::from_millis(200)).await;
        }
        let engine = self.engine().await;
        let status = engine.sandbox(&running.sandbox);
        let there = status.and_then(|status| Some((status.phase, status.machine?.id.0)));
        if there != Some((Phase::Ready, running.machine.clone())) {
            self.broken(&format!("a pod that was written down is {there:?}"));
        }
        let state = engine.container(&running.container).map(|status| status.state);
        if state != Some(ContainerState::Running) {
            self.broken(&format!("a container of a pod that was written down is {state:?}"));
        }
    }

    async fn comes_out_of(&mut self, checkpoint: &Path, source: &Running) {
        for _ in 0..TRIES {
            let answer = self
                .call("restore", RUN_LIMIT, |engine| {
                    let (spec, directory) = (self.sandbox_spec(), checkpoint.to_owned());
                    let containers = vec![plain_container()];
                    async move { engine.restore_sandbox(spec, containers, directory).await }
                })
                .await;
            match answer {
                Ok((sandbox, containers)) => {
                    let Some((_, container)) = containers.into_iter().next() else {
                        return self.broken("a pod was restored without its container");
                    };
                    let status = self.engine().await.sandbox(&sandbox);
                    let machine = status.and_then(|status| status.machine);
                    let Some(machine) = machine.map(|machine| machine.id.0) else {
                        return self.broken("a pod that was restored has no machine");
                    };
                    if container == source.container || machine == source.machine {
                        self.broken("a pod that was restored has what is another's");
                    }
                    if !self.start(&container).await {
                        self.broken("a container that was restored does not start");
                    }
                    let running = Running { sandbox, machine, container };
                    return self.goes_on(&running, checkpoint).await;
                }
                // The answer may have died with its engine, and the pod may be there or on its way out.
                Err(_) => {
                    self.clean_up().await;
                    sleep(Duration::from_secs(5)).await;
                }
            }
        }
        self.broken("no pod came out of a checkpoint");
    }
}

/// Tells the pods that come out of others from these.
const OTHERS: usize = 100;
const TRIES: u32 = 24;
/// A daemon that comes back tells them to go on when its session is open again.
const GO_ON_LIMIT: Duration = Duration::from_secs(120);
