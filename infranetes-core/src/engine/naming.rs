//! Names, tokens and tags: how a machine says whose it is, in an alphabet that all clouds accept.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::engine::config::EngineConfig;
use crate::ids::SandboxId;
use crate::spec::PodIdentity;

/// Tag with the cluster's name.
pub(crate) const TAG_CLUSTER: &str = "infranetes-cluster";
/// Tag with the node's name.
pub(crate) const TAG_NODE: &str = "infranetes-node";
/// Tag with the start of the sandbox's id.
pub(crate) const TAG_SANDBOX: &str = "infranetes-sandbox";

/// The name and the idempotency token of the `attempt`-th machine of a sandbox.
///
/// Both derive from the pod, its attempt, the sandbox and the try, so that asking again always means the same machine. The
/// sandbox's id is part of it: a pod whose record was lost must never be given the machine of the lost record, whose agent
/// would not trust it.
pub(crate) fn machine_name_and_token(
    pod: &PodIdentity,
    sandbox: &SandboxId,
    attempt: u32,
) -> (String, String) {
    let mut hash = Sha256::new();
    for part in [pod.uid.as_bytes(), &pod.attempt.to_be_bytes(), sandbox.as_str().as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(attempt.to_be_bytes());
    let digest = hex::encode(hash.finalize());
    let readable: String = pod
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(READABLE_MAX)
        .collect();
    let readable = readable.trim_matches('-');
    let separator = if readable.is_empty() { "" } else { "-" };
    (format!("infra-{readable}{separator}{}", &digest[..20]), digest[20..52].to_owned())
}

/// The tag value of a sandbox: 63 characters are too few for an id, half of it is unique still.
pub(crate) fn sandbox_tag(sandbox: &SandboxId) -> String {
    sandbox.as_str()[..32].to_owned()
}

/// Tags of everything that this node owns.
pub(crate) fn node_tags(config: &EngineConfig) -> HashMap<String, String> {
    HashMap::from([
        (TAG_CLUSTER.to_owned(), config.cluster.clone()),
        (TAG_NODE.to_owned(), config.node.clone()),
    ])
}

/// Tags of a sandbox's machines.
pub(crate) fn sandbox_tags(config: &EngineConfig, sandbox: &SandboxId) -> HashMap<String, String> {
    let mut tags = node_tags(config);
    tags.insert(TAG_SANDBOX.to_owned(), sandbox_tag(sandbox));
    tags
}

/// Whether clouds take this as a tag value.
pub(crate) fn is_tag_value(text: &str) -> bool {
    let letter = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    !text.is_empty() && text.len() <= 63 && text.bytes().all(letter)
}

/// How much of the pod's name shows in the machine's.
const READABLE_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, attempt: u32) -> PodIdentity {
        PodIdentity { name: name.into(), namespace: "default".into(), uid: uid.into(), attempt }
    }

    #[test]
    fn names_fit_every_cloud_and_differ_with_pod_attempt_sandbox_and_try() {
        let sandboxes = [SandboxId::from_random([1; 32]), SandboxId::from_random([2; 32])];
        let mut seen = std::collections::BTreeSet::new();
        let long = "x".repeat(250);
        for name in ["web", "", "Ünïcode.name", "---", &long] {
            for (uid, attempt) in [("u1", 0), ("u1", 1), ("u2", 0)] {
                for sandbox in &sandboxes {
                    for tries in [1, 2] {
                        let (machine, token) =
                            machine_name_and_token(&pod(name, uid, attempt), sandbox, tries);
                        let again =
                            machine_name_and_token(&pod(name, uid, attempt), sandbox, tries);
                        assert_eq!((machine.clone(), token.clone()), again);
                        assert!(machine.len() <= 63, "{machine}");
                        let ok = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
                        assert!(machine.chars().all(ok), "{machine}");
                        assert!(seen.insert((name, token)), "{machine}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sandbox_fits_into_a_tag() {
        assert!(is_tag_value(&sandbox_tag(&SandboxId::from_random([0xff; 32]))));
        for bad in ["", "UPPER", "dot.ted", &"x".repeat(64)] {
            assert!(!is_tag_value(bad), "{bad}");
        }
    }
}
