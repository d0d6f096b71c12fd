//! What a sandbox does with requests: admission decides, and the goal changes.

use std::sync::Arc;

use super::SandboxTask;
use crate::engine::admission::{Admission, Denial, SandboxWish, admit, standing};
use crate::engine::board::{Reply, Request};
use crate::engine::containers::{Adopted, unreachable};
use crate::engine::life::{Aspect, Failure, Goal, Network};
use crate::engine::plan;
use crate::error::{Cause, EngineError};
use crate::ids::SandboxId;
use crate::spec::SandboxResources;
use crate::status::{Phase, Timeline};

impl SandboxTask {
    pub(super) async fn admit(&mut self, request: Request) {
        match request {
            Request::Run(reply) => self.admit_run(reply).await,
            Request::Stop(reply) => self.admit_end(SandboxWish::Stop, reply).await,
            Request::Remove(reply) => self.admit_end(SandboxWish::Remove, reply).await,
            Request::CreateContainer(spec, reply) => {
                match admit(standing(&self.life), SandboxWish::Host) {
                    Admission::Deny(denial) => {
                        let _ = reply.send(Err(self.denied(denial)));
                    }
                    _ => {
                        let session = self.link.borrow().clone();
                        self.containers.create(&self.life, session.as_ref(), *spec, reply);
                    }
                }
            }
            Request::Container(id, request, reply) => {
                let session = self.link.borrow().clone();
                let machine_is = self.life.machine.as_ref().is_some_and(|machine| !machine.doomed);
                self.containers.ask(&id, request, session.as_ref(), machine_is, reply);
            }
            Request::UpdateContainer(id, resources, reply) => {
                let session = self.link.borrow().clone();
                self.containers.update(&id, *resources, session.as_ref(), reply);
            }
            Request::Resize(resources, overhead, reply) => {
                let _ = reply.send(self.resize(resources, overhead).await);
            }
            Request::Look(reply) => {
                let (life, containers) = (self.life.clone(), self.containers.all());
                let _ = reply.send(Ok(Box::new(Aspect { life, containers })));
            }
            Request::Adopt(adopted, reply) => {
                let _ = reply.send(self.adopt(adopted).await);
            }
            Request::LeaveName(reply) => {
                let _ = reply.send(self.leave_name().await);
            }
            Request::TakeName(reply) => {
                let _ = reply.send(self.take_name().await);
            }
            Request::Refresh => {
                let session = self.link.borrow().clone();
                self.containers.refresh(session.as_ref());
            }
            // While its session is away it looks anyway.
            Request::Doubt => self.seen.doubted = self.life.was_ready && self.seen.bound,
        }
    }

    /// Takes over the containers that woke up with its machine.
    async fn adopt(&mut self, adopted: Vec<Adopted>) -> Result<(), EngineError> {
        if let Admission::Deny(denial) = admit(standing(&self.life), SandboxWish::Host) {
            return Err(self.denied(denial));
        }
        let session = self.link.borrow().clone().ok_or_else(|| unreachable(&self.life.id))?;
        let spec = self.life.spec.clone();
        self.containers.adopt(&session, &spec, adopted).await?;
        if let Some(origin) = &mut self.life.origin {
            origin.done = true;
        }
        self.save().await
    }

    /// Takes over what the pod asks for now. What was not written down does not hold.
    async fn resize(
        &mut self,
        resources: Option<SandboxResources>,
        overhead: Option<SandboxResources>,
    ) -> Result<(), EngineError> {
        if let Admission::Deny(denial) = admit(standing(&self.life), SandboxWish::Host) {
            return Err(self.denied(denial));
        }
        let before = self.life.spec.clone();
        let spec = Arc::make_mut(&mut self.life.spec);
        spec.resources = resources.unwrap_or(spec.resources);
        spec.overhead = overhead.unwrap_or(spec.overhead);
        if let Err(error) = self.save().await {
            self.life.spec = before;
            return Err(error);
        }
        self.publish();
        Ok(())
    }

    pub(super) async fn admit_run(&mut self, reply: Reply<SandboxId>) {
        match admit(standing(&self.life), SandboxWish::Run) {
            Admission::AlreadyDone => {
                let _ = reply.send(Ok(self.life.id.clone()));
            }
            Admission::Deny(denial) => {
                let _ = reply.send(Err(self.denied(denial)));
            }
            Admission::Join => wait_with(&mut self.runs, reply, &self.life.id),
            Admission::Accept => {
                self.life.failure = None;
                self.life.passed_over = 0;
                if self.life.network == Network::Down {
                    self.life.network = Network::Unsettled;
                }
                self.life.timeline =
                    Timeline { wanted: Some(self.node.now()), ..Timeline::default() };
                self.refusal = None;
                if let Err(error) = self.save().await {
                    self.life.failure = Some(Failure {
                        phase: Phase::Intended,
                        cause: Cause::of(error.kind(), &error),
                        console: String::new(),
                    });
                    let _ = reply.send(Err(error));
                    return;
                }
                self.publish();
                wait_with(&mut self.runs, reply, &self.life.id);
            }
        }
    }

    pub(super) async fn admit_end(&mut self, wish: SandboxWish, reply: Reply<()>) {
        let waiters = if wish == SandboxWish::Stop { &mut self.stops } else { &mut self.removes };
        match admit(standing(&self.life), wish) {
            Admission::AlreadyDone => {
                let _ = reply.send(Ok(()));
                return;
            }
            Admission::Deny(denial) => {
                let _ = reply.send(Err(self.denied(denial)));
                return;
            }
            Admission::Join => {
                wait_with(waiters, reply, &self.life.id);
                self.disconnecting.knock.notify_one();
                return;
            }
            Admission::Accept => {}
        }
        let before = self.life.goal;
        self.life.goal = if wish == SandboxWish::Stop { Goal::Stop } else { Goal::Remove };
        match self.save().await {
            Ok(()) => {}
            // A stop is done even where it cannot be written down: after a crash it is asked again.
            Err(_) if wish == SandboxWish::Stop => self.unsaved = true,
            Err(error) => {
                self.life.goal = before;
                let _ = reply.send(Err(error));
                return;
            }
        }
        let waiters = if wish == SandboxWish::Stop { &mut self.stops } else { &mut self.removes };
        wait_with(waiters, reply, &self.life.id);
        if wish == SandboxWish::Remove {
            self.node.board.release_key(&self.life.id);
        }
        self.containers.abandon_coming();
        let ending = EngineError::WrongState {
            subject: format!("sandbox {}", self.life.id),
            state: "ending".to_owned(),
            needed: "it was stopped before it was ready".to_owned(),
        };
        for reply in self.runs.drain(..) {
            let _ = reply.send(Err(ending.echo()));
        }
        self.publish();
    }

    pub(super) fn denied(&self, denial: Denial) -> EngineError {
        let needed = match denial {
            Denial::NotReady => "it is not ready yet",
            Denial::MachineLost => "it has no machine any more; it can be stopped and removed",
            Denial::StoppedForGood => "it was stopped and does not start again",
            Denial::BeingRemoved => "it is being removed",
            Denial::NotRunning | Denial::HasExited | Denial::BeingStarted => "not now",
        };
        EngineError::WrongState {
            subject: format!("sandbox {}", self.life.id),
            state: format!("{:?}", plan::phase(&self.life, &self.seen)).to_lowercase(),
            needed: needed.to_owned(),
        }
    }

    /// Answers those whose wish is fulfilled.
    pub(super) fn settle_waiters(&mut self) {
        let left = self.life.machine.is_some() || self.life.network.may_be();
        if !left && self.life.goal != Goal::Run {
            for reply in self.stops.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
        self.runs.retain(|reply| !reply.is_closed());
        self.stops.retain(|reply| !reply.is_closed());
        self.removes.retain(|reply| !reply.is_closed());
    }
}

fn wait_with<T>(waiters: &mut Vec<Reply<T>>, reply: Reply<T>, id: &SandboxId) {
    if waiters.len() < WAITERS_MAX {
        waiters.push(reply);
    } else {
        let busy = EngineError::Busy(format!("{WAITERS_MAX} calls wait for sandbox {id} already"));
        let _ = reply.send(Err(busy));
    }
}

const WAITERS_MAX: usize = 64;
