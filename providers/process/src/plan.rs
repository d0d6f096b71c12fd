//! Which size of machine a pod gets: what it asks for. Pure.

use infranetes_sdk::pod::{MachineType, PlanRequest, PlanResponse};

use crate::config::Config;
use crate::convert;
use crate::error::ProcessError;

/// A size. It is a share of the node, not a wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_mib: u64,
}

/// What sizes there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) max_cpu_millis: u64,
    pub(crate) max_memory_mib: u64,
}

impl Size {
    /// Its name, from which `create` reads it again.
    pub(crate) fn name(&self) -> String {
        format!("{PREFIX}{}m-{}mi", self.cpu_millis, self.memory_mib)
    }

    /// The size of a name that `name` gave.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (cpu, memory) = name.strip_prefix(PREFIX)?.split_once("m-")?;
        let cpu_millis = cpu.parse().ok()?;
        let memory_mib = memory.strip_suffix("mi")?.parse().ok()?;
        let size = Self { cpu_millis, memory_mib };
        // One name for each size: neither signs nor zeros in front.
        (size.name() == name).then_some(size)
    }
}

impl Sizes {
    /// As configured, else by what the node has.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            max_cpu_millis: config.max_cpus.map_or((2 * cpus()).max(4), u64::from) * 1000,
            max_memory_mib: config.max_memory_mib.unwrap_or_else(memory_mib),
        }
    }

    /// The size for a pod, and why.
    pub(crate) fn plan(&self, request: &PlanRequest) -> Result<PlanResponse, ProcessError> {
        refuse_what_is_not_there(request)?;
        let asked =
            Size { cpu_millis: request.cpu_millis, memory_mib: request.memory_bytes.div_ceil(MIB) };
        let size = match request.machine_type.as_str() {
            "" => self.check(asked)?,
            name => self.by_name(name)?,
        };
        if size.cpu_millis < asked.cpu_millis || size.memory_mib < asked.memory_mib {
            return Err(ProcessError::Invalid(format!(
                "the machine type {} that the profile fixes is smaller than {} CPU millis and {} MiB",
                size.name(),
                asked.cpu_millis,
                asked.memory_mib
            )));
        }
        let why = format!(
            "processes of this node take {} CPU millis and {} MiB as asked for: a share, not a wall",
            size.cpu_millis, size.memory_mib
        );
        Ok(PlanResponse { candidates: vec![convert::machine_type(size)], why })
    }

    /// The size that a `create` names.
    pub(crate) fn resolve(&self, wanted: Option<&MachineType>) -> Result<Size, ProcessError> {
        let Some(wanted) = wanted else {
            return Err(ProcessError::Invalid("the request names no machine type".to_owned()));
        };
        if !wanted.zone.is_empty() || wanted.spot || wanted.gpus > 0 {
            return Err(ProcessError::Invalid("this node has no zones, spot or GPUs".to_owned()));
        }
        self.by_name(&wanted.name)
    }

    fn by_name(&self, name: &str) -> Result<Size, ProcessError> {
        match Size::parse(name) {
            Some(size) => self.check(size),
            None => Err(ProcessError::Invalid(format!("there is no machine type {name:?}"))),
        }
    }

    fn check(&self, size: Size) -> Result<Size, ProcessError> {
        if size.cpu_millis <= self.max_cpu_millis && size.memory_mib <= self.max_memory_mib {
            return Ok(size);
        }
        Err(ProcessError::Invalid(format!(
            "{} CPU millis and {} MiB are asked for, and a machine of this node has at most {} and {}",
            size.cpu_millis, size.memory_mib, self.max_cpu_millis, self.max_memory_mib
        )))
    }
}

fn refuse_what_is_not_there(request: &PlanRequest) -> Result<(), ProcessError> {
    let wanted = &request.architecture;
    if !wanted.is_empty() && wanted != architecture() {
        let own = architecture();
        return invalid(format!("the architecture is {wanted:?}, and this node is {own}"));
    }
    if request.gpus > 0 {
        return invalid("machines of this node have no GPUs".to_owned());
    }
    if !request.zones.is_empty() {
        return invalid("this node has no zones".to_owned());
    }
    if let Some(key) = request.annotations.keys().min() {
        return invalid(format!("the annotation {key:?} means nothing here"));
    }
    match request.spot {
        true => Err(ProcessError::Unsupported("this node cannot be had as spot".to_owned())),
        false => Ok(()),
    }
}

/// In the words of OCI images.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib = line.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn invalid<T>(message: String) -> Result<T, ProcessError> {
    Err(ProcessError::Invalid(message))
}

pub(crate) const MIB: u64 = 1 << 20;
const PREFIX: &str = "process-";

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { max_cpu_millis: 4000, max_memory_mib: 1024 };

    fn wish(cpu_millis: u64, memory_bytes: u64) -> PlanRequest {
        PlanRequest { cpu_millis, memory_bytes, ..Default::default() }
    }

    #[test]
    fn a_machine_is_as_large_as_the_pod_asks() {
        for (cpu, bytes, name) in [
            (0, 0, "process-0m-0mi"),
            (1500, 256 * MIB, "process-1500m-256mi"),
            (1, 1, "process-1m-1mi"),
            (4000, 1024 * MIB, "process-4000m-1024mi"),
        ] {
            let plan = SIZES.plan(&wish(cpu, bytes)).expect("a plan");
            assert_eq!(plan.candidates[0].name, name);
            assert!(plan.candidates[0].memory_bytes >= bytes);
            let size = SIZES.resolve(plan.candidates.first()).expect("resolved");
            assert_eq!(size.name(), name);
        }
        let fixed = PlanRequest { machine_type: "process-2000m-64mi".to_owned(), ..wish(1000, 1) };
        assert_eq!(SIZES.plan(&fixed).expect("a plan").candidates[0].cpu_millis, 2000);
    }

    #[test]
    fn what_this_node_does_not_have_is_refused() {
        let named = |name: &str| PlanRequest { machine_type: name.to_owned(), ..wish(1000, MIB) };
        for request in [
            wish(4001, 0),
            wish(0, 1025 * MIB),
            wish(u64::MAX, u64::MAX),
            named("process-1m-1mi"),
            named("process-01000m-1mi"),
            named("process-+1000m-1mi"),
            named("m5.large"),
            PlanRequest { architecture: "pdp11".to_owned(), ..wish(1, 1) },
            PlanRequest { zones: vec!["a".to_owned()], ..wish(1, 1) },
            PlanRequest { gpus: 1, ..wish(1, 1) },
            PlanRequest { annotations: [("a".into(), "b".into())].into(), ..wish(1, 1) },
        ] {
            let error = SIZES.plan(&request).expect_err("refused");
            assert!(matches!(error, ProcessError::Invalid(_)), "{error}");
        }
    }
}
