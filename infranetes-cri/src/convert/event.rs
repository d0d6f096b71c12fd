//! Changes, as Kubernetes' evented PLEG wants them: each with the whole pod.

use infranetes_core::image::ImageInfo;
use infranetes_core::status::{Event, EventKind};

use super::status::{container_status, nanos, sandbox_status};
use crate::api::v1;

/// A change. `image` finds an image of the node by its id.
pub fn event(
    event: &Event,
    image: impl Fn(&str) -> Option<ImageInfo>,
) -> v1::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    let spec = event.sandbox.as_ref().map(|sandbox| &*sandbox.spec);
    let containers = event.containers.iter();
    v1::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind as i32,
        created_at: nanos(event.at),
        pod_sandbox_status: event.sandbox.as_ref().map(sandbox_status),
        containers_statuses: containers
            .map(|one| container_status(one, image(&one.image_id).as_ref(), spec))
            .collect(),
    }
}
