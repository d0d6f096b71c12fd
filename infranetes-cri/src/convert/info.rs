//! What `verbose` answers: JSON for people, by topic. Never a secret, and no environment.

use std::collections::BTreeMap;
use std::time::SystemTime;

use infranetes_core::engine::HandlerStatus;
use infranetes_core::status::{ContainerStatus, SandboxStatus, Timeline};
use serde_json::{Value, json};

/// Topics of a sandbox: its machine, its phase, and where its start-up time went.
pub fn sandbox_info(sandbox: &SandboxStatus) -> BTreeMap<String, String> {
    let machine = sandbox.machine.as_ref().map(|machine| {
        json!({
            "id": machine.id.to_string(),
            "provider": machine.provider,
            "machineType": machine.machine_type,
            "why": machine.why,
            "kernelRelease": machine.kernel_release,
        })
    });
    topics([
        ("phase", json!(format!("{:?}", sandbox.phase))),
        ("reason", json!(sandbox.reason)),
        ("machine", machine.unwrap_or(Value::Null)),
        ("timeline", timeline(&sandbox.timeline)),
    ])
}

/// Topics of a container: when it reached each step, and those of its sandbox's machine.
pub fn container_info(
    container: &ContainerStatus,
    sandbox: Option<&SandboxStatus>,
) -> BTreeMap<String, String> {
    let steps = [
        ("wanted", container.wanted_at),
        ("imageReady", container.image_ready_at),
        ("created", Some(container.created_at)),
        ("started", container.started_at),
        ("finished", container.finished_at),
    ];
    let machine = sandbox.map_or(Value::Null, |sandbox| timeline(&sandbox.timeline));
    topics([
        ("sandboxID", json!(container.sandbox.to_string())),
        ("timeline", moments(&steps)),
        ("sandboxTimeline", machine),
    ])
}

/// Topics of the runtime: its handlers, and why those that cannot run pods cannot.
pub fn runtime_info(version: &str, handlers: &[HandlerStatus]) -> BTreeMap<String, String> {
    let handler = |handler: &HandlerStatus| {
        json!({
            "name": handler.name,
            "provider": handler.provider,
            "ready": handler.problem.is_none(),
            "problem": handler.problem,
        })
    };
    topics([("version", json!(version)), ("handlers", handlers.iter().map(handler).collect())])
}

fn timeline(timeline: &Timeline) -> Value {
    moments(&[
        ("wanted", timeline.wanted),
        ("allocated", timeline.allocated),
        ("booted", timeline.booted),
        ("kernelStarted", timeline.kernel_started),
        ("agentStarted", timeline.agent_started),
        ("enrolled", timeline.enrolled),
        ("bound", timeline.bound),
        ("ready", timeline.ready),
    ])
}

/// `[["step", milliseconds since the first], …]`, in the order in which they were reached.
fn moments(steps: &[(&str, Option<SystemTime>)]) -> Value {
    let mut reached: Vec<_> = steps.iter().filter_map(|(name, at)| Some((name, (*at)?))).collect();
    reached.sort_by_key(|(_, at)| *at);
    let Some((_, first)) = reached.first().copied() else { return json!([]) };
    let after = |at: SystemTime| at.duration_since(first).unwrap_or_default().as_millis();
    reached
        .iter()
        .map(|(name, at)| json!([name, u64::try_from(after(*at)).unwrap_or(u64::MAX)]))
        .collect()
}

fn topics<const N: usize>(topics: [(&str, Value); N]) -> BTreeMap<String, String> {
    topics.into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_timeline_counts_from_the_wish_in_the_order_of_time() {
        let at = |ms| Some(UNIX_EPOCH + Duration::from_millis(ms));
        let steps = Timeline {
            wanted: at(1000),
            booted: at(1500),
            kernel_started: at(1200),
            ..Timeline::default()
        };
        assert_eq!(
            timeline(&steps).to_string(),
            r#"[["wanted",0],["kernelStarted",200],["booted",500]]"#
        );
        assert_eq!(timeline(&Timeline::default()).to_string(), "[]");
        // The order of time is not that of the list, and what came first is what is counted from.
        assert_eq!(
            moments(&[("created", at(1500)), ("started", None), ("imageReady", at(1300))])
                .to_string(),
            r#"[["imageReady",0],["created",200]]"#
        );
    }
}
