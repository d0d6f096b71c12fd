//! Lists: what a filter of CRI lets through. A shortened id is taken, as people write it at a terminal.

use std::collections::BTreeMap;

use infranetes_core::status::{ContainerStatus, SandboxStatus};

use super::Refusal;
use super::status::{container_state, sandbox_state};
use crate::api::v1;

/// An id as a request has it: whole, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdText(String);

impl IdText {
    /// Takes what `field` says. Empty is refused; a text that can be no id is taken, and finds nothing.
    pub fn parse(field: &str, text: String) -> Result<IdText, Refusal> {
        if text.is_empty() { Err(Refusal::invalid(field, "is missing")) } else { Ok(IdText(text)) }
    }

    /// Finds the one that is meant. More than one is refused.
    pub fn find<T>(
        &self,
        field: &str,
        all: Vec<T>,
        id: impl Fn(&T) -> &str,
    ) -> Result<Option<T>, Refusal> {
        let mut meant = all.into_iter().filter(|item| id(item).starts_with(&self.0));
        let first = meant.next();
        if meant.next().is_some() {
            return Err(Refusal::invalid(
                field,
                format!("{:?} is the beginning of several ids", self.0),
            ));
        }
        Ok(first)
    }

    /// What an error may repeat of it.
    pub fn shown(&self) -> String {
        self.0.chars().take(MAX_SHOWN).collect()
    }
}

/// Which sandboxes are listed.
#[derive(Clone, Debug, Default)]
pub struct SandboxFilter(v1::PodSandboxFilter);

impl SandboxFilter {
    /// Reads a filter; none lets all through.
    pub fn new(filter: Option<v1::PodSandboxFilter>) -> SandboxFilter {
        SandboxFilter(filter.unwrap_or_default())
    }

    /// Reads a filter for stats.
    pub fn of_stats(filter: Option<v1::PodSandboxStatsFilter>) -> SandboxFilter {
        let filter = filter.unwrap_or_default();
        let label_selector = filter.label_selector;
        SandboxFilter(v1::PodSandboxFilter { id: filter.id, label_selector, state: None })
    }

    /// Whether this one is listed.
    pub fn admits(&self, sandbox: &SandboxStatus) -> bool {
        let state = self.0.state.as_ref().map(|wanted| wanted.state);
        sandbox.id.as_str().starts_with(&self.0.id)
            && state.is_none_or(|state| state == sandbox_state(sandbox) as i32)
            && selects(&self.0.label_selector, &sandbox.spec.labels)
    }
}

/// Which containers are listed.
#[derive(Clone, Debug, Default)]
pub struct ContainerFilter(v1::ContainerFilter);

impl ContainerFilter {
    /// Reads a filter; none lets all through.
    pub fn new(filter: Option<v1::ContainerFilter>) -> ContainerFilter {
        ContainerFilter(filter.unwrap_or_default())
    }

    /// Reads a filter for stats.
    pub fn of_stats(filter: Option<v1::ContainerStatsFilter>) -> ContainerFilter {
        let v1::ContainerStatsFilter { id, pod_sandbox_id, label_selector } =
            filter.unwrap_or_default();
        ContainerFilter(v1::ContainerFilter { id, pod_sandbox_id, label_selector, state: None })
    }

    /// Whether this one is listed.
    pub fn admits(&self, container: &ContainerStatus) -> bool {
        let state = self.0.state.as_ref().map(|wanted| wanted.state);
        container.id.as_str().starts_with(&self.0.id)
            && container.sandbox.as_str().starts_with(&self.0.pod_sandbox_id)
            && state.is_none_or(|state| state == container_state(container) as i32)
            && selects(&self.0.label_selector, &container.spec.labels)
    }
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

const MAX_SHOWN: usize = 64;
