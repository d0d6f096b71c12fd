//! The `[check]` table of an instance's file: what the suites have to know about a provider to make something with it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use infranetes_conformance::{ContainerSubject, Limits, PodSubject, VolumeSubject};
use infranetes_sdk::pod::{AddressMode, Network, PlanRequest};
use serde::Deserialize;
use serde_json::Value;

/// One subject for each suite.
#[derive(Debug)]
pub(super) struct Subjects {
    pub(super) pod: PodSubject,
    /// Absent without an image.
    pub(super) container: Option<ContainerSubject>,
    pub(super) volume: VolumeSubject,
}

impl Subjects {
    /// What the table says; all else is as the suites have it.
    pub(super) fn read(check: Option<&Value>) -> anyhow::Result<Subjects> {
        let table = match check {
            None => Table::default(),
            Some(check) => Table::deserialize(check).context("the [check] table is wrong")?,
        };
        let limits = table.limits.limits();
        let container = table.container.subject(&limits)?;
        Ok(Subjects {
            pod: table.pod.subject(&limits)?,
            container,
            volume: table.volume.subject(limits),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    limits: LimitsTable,
    pod: PodTable,
    container: ContainerTable,
    volume: VolumeTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsTable {
    call_ms: Option<u64>,
    start_ms: Option<u64>,
    settle_ms: Option<u64>,
    check_ms: Option<u64>,
}

impl LimitsTable {
    fn limits(&self) -> Limits {
        let usual = Limits::default();
        let or = |own: Option<u64>, usual| own.map_or(usual, Duration::from_millis);
        Limits {
            call: or(self.call_ms, usual.call),
            start: or(self.start_ms, usual.start),
            settle: or(self.settle_ms, usual.settle),
            check: or(self.check_ms, usual.check),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PodTable {
    cpu_millis: Option<u64>,
    memory_bytes: Option<u64>,
    architecture: String,
    machine_type: String,
    zones: Vec<String>,
    image: String,
    user_data: Option<String>,
    network: Option<NetworkTable>,
    has_agent: Option<bool>,
    has_console_output: Option<bool>,
    machines_max: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkTable {
    mode: Mode,
    #[serde(default)]
    namespace_path: String,
    #[serde(default)]
    options: std::collections::HashMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Local,
    Private,
    Public,
    Cni,
}

impl PodTable {
    fn subject(self, limits: &Limits) -> anyhow::Result<PodSubject> {
        let usual = PodSubject::default();
        let machines_max = self.machines_max.unwrap_or(usual.machines_max);
        anyhow::ensure!(
            machines_max >= 2,
            "check.pod.machines_max is {machines_max}: at least 2 are needed"
        );
        Ok(PodSubject {
            plan: PlanRequest {
                cpu_millis: self.cpu_millis.unwrap_or(usual.plan.cpu_millis),
                memory_bytes: self.memory_bytes.unwrap_or(usual.plan.memory_bytes),
                architecture: self.architecture,
                machine_type: self.machine_type,
                zones: self.zones,
                ..usual.plan
            },
            user_data: self.user_data.map_or(usual.user_data, String::into_bytes),
            image: self.image,
            network: self.network.map(NetworkTable::network),
            has_agent: self.has_agent.unwrap_or(usual.has_agent),
            has_console_output: self.has_console_output.unwrap_or(usual.has_console_output),
            machines_max,
            limits: limits.clone(),
        })
    }
}

impl NetworkTable {
    fn network(self) -> Network {
        let mode = match self.mode {
            Mode::Local => AddressMode::Local,
            Mode::Private => AddressMode::Private,
            Mode::Public => AddressMode::Public,
            Mode::Cni => AddressMode::Cni,
        };
        Network {
            address_mode: mode.into(),
            namespace_path: self.namespace_path,
            options: self.options,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ContainerTable {
    image: Option<PathBuf>,
    shell: Option<String>,
    path: Option<String>,
}

impl ContainerTable {
    fn subject(self, limits: &Limits) -> anyhow::Result<Option<ContainerSubject>> {
        let Some(layout) = self.image else { return Ok(None) };
        let mut subject = ContainerSubject::from_oci_layout(&layout).with_context(|| {
            format!("check.container.image: {} cannot be used", layout.display())
        })?;
        if let Some(shell) = self.shell {
            subject.shell = shell;
        }
        if let Some(path) = self.path {
            subject.path = path;
        }
        subject.limits = limits.clone();
        Ok(Some(subject))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct VolumeTable {
    size_bytes: Option<u64>,
    r#type: String,
    zone: String,
}

impl VolumeTable {
    fn subject(self, limits: Limits) -> VolumeSubject {
        let usual = VolumeSubject::default();
        VolumeSubject {
            size_bytes: self.size_bytes.unwrap_or(usual.size_bytes),
            volume_type: self.r#type,
            zone: self.zone,
            limits,
        }
    }
}
