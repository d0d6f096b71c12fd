//! Which size of machine a pod gets. Pure.

use infranetes_sdk::pod::{MachineType, PlanRequest, PlanResponse};

use crate::config::TypeEntry;
use crate::convert;
use crate::error::QemuError;

/// A size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) name: String,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_mib: u64,
}

/// What sizes there may be.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) types: Vec<TypeEntry>,
    pub(crate) floor_mib: u64,
    pub(crate) max_cpus: u32,
    pub(crate) max_memory_mib: u64,
}

impl Size {
    /// CPUs that QEMU shows to the guest.
    pub(crate) fn cpus(&self) -> u64 {
        self.cpu_millis.div_ceil(1000).max(1)
    }
}

impl Sizes {
    /// The size for a pod, and why.
    pub(crate) fn plan(&self, request: &PlanRequest) -> Result<PlanResponse, QemuError> {
        refuse_what_is_not_there(request)?;
        let cpu_millis =
            if request.cpu_millis == 0 { DEFAULT_CPU_MILLIS } else { request.cpu_millis };
        let memory_mib = match request.memory_bytes.div_ceil(MIB) {
            0 => DEFAULT_MEMORY_MIB,
            memory_mib => memory_mib,
        };
        let candidates = self.candidates(request, cpu_millis, memory_mib)?;
        let Some(best) = candidates.first() else {
            return Err(QemuError::Invalid(format!(
                "no machine type has {cpu_millis} CPU millis and {memory_mib} MiB of memory"
            )));
        };
        let why = format!(
            "{} has {} CPUs and {} MiB, for {} and {}",
            best.name,
            best.cpus(),
            best.memory_mib,
            asked(request.cpu_millis, "CPU millis", DEFAULT_CPU_MILLIS),
            asked(request.memory_bytes.div_ceil(MIB), "MiB", DEFAULT_MEMORY_MIB),
        );
        let candidates = candidates.iter().map(convert::machine_type).collect();
        Ok(PlanResponse { candidates, why })
    }

    /// The size that a `create` names.
    pub(crate) fn resolve(&self, wanted: Option<&MachineType>) -> Result<Size, QemuError> {
        let Some(wanted) = wanted else {
            return Err(QemuError::Invalid("the request names no machine type".to_owned()));
        };
        if !wanted.zone.is_empty() || wanted.spot || wanted.gpus > 0 {
            return Err(QemuError::Invalid("this node has no zones, spot or GPUs".to_owned()));
        }
        self.by_name(&wanted.name)
    }

    fn candidates(
        &self,
        request: &PlanRequest,
        cpu_millis: u64,
        memory_mib: u64,
    ) -> Result<Vec<Size>, QemuError> {
        if !request.machine_type.is_empty() {
            let fixed = self.by_name(&request.machine_type)?;
            // A pod that does not say what it needs takes what its profile fixes.
            let fits = fixed.cpu_millis >= request.cpu_millis
                && fixed.memory_mib >= request.memory_bytes.div_ceil(MIB);
            return Ok(fits.then_some(fixed).into_iter().collect());
        }
        if self.types.is_empty() {
            return self.cut(cpu_millis, memory_mib).map(|size| vec![size]);
        }
        let mut fitting: Vec<Size> = self
            .types
            .iter()
            .filter(|entry| entry.cpu_millis >= cpu_millis && entry.memory_mib >= memory_mib)
            .map(Size::from)
            .collect();
        fitting.sort_by_key(|size| (size.memory_mib, size.cpu_millis));
        Ok(fitting)
    }

    /// A size cut to fit: whole CPUs, memory in steps.
    fn cut(&self, cpu_millis: u64, memory_mib: u64) -> Result<Size, QemuError> {
        let cpus = cpu_millis.div_ceil(1000);
        let memory_mib = memory_mib.max(self.floor_mib).div_ceil(STEP_MIB).saturating_mul(STEP_MIB);
        if cpus > u64::from(self.max_cpus) || memory_mib > self.max_memory_mib {
            return Err(QemuError::Invalid(format!(
                "{cpus} CPUs and {memory_mib} MiB are asked for, and a machine has at most {} CPUs and {} MiB",
                self.max_cpus, self.max_memory_mib
            )));
        }
        Ok(Size { name: cut_name(cpus, memory_mib), cpu_millis: cpus * 1000, memory_mib })
    }

    fn by_name(&self, name: &str) -> Result<Size, QemuError> {
        if let Some(entry) = self.types.iter().find(|entry| entry.name == name) {
            return Ok(Size::from(entry));
        }
        let cut = parse_cut_name(name).filter(|_| self.types.is_empty());
        let size = cut.and_then(|(cpus, mib)| self.cut(cpus.checked_mul(1000)?, mib).ok());
        // A name that rounding would change was never given out.
        size.filter(|size| size.name == name)
            .ok_or_else(|| QemuError::Invalid(format!("there is no machine type {name:?}")))
    }
}

impl From<&TypeEntry> for Size {
    fn from(entry: &TypeEntry) -> Self {
        Self {
            name: entry.name.clone(),
            cpu_millis: entry.cpu_millis,
            memory_mib: entry.memory_mib,
        }
    }
}

fn refuse_what_is_not_there(request: &PlanRequest) -> Result<(), QemuError> {
    if !request.architecture.is_empty() && request.architecture != ARCHITECTURE {
        let wanted = &request.architecture;
        return Err(QemuError::Invalid(format!(
            "the architecture is {wanted:?}, and machines of this node are {ARCHITECTURE}"
        )));
    }
    if request.gpus > 0 {
        return Err(QemuError::Invalid("machines of this node have no GPUs".to_owned()));
    }
    if request.spot {
        return Err(QemuError::Unsupported(
            "machines of this node cannot be had as spot".to_owned(),
        ));
    }
    if !request.zones.is_empty() {
        return Err(QemuError::Invalid("this node has no zones".to_owned()));
    }
    match request.annotations.keys().min() {
        Some(key) => Err(QemuError::Invalid(format!("the annotation {key:?} means nothing here"))),
        None => Ok(()),
    }
}

fn asked(amount: u64, unit: &str, default: u64) -> String {
    match amount {
        0 => format!("{default} {unit} by default"),
        amount => format!("{amount} {unit} asked for"),
    }
}

fn cut_name(cpus: u64, memory_mib: u64) -> String {
    format!("qemu-{cpus}c-{memory_mib}m")
}

fn parse_cut_name(name: &str) -> Option<(u64, u64)> {
    let (cpus, memory) = name.strip_prefix("qemu-")?.strip_suffix('m')?.split_once("c-")?;
    Some((cpus.parse().ok()?, memory.parse().ok()?))
}

/// In the words of OCI images.
pub(crate) const ARCHITECTURE: &str = "amd64";
pub(crate) const MIB: u64 = 1 << 20;
const DEFAULT_CPU_MILLIS: u64 = 1000;
const DEFAULT_MEMORY_MIB: u64 = 512;
const STEP_MIB: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(types: &[(&str, u64, u64)]) -> Sizes {
        let types = types
            .iter()
            .map(|(name, cpu_millis, memory_mib)| TypeEntry {
                name: (*name).to_owned(),
                cpu_millis: *cpu_millis,
                memory_mib: *memory_mib,
            })
            .collect();
        Sizes { types, floor_mib: 256, max_cpus: 8, max_memory_mib: 16 * 1024 }
    }

    fn wish(cpu_millis: u64, memory_mib: u64) -> PlanRequest {
        PlanRequest { cpu_millis, memory_bytes: memory_mib * MIB, ..Default::default() }
    }

    #[test]
    fn sizes_are_cut_to_fit() {
        let sizes = sizes(&[]);
        for (cpu_millis, memory_mib, name) in [
            (0, 0, "qemu-1c-512m"),
            (1, 1, "qemu-1c-256m"),
            (1500, 300, "qemu-2c-320m"),
            (8000, 16 * 1024, "qemu-8c-16384m"),
        ] {
            let plan = sizes.plan(&wish(cpu_millis, memory_mib)).expect("a plan");
            assert_eq!(plan.candidates[0].name, name);
            assert!(plan.candidates[0].cpu_millis >= cpu_millis);
            let resolved = sizes.resolve(Some(&plan.candidates[0])).expect("known");
            assert_eq!(resolved.memory_mib * MIB, plan.candidates[0].memory_bytes);
        }
    }

    #[test]
    fn configured_types_are_tried_smallest_first() {
        let sizes = sizes(&[("l", 4000, 4096), ("s", 1000, 512), ("m", 2000, 1024)]);
        let plan = sizes.plan(&wish(1000, 600)).expect("a plan");
        let names: Vec<_> = plan.candidates.iter().map(|size| size.name.as_str()).collect();
        assert_eq!(names, ["m", "l"]);
        let fixed = PlanRequest { machine_type: "l".to_owned(), ..wish(1000, 600) };
        assert_eq!(sizes.plan(&fixed).expect("a plan").candidates[0].name, "l");
    }

    #[test]
    fn what_nothing_fits_is_invalid() {
        for (types, request) in [
            (vec![], wish(9000, 1)),
            (vec![], wish(1, 17 * 1024)),
            (vec![], wish(u64::MAX, u64::MAX / MIB / 2)),
            (vec![("s", 1000, 512)], wish(2000, 1)),
            (vec![], PlanRequest { gpus: 1, ..Default::default() }),
            (vec![], PlanRequest { architecture: "arm64".to_owned(), ..Default::default() }),
            (vec![], PlanRequest { machine_type: "qemu-1c-257m".to_owned(), ..Default::default() }),
            (vec![], PlanRequest { machine_type: "s".to_owned(), ..Default::default() }),
            (
                vec![("s", 1000, 512)],
                PlanRequest { machine_type: "s".to_owned(), ..wish(1000, 600) },
            ),
        ] {
            let error = sizes(&types).plan(&request).expect_err("refused");
            assert!(matches!(error, QemuError::Invalid(_)), "{error}");
        }
    }
}
