//! The specs, one file for each noun of CRI.
//!
//! Names and meaning are those of the public suite, so that results can be compared; its benchmarks, and what needs AppArmor
//! or NRI, are not here. How a spec finds out is ours.

mod container;
mod idempotence;
mod images;
mod log;
mod metrics;
mod mount;
mod multiple;
mod network;
mod node;
mod sandbox;
mod security;
mod stats;
mod streaming;

use super::spec::Spec;

/// All of them, in the order in which they are listed.
pub(super) fn all() -> Vec<Spec> {
    let groups = [
        node::specs(),
        sandbox::specs(),
        metrics::specs(),
        container::specs(),
        stats::specs(),
        log::specs(),
        mount::specs(),
        idempotence::specs(),
        images::specs(),
        multiple::specs(),
        network::specs(),
        streaming::specs(),
        security::specs(),
    ];
    groups.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_specs_of_the_public_suite_are_here_once() {
        let all = all();
        let names: BTreeSet<String> = all.iter().map(Spec::full_name).collect();
        assert_eq!(names.len(), all.len(), "a name is there twice");
        assert_eq!(all.len(), 115);
        assert_eq!(all.iter().filter(|spec| spec.is_conformance()).count(), 52);
    }
}
