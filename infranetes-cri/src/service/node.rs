//! What the kubelet asks of the runtime itself.

use infranetes_core::engine::HandlerStatus;
use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert;

impl Cri {
    pub(super) fn version(&self) -> v1::VersionResponse {
        v1::VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: "infranetes".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }
    }

    pub(super) fn status(&self, request: &v1::StatusRequest) -> v1::StatusResponse {
        let mut handlers = self.engine().handlers();
        for handler in handlers.iter_mut().filter(|handler| handler.problem.is_none()) {
            handler.problem = self.problem_of(&handler.provider);
        }
        let info = if request.verbose {
            convert::runtime_info(env!("CARGO_PKG_VERSION"), &handlers)
        } else {
            Default::default()
        };
        let handler = |handler: &HandlerStatus| v1::RuntimeHandler {
            name: handler.name.clone(),
            // Nothing is mounted below a volume in a machine: read-only is always recursively so.
            features: Some(v1::RuntimeHandlerFeatures {
                user_namespaces: true,
                recursive_read_only_mounts: true,
            }),
        };
        v1::StatusResponse {
            runtime_handlers: handlers.iter().map(handler).collect(),
            status: Some(v1::RuntimeStatus { conditions: conditions(&handlers) }),
            info,
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                ..Default::default()
            }),
        }
    }

    /// Kept for CNI plugins that want to be told; the others have it in their configuration.
    pub(super) fn update_runtime_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, Status> {
        let network = request.runtime_config.and_then(|config| config.network_config);
        let pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
        tracing::info!(%pod_cidr, "the kubelet told the node's part of the pod network");
        let ranges = convert::pod_ranges(&pod_cidr).map_err(convert::from_refusal)?;
        self.engine().use_pod_ranges(&ranges).map_err(convert::from_engine)?;
        Ok(v1::UpdateRuntimeConfigResponse {})
    }

    /// Pods' cgroups on the node hold no processes of ours, so the simplest driver is the right one.
    pub(super) fn runtime_config(&self) -> v1::RuntimeConfigResponse {
        let cgroup_driver = v1::CgroupDriver::Cgroupfs as i32;
        v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver }) }
    }
}

/// The two that decide whether the node is ready, then one for each handler. The node is ready as long as one handler is:
/// a provider that did not load concerns its own pods alone.
fn conditions(handlers: &[HandlerStatus]) -> Vec<v1::RuntimeCondition> {
    let ready = handlers.iter().any(|handler| handler.problem.is_none());
    let mut all = vec![
        condition("RuntimeReady", ready, "NoHandlerReady", runtime_problem(handlers)),
        network_condition(handlers),
    ];
    all.extend(handlers.iter().filter(|handler| !handler.name.is_empty()).map(|handler| {
        let name = format!("HandlerReady:{}", handler.name);
        let problem = handler.problem.clone().unwrap_or_default();
        condition(&name, handler.problem.is_none(), "ProviderNotReady", problem)
    }));
    all
}

/// The node has a pod network as far as its handlers need one. Other pods would run without, but the kubelet knows one
/// condition for all.
fn network_condition(handlers: &[HandlerStatus]) -> v1::RuntimeCondition {
    let problem = handlers.iter().find_map(|handler| handler.network_problem.clone());
    let ready = problem.is_none();
    condition("NetworkReady", ready, "NetworkPluginNotReady", problem.unwrap_or_default())
}

fn runtime_problem(handlers: &[HandlerStatus]) -> String {
    let mut problems: Vec<String> = handlers
        .iter()
        .filter(|handler| !handler.name.is_empty())
        .filter_map(|handler| {
            Some(format!("handler {}: {}", handler.name, handler.problem.as_ref()?))
        })
        .collect();
    if handlers.is_empty() {
        problems.push("the configuration has no handler".to_owned());
    }
    problems.join("; ")
}

/// `message` says what is wrong also where the whole is right.
fn condition(name: &str, status: bool, reason: &str, message: String) -> v1::RuntimeCondition {
    let reason = if status { String::new() } else { reason.to_owned() };
    v1::RuntimeCondition { r#type: name.to_owned(), status, reason, message }
}

/// What kubelets want to hear, whatever the version of CRI.
const KUBELET_API_VERSION: &str = "0.1.0";

#[cfg(test)]
mod tests {
    use infranetes_core::engine::HandlerNetwork;

    use super::*;

    fn handler(name: &str, problem: Option<&str>) -> HandlerStatus {
        HandlerStatus {
            name: name.into(),
            provider: "p".into(),
            problem: problem.map(str::to_owned),
            network: HandlerNetwork::Provider,
            network_problem: None,
        }
    }

    #[test]
    fn the_network_is_ready_unless_a_handler_lacks_it() {
        let needs = HandlerStatus {
            network: HandlerNetwork::Node,
            network_problem: Some("no plugin".to_owned()),
            ..handler("vm", None)
        };
        let found = conditions(&[handler("a", None), needs]).remove(1);
        assert_eq!((found.status, found.message.as_str()), (false, "no plugin"));
        assert_eq!(found.reason, "NetworkPluginNotReady");
    }

    #[test]
    fn the_node_is_ready_while_one_handler_is() {
        let cases = [
            (vec![], false, "the configuration has no handler"),
            (vec![handler("a", None)], true, ""),
            (
                vec![handler("a", None), handler("b", Some("no plugin"))],
                true,
                "handler b: no plugin",
            ),
            (vec![handler("", Some("x")), handler("b", Some("x"))], false, "handler b: x"),
        ];
        for (handlers, ready, message) in cases {
            let conditions = conditions(&handlers);
            assert_eq!(conditions[0].status, ready, "{handlers:?}");
            assert_eq!(conditions[0].message, message);
            assert!(conditions[1].status && conditions[1].r#type == "NetworkReady");
            for condition in &conditions[2..] {
                assert_eq!(condition.status, condition.message.is_empty(), "{condition:?}");
            }
        }
    }
}
