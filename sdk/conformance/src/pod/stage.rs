//! What the checks of machines share: the provider, the subject, the machines made so far.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use infranetes_sdk::pod::{
    CreateRequest, DescribePodRequest, DestroyRequest, GetRequest, ListRequest, Machine,
    MachineState, MachineType, Network, PodCapabilities, SweepRequest,
};
use infranetes_sdk::{CallContext, ErrorKind, PodProvider};

use super::PodSubject;
use super::fault::{Fault, FaultInjector, FaultyCall};
use crate::check::{Outcome, Stop, context, ensure, eventually, ok, require, run_name};

pub(super) struct Stage {
    pub(super) provider: Arc<dyn PodProvider>,
    pub(super) subject: PodSubject,
    /// Makes the cloud fail, where that can be done.
    pub(super) faults: Option<Arc<dyn FaultInjector>>,
    run: String,
    requests: AtomicUsize,
    /// The machine that the checks of one life share, and what it was made from.
    main: Mutex<Option<(CreateRequest, Machine)>>,
    /// Everything that was ever made.
    made: Mutex<Vec<String>>,
}

impl Stage {
    pub(super) fn new(provider: Arc<dyn PodProvider>, subject: PodSubject) -> Self {
        Self {
            provider,
            subject,
            faults: None,
            run: run_name(),
            requests: AtomicUsize::new(0),
            main: Mutex::default(),
            made: Mutex::default(),
        }
    }

    /// Whether the next such call goes wrong.
    pub(super) fn inject(&self, call: FaultyCall, fault: Fault) -> bool {
        self.faults.as_ref().is_some_and(|faults| faults.inject(call, fault))
    }

    pub(super) fn inject_or_skip(&self, call: FaultyCall, fault: Fault) -> Outcome {
        let injected = self.inject(call, fault);
        require(injected, &format!("the injector cannot make {call:?} go wrong as {fault:?}"))
    }

    pub(super) fn ctx(&self) -> CallContext {
        context(&self.subject.limits)
    }

    pub(super) async fn capabilities(&self) -> Outcome<PodCapabilities> {
        ok("describe", self.provider.describe(self.ctx(), DescribePodRequest {}).await)
    }

    /// The best machine type for the subject's wish.
    pub(super) async fn machine_type(&self) -> Outcome<MachineType> {
        let plan = ok("plan", self.provider.plan(self.ctx(), self.subject.plan.clone()).await)?;
        let first = plan.candidates.into_iter().next();
        first.ok_or_else(|| Stop::Broken("plan answered no candidate".into()))
    }

    /// A new wish for a machine, with a token, a name and a tag of its own.
    pub(super) async fn request(&self) -> Outcome<CreateRequest> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut tags = self.run_tags();
        tags.insert("conformance-number".into(), number.to_string());
        Ok(CreateRequest {
            token: format!("{}-{number}", self.run),
            name: format!("conformance-{}-{number}", self.run),
            machine_type: Some(self.machine_type().await?),
            image: self.subject.image.clone(),
            user_data: self.subject.user_data.clone(),
            tags,
            network: Some(self.network().await?),
            disks: Vec::new(),
            checkpoint: String::new(),
        })
    }

    async fn network(&self) -> Outcome<Network> {
        if let Some(network) = &self.subject.network {
            return Ok(network.clone());
        }
        let modes = self.capabilities().await?.address_modes;
        let mode = modes.first().copied();
        let address_mode =
            mode.ok_or_else(|| Stop::Broken("describe names no address mode".into()))?;
        Ok(Network { address_mode, ..Network::default() })
    }

    /// The tags that every machine of this run carries.
    pub(super) fn run_tags(&self) -> HashMap<String, String> {
        HashMap::from([("conformance-run".into(), self.run.clone())])
    }

    /// A machine for `request`, to be removed at the end.
    pub(super) async fn create(&self, request: &CreateRequest) -> Outcome<Machine> {
        let machine = ok("create", self.provider.create(self.ctx(), request.clone()).await)?;
        ensure(!machine.id.is_empty(), || "create answered a machine without an id".into())?;
        self.remember(&machine.id);
        Ok(machine)
    }

    pub(super) fn remember(&self, id: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    pub(super) fn made(&self) -> Vec<String> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_main(&self, request: CreateRequest, machine: Machine) {
        *self.main.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, machine));
    }

    /// The machine of the checks of one life.
    pub(super) fn main(&self) -> Outcome<(CreateRequest, Machine)> {
        let main = self.main.lock().unwrap_or_else(PoisonError::into_inner).clone();
        main.ok_or_else(|| Stop::Skipped("there is no machine, because create failed".into()))
    }

    pub(super) async fn get(&self, id: &str) -> Outcome<Machine> {
        ok("get", self.provider.get(self.ctx(), GetRequest { id: id.into() }).await)
    }

    /// Waits until a machine is in `state`; a failed one never will be.
    pub(super) async fn wait_for_state(&self, id: &str, state: MachineState) -> Outcome<Machine> {
        eventually(&format!("{state:?}"), self.subject.limits.start, || async {
            match self.provider.get(self.ctx(), GetRequest { id: id.into() }).await {
                Ok(machine) if machine.state() == state => Ok(machine),
                Ok(machine) => Err(format!("it is {:?}: {:?}", machine.state(), machine.failure)),
                Err(error) => Err(format!("get answers {error:?}")),
            }
        })
        .await
    }

    /// Every machine that carries `tags`, from all pages.
    pub(super) async fn list(
        &self,
        tags: &HashMap<String, String>,
        page_size: u32,
    ) -> Outcome<Vec<Machine>> {
        let mut machines = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListRequest { tags: tags.clone(), page_token, page_size };
            let page = ok("list", self.provider.list(self.ctx(), request).await)?;
            let length = page.machines.len();
            ensure(page_size == 0 || length <= page_size as usize, || {
                format!("a page of {page_size} has {length} entries")
            })?;
            machines.extend(page.machines);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(machines);
            }
        }
        Err(Stop::Broken(format!("list has more than {PAGES_MAX} pages")))
    }

    pub(super) async fn destroy(&self, id: &str) -> Outcome {
        let request = DestroyRequest { id: id.into() };
        ok("destroy", self.provider.destroy(self.ctx(), request).await).map(drop)
    }

    /// Waits until nothing shows a destroyed machine.
    pub(super) async fn wait_until_gone(&self, id: &str) -> Outcome {
        eventually("gone", self.subject.limits.settle, || async {
            match self.provider.get(self.ctx(), GetRequest { id: id.into() }).await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                other => return Err(format!("get answers {other:?}")),
            }
            match self.list(&self.run_tags(), 0).await {
                Ok(machines) if machines.iter().all(|machine| machine.id != id) => Ok(()),
                Ok(_) => Err("list still shows it".into()),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }

    /// Waits until exactly `count` machines with the tag of this number are listed, and none is half-hidden.
    pub(super) async fn wait_for_count(
        &self,
        tags: &HashMap<String, String>,
        counts: std::ops::RangeInclusive<usize>,
    ) -> Outcome<Vec<Machine>> {
        let what = format!("{counts:?} machines in the list");
        eventually(&what, self.subject.limits.settle, || async {
            match self.list(tags, 0).await {
                Ok(machines) if counts.contains(&machines.len()) => Ok(machines),
                Ok(machines) => Err(format!("there are {}", machines.len())),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }

    /// Waits until `sweep` shows nothing of this run, where the provider has it.
    pub(super) async fn wait_until_swept(&self) -> Outcome {
        if !self.capabilities().await?.sweep {
            return Ok(());
        }
        eventually("an empty sweep", self.subject.limits.settle, || async {
            let request = SweepRequest { tags: self.run_tags() };
            match self.provider.sweep(self.ctx(), request).await {
                Ok(response) if response.leftovers.is_empty() => Ok(()),
                Ok(response) => Err(format!("sweep shows {:?}", response.leftovers)),
                Err(error) => Err(format!("sweep answers {error:?}")),
            }
        })
        .await
    }
}

/// A list that never ends is broken.
const PAGES_MAX: usize = 1000;
