//! CRI's two services: convert, ask the engine or the image store, convert back.
//!
//! `dispatch` has one line for each RPC; each subject has a file. Lists and status are answered from what the node holds and
//! never wait for a machine. Stopping and removing what is not there succeeds, as CRI wants it.

mod checkpoints;
mod containers;
mod deadline;
mod dispatch;
mod images;
mod interactive;
mod limits;
mod node;
mod route;
mod sandboxes;
mod stats;
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;

use infranetes_core::engine::Engine;
use infranetes_core::ids::{ContainerId, SandboxId};
use infranetes_core::image::ImageStore;
use infranetes_core::status::{ContainerStatus, SandboxStatus};
use infranetes_loader::LoadedPlugin;
use tonic::Status;

pub use self::route::Services;
use crate::convert::{self, IdText};
use crate::streaming::Links;

/// The CRI server. Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct Cri(Arc<Inner>);

struct Inner {
    engine: Engine,
    images: ImageStore,
    links: Links,
    message_bytes: usize,
    plugins: BTreeMap<String, LoadedPlugin>,
}

impl Cri {
    /// A server for an engine and its images, whose messages have at most `message_bytes`; what is streamed goes over `links`.
    pub fn new(engine: Engine, images: ImageStore, links: Links, message_bytes: usize) -> Cri {
        Cri(Arc::new(Inner { engine, images, links, message_bytes, plugins: BTreeMap::new() }))
    }

    /// Looks at these plugins, by their instances' names, when it says which handlers are ready.
    #[must_use]
    pub fn with_plugins(self, plugins: BTreeMap<String, LoadedPlugin>) -> Cri {
        let Inner { engine, images, links, message_bytes, .. } = &*self.0;
        let (engine, images, links) = (engine.clone(), images.clone(), links.clone());
        Cri(Arc::new(Inner { engine, images, links, message_bytes: *message_bytes, plugins }))
    }

    /// Why a provider that was loaded cannot be used now.
    fn problem_of(&self, provider: &str) -> Option<String> {
        self.0.plugins.get(provider).and_then(LoadedPlugin::problem)
    }

    fn engine(&self) -> &Engine {
        &self.0.engine
    }

    fn images(&self) -> &ImageStore {
        &self.0.images
    }

    /// The sandbox that a request means, by its id or the beginning of it.
    fn find_sandbox(&self, id: String) -> Result<Found<SandboxStatus>, Status> {
        if let Ok(id) = SandboxId::parse(&id) {
            return Ok(Found { text: id.to_string(), item: self.engine().sandbox(&id) });
        }
        let field = "pod_sandbox_id";
        let text = IdText::parse(field, id).map_err(convert::from_refusal)?;
        let item = text.find(field, self.engine().sandboxes(), |sandbox| sandbox.id.as_str());
        Ok(Found { text: text.shown(), item: item.map_err(convert::from_refusal)? })
    }

    /// The container that a request means, by its id or the beginning of it.
    fn find_container(&self, id: String) -> Result<Found<ContainerStatus>, Status> {
        if let Ok(id) = ContainerId::parse(&id) {
            return Ok(Found { text: id.to_string(), item: self.engine().container(&id) });
        }
        let field = "container_id";
        let text = IdText::parse(field, id).map_err(convert::from_refusal)?;
        let item = text.find(field, self.engine().containers(), |container| container.id.as_str());
        Ok(Found { text: text.shown(), item: item.map_err(convert::from_refusal)? })
    }
}

/// What a request means, if it is there.
struct Found<T> {
    text: String,
    item: Option<T>,
}

impl<T> Found<T> {
    fn or_not_found(self, what: &str) -> Result<T, Status> {
        self.item.ok_or_else(|| Status::not_found(format!("no {what} has the id {:?}", self.text)))
    }
}
