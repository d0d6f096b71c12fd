//! A provider of machines for infranetes.
//!
//! [`Provider`] translates: infranetes asks in the words of [`PodProvider`], and the cloud answers in its own. What is
//! promised stands in the documentation of that trait; the test in `tests/conformance.rs` looks whether it is kept.
//!
//! To make this provider yours, replace `cloud.rs` by calls to your cloud, one after the other.

mod cloud;

use std::collections::BTreeMap;
use std::time::Duration;

use infranetes_sdk::pod::{
    AddressMode, Addresses, AddressesRequest, CreateRequest, DescribePodRequest, DestroyRequest,
    Empty, GetRequest, ListRequest, ListResponse, Machine, MachineState, MachineType, PlanRequest,
    PlanResponse, PodCapabilities, StartMachineRequest, StopMachineRequest,
};
use infranetes_sdk::{
    CallContext, Host, Plugin, PodProvider, ProviderError, Providers, Result, async_trait,
    export_provider,
};
use serde::Deserialize;

use cloud::{Cloud, CloudError, Power, Server};

/// The `[config]` table of an instance. A key that is not here is refused by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a machine takes from its creation until it runs, in milliseconds.
    pub boot_ms: u64,
}

/// One instance of this provider.
pub struct Provider {
    cloud: Cloud,
}

#[async_trait]
impl Plugin for Provider {
    type Config = Config;

    /// Runs once for each instance. Credentials come from `host.secret("name").await`, never from the configuration.
    async fn start(host: Host, config: Config) -> Result<Providers> {
        let boot = Duration::from_millis(config.boot_ms);
        let cloud = Cloud::open(host.state_dir()?.to_owned(), boot);
        Ok(Providers::default().with_pods(Self { cloud }))
    }
}

export_provider!(Provider);

#[async_trait]
impl PodProvider for Provider {
    /// What is `false` here needs no method: the SDK answers `Unsupported` for it.
    async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
        Ok(PodCapabilities {
            user_data_limit_bytes: USER_DATA_MAX as u64,
            stop_start: true,
            tags: true,
            address_modes: vec![AddressMode::Private.into()],
            architectures: vec![ARCHITECTURE.into()],
            ..PodCapabilities::default()
        })
    }

    /// Pure: it makes nothing, and the same wish has the same answer.
    async fn plan(&self, _: CallContext, wish: PlanRequest) -> Result<PlanResponse> {
        if let Some(annotation) = wish.annotations.keys().min() {
            let message = format!("the annotation {annotation:?} means nothing here");
            return Err(ProviderError::invalid(message));
        }
        let fits = |size: &&Size| {
            size.cpu_millis >= wish.cpu_millis
                && size.memory_bytes >= wish.memory_bytes
                && (wish.machine_type.is_empty() || wish.machine_type == size.name)
                && (wish.architecture.is_empty() || wish.architecture == ARCHITECTURE)
                // This cloud has no GPUs, no zones and no spot machines.
                && wish.gpus == 0
                && wish.zones.is_empty()
                && !wish.spot
        };
        let candidates: Vec<MachineType> =
            SIZES.iter().filter(fits).map(Size::machine_type).collect();
        if candidates.is_empty() {
            return Err(ProviderError::invalid(
                "no machine type fits what the pod asks for",
            ));
        }
        let why = "the smallest machine that has enough of everything".into();
        Ok(PlanResponse { candidates, why })
    }

    /// The same token twice is one machine. A cloud without tokens has to look for the name, or a tag, before it creates.
    async fn create(&self, _: CallContext, request: CreateRequest) -> Result<Machine> {
        let server = wanted(request)?;
        Ok(machine(self.cloud.create(server).await?))
    }

    async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
        Ok(machine(self.cloud.server(request.id).await?))
    }

    /// In the order of ids, so that a page goes on where the last one ended, whatever came or went meanwhile.
    async fn list(&self, _: CallContext, request: ListRequest) -> Result<ListResponse> {
        let after = match request.page_token.as_str() {
            "" => "",
            token => match token.strip_prefix(PAGE) {
                Some(id) => id,
                None => {
                    return Err(ProviderError::invalid(format!(
                        "{token:?} is no page token"
                    )));
                }
            },
        };
        let size = match request.page_size {
            0 => PAGE_SIZE,
            size => size as usize,
        };
        let servers = self.cloud.servers().await?;
        let mut rest = servers.into_iter().filter(|server| {
            let has = |(key, value): (&String, &String)| server.tags.get(key) == Some(value);
            server.id.as_str() > after && request.tags.iter().all(has)
        });
        let machines: Vec<Machine> = rest.by_ref().take(size).map(machine).collect();
        let next_page_token = match (rest.next(), machines.last()) {
            (Some(_), Some(last)) => format!("{PAGE}{}", last.id),
            _ => String::new(),
        };
        Ok(ListResponse {
            machines,
            next_page_token,
        })
    }

    async fn start(&self, _: CallContext, request: StartMachineRequest) -> Result<Empty> {
        self.cloud.set_power(request.id, Power::On).await?;
        Ok(Empty {})
    }

    /// `grace_ms` is how long a guest may take to end by itself. These have none, and are off at once.
    async fn stop(&self, _: CallContext, request: StopMachineRequest) -> Result<Empty> {
        self.cloud.set_power(request.id, Power::Off).await?;
        Ok(Empty {})
    }

    /// Gone already is success: the caller repeats this until it is told so.
    async fn destroy(&self, _: CallContext, request: DestroyRequest) -> Result<Empty> {
        match self.cloud.delete(request.id).await {
            Ok(()) | Err(CloudError::NoServer(_)) => Ok(Empty {}),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the node finds the agent, once it runs. In these machines nothing runs, so `agent` stays empty; a real provider
    /// answers `tcp://ADDRESS:PORT`.
    async fn addresses(&self, _: CallContext, request: AddressesRequest) -> Result<Addresses> {
        Ok(addresses(&self.cloud.server(request.id).await?))
    }
}

/// What the cloud is asked for. Whatever of a request cannot be honoured is refused here, before anything exists.
fn wanted(request: CreateRequest) -> Result<Server> {
    if request.token.is_empty() {
        return Err(ProviderError::invalid("the request has no token"));
    }
    if !cloud::is_name(&request.name) {
        let message = format!("{:?} is no name of [a-z0-9-]{{1,63}}", request.name);
        return Err(ProviderError::invalid(message));
    }
    if request.user_data.len() > USER_DATA_MAX {
        let message = format!("user-data is longer than {USER_DATA_MAX} bytes");
        return Err(ProviderError::invalid(message));
    }
    if !request.image.is_empty() {
        let message = format!("there is no machine image {:?}", request.image);
        return Err(ProviderError::invalid(message));
    }
    if !request.disks.is_empty() {
        return Err(ProviderError::unsupported(
            "this cloud has no disks to attach",
        ));
    }
    if !request.checkpoint.is_empty() {
        return Err(ProviderError::unsupported("this cloud has no checkpoints"));
    }
    let network = request.network.unwrap_or_default();
    match network.address_mode() {
        AddressMode::Unspecified | AddressMode::Private => {}
        mode => {
            return Err(ProviderError::unsupported(format!(
                "addresses cannot be {mode:?}"
            )));
        }
    }
    if !network.namespace_path.is_empty() || !network.options.is_empty() {
        return Err(ProviderError::invalid(
            "this cloud's network has no options",
        ));
    }
    let wish = request.machine_type.unwrap_or_default();
    let size = SIZES
        .iter()
        .find(|size| size.name == wish.name && wish == size.machine_type());
    let size = size.ok_or_else(|| {
        ProviderError::invalid(format!("there is no machine type {:?}", wish.name))
    })?;
    Ok(Server {
        id: request.name,
        token: request.token,
        size: size.name.to_owned(),
        user_data: request.user_data,
        tags: request.tags.into_iter().collect::<BTreeMap<_, _>>(),
        created_unix_ms: 0,
        power: Power::On,
        is_booting: true,
    })
}

/// A server in the words of the SDK.
fn machine(server: Server) -> Machine {
    let state = match (server.power, server.is_booting) {
        (Power::Off, _) => MachineState::Stopped,
        (Power::On, true) => MachineState::Creating,
        (Power::On, false) => MachineState::Running,
    };
    let size = SIZES.iter().find(|size| size.name == server.size);
    Machine {
        addresses: Some(addresses(&server)),
        name: server.id.clone(),
        id: server.id,
        state: state.into(),
        tags: server.tags.into_iter().collect(),
        created_unix_ms: server.created_unix_ms,
        machine_type: size.map(Size::machine_type),
        ..Machine::default()
    }
}

fn addresses(_: &Server) -> Addresses {
    Addresses::default()
}

/// The cloud's errors by what the caller does about them: the kind decides whether it tries again, elsewhere, or not at all.
impl From<CloudError> for ProviderError {
    fn from(error: CloudError) -> Self {
        let message = error.to_string();
        match error {
            CloudError::NoServer(_) => Self::not_found(message),
            CloudError::Taken(_) => Self::conflict(message),
            CloudError::Disk(source) => Self::transient(message).with_source(source),
            CloudError::Damaged(_, source) => Self::internal(message).with_source(source),
            CloudError::Stopped => Self::transient(message),
        }
    }
}

/// A machine type.
struct Size {
    name: &'static str,
    cpu_millis: u64,
    memory_bytes: u64,
}

impl Size {
    fn machine_type(&self) -> MachineType {
        MachineType {
            name: self.name.into(),
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes,
            architecture: ARCHITECTURE.into(),
            ..MachineType::default()
        }
    }
}

/// Smallest first.
const SIZES: [Size; 3] = [
    Size {
        name: "small",
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
    },
    Size {
        name: "medium",
        cpu_millis: 2000,
        memory_bytes: 4 << 30,
    },
    Size {
        name: "large",
        cpu_millis: 8000,
        memory_bytes: 32 << 30,
    },
];

/// In the words of OCI images.
const ARCHITECTURE: &str = "amd64";
const USER_DATA_MAX: usize = 16 << 10;
const PAGE: &str = "after-";
const PAGE_SIZE: usize = 100;
