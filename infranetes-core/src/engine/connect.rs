//! The steps that connect a sandbox to the pod network of the node, look at the connection, and take it down.

use std::sync::Arc;
use std::time::Duration;

use infranetes_sdk::pod::{AddressMode, Network as NetworkMessage, PodCapabilities};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::engine::boot::Ended;
use crate::engine::life::Life;
use crate::engine::node::Node;
use crate::engine::timeouts::{NETWORK_CHECK, NETWORK_COLLECT, NETWORK_DOWN, NETWORK_UP};
use crate::error::{Cause, FailureKind};
use crate::ids::SandboxId;
use crate::network::{Attachment, NetworkError, NetworkWish, PodNetwork};

/// Connects the sandbox; the record says before that something may exist.
pub(crate) async fn connect(node: Arc<Node>, life: Life) -> Result<Attachment, Ended> {
    let network = network(&node).map_err(ended)?;
    let wish = NetworkWish {
        sandbox: life.id.clone(),
        pod: life.spec.pod.clone(),
        dns: life.spec.dns.clone(),
        ports: life.spec.ports.clone(),
        annotations: life.spec.annotations.clone(),
    };
    node.board.note(&life.id, "it is connected to the node's pod network");
    bounded(NETWORK_UP, network.set_up(&wish)).await.map_err(ended)
}

/// Looks whether it is connected as it was. What is found is for people: the pod may do its work all the same.
pub(crate) async fn examine(node: Arc<Node>, life: Life) {
    let answer = match network(&node) {
        Ok(network) => bounded(NETWORK_CHECK, network.check(&life.id)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = answer {
        let chain = cause(&error).chain();
        tracing::warn!(sandbox = %life.id, error = %chain, "the sandbox is not connected as it was set up");
        node.board.note(&life.id, &format!("its network is not as it was set up: {chain}"));
    }
}

/// Tries once, after a pause or at a knock, to take the connection down.
pub(crate) async fn disconnect(
    node: Arc<Node>,
    life: Life,
    pause: Duration,
    knock: Arc<Notify>,
) -> Result<(), Cause> {
    // Whoever asks for it once more has a try of their own.
    let _ = timeout(pause, knock.notified()).await;
    let answer = match network(&node) {
        Ok(network) => bounded(NETWORK_DOWN, network.tear_down(&life.id)).await,
        Err(error) => Err(error),
    };
    let Err(error) = answer else { return Ok(()) };
    let cause = cause(&error);
    let chain = cause.chain();
    tracing::warn!(sandbox = %life.id, error = %chain, "the sandbox could not be disconnected yet");
    let note = format!("it could not be disconnected from the node's pod network yet: {chain}");
    node.board.note(&life.id, &note);
    Err(cause)
}

/// Lets the network give back, after a start, what no sandbox of the record has.
pub(crate) async fn collect(node: Arc<Node>, known: Vec<SandboxId>) {
    let Some(network) = node.parts.network.as_deref() else { return };
    if let Err(error) = bounded(NETWORK_COLLECT, network.collect(&known)).await {
        let chain = cause(&error).chain();
        tracing::warn!(error = %chain, "the pod network could not give back what no sandbox has");
    }
}

/// What the provider is told; `None` where it brings the network itself.
pub(crate) fn message(life: &Life) -> Option<NetworkMessage> {
    let attachment = life.network.attachment()?;
    Some(NetworkMessage {
        address_mode: AddressMode::Cni as i32,
        namespace_path: attachment.namespace.to_string_lossy().into_owned(),
        ..Default::default()
    })
}

/// A provider that cannot put a machine into a namespace must not be given one.
pub(crate) fn check_provider(
    life: &Life,
    provider: &str,
    capabilities: &PodCapabilities,
) -> Result<(), Ended> {
    let able = capabilities.address_modes.contains(&(AddressMode::Cni as i32));
    if able || life.network.attachment().is_none() {
        return Ok(());
    }
    Err(Ended::because(Cause::new(
        FailureKind::Unsupported,
        format!("provider {provider} cannot put a machine into the node's pod network"),
    )))
}

fn network(node: &Node) -> Result<&dyn PodNetwork, NetworkError> {
    node.parts
        .network
        .as_deref()
        .ok_or_else(|| NetworkError::new(FailureKind::Unavailable, "this node has no pod network"))
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, NetworkError>>,
) -> Result<T, NetworkError> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        let sentence = format!("the node's pod network did not answer within {limit:?}");
        Err(NetworkError::new(FailureKind::TimedOut, sentence))
    })
}

fn ended(error: NetworkError) -> Ended {
    let mut texts = vec!["it could not be connected to the node's pod network".to_owned()];
    texts.extend(cause(&error).texts());
    Ended::because(Cause::from_texts(error.kind, texts))
}

fn cause(error: &NetworkError) -> Cause {
    Cause::of(error.kind, error)
}
