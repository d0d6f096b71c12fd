//! Bytes of anybody, where the bridge reads messages: nothing panics, nothing grows, and every answer is one.
//!
//! Deterministic, so that a failure is one for everybody; `INFRANETES_FUZZ_ROUNDS` and `INFRANETES_FUZZ_SEED` make it a search.

use abi_stable::std_types::{ROption, RResult, RVec};
use async_trait::async_trait;
use infranetes_sdk::bridge::abi::{EndpointBox, RawRequest};
use infranetes_sdk::bridge::{HostEndpoint, start_linked};
use infranetes_sdk::pod::{CreateRequest, GetRequest, Machine};
use infranetes_sdk::{
    CallContext, ContainerProvider, Host, Plugin, PodProvider, ProviderError, Providers, Result,
    RetryAdvice, TracingServices, VolumeProvider, v1,
};
use prost::Message;

#[test]
fn a_status_of_any_bytes_is_an_error_of_bounded_size() {
    let error = ProviderError::throttled("the cloud is busy")
        .with_retry(RetryAdvice::After(std::time::Duration::from_secs(1)))
        .with_provider_code("SlowDown")
        .with_source(ProviderError::transient("call").with_source(std::io::Error::other("429")));
    let good = v1::Status::from(&error).encode_to_vec();
    let mut numbers = Numbers::new();
    for _ in 0..rounds() {
        let Ok(status) = v1::Status::decode(&*numbers.mutate(&good)) else { continue };
        let error = ProviderError::from(status);
        assert!(error.chain().len() < 100_000);
        let again = ProviderError::from(v1::Status::from(&error));
        assert_eq!((again.kind, again.retry), (error.kind, error.retry));
        assert_eq!(again.chain(), error.chain());
    }
}

#[tokio::test]
async fn a_header_of_any_bytes_is_a_context_that_travels_on() {
    let context = CallContext::new("request-1")
        .with_timeout(std::time::Duration::from_secs(60))
        .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let good = v1::CallHeader::from(&context).encode_to_vec();
    let mut numbers = Numbers::new();
    for _ in 0..rounds() {
        let Ok(header) = v1::CallHeader::decode(&*numbers.mutate(&good)) else { continue };
        let context = CallContext::from(header);
        let again = v1::CallHeader::from(&context);
        assert_eq!(again.request_id, context.request_id);
        assert_eq!(again.timeout_ms == 0, context.deadline.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_of_any_bytes_has_an_answer() {
    let endpoint = start().await;
    let get = GetRequest { id: "i-123".into() }.encode_to_vec();
    let create = CreateRequest { name: "m".into(), ..Default::default() }.encode_to_vec();
    let header = v1::CallHeader { request_id: "r".into(), timeout_ms: 5_000, ..Default::default() };
    let header = header.encode_to_vec();
    let mut numbers = Numbers::new();
    for round in 0..rounds() {
        let good = METHODS[numbers.below(METHODS.len())];
        let method = match numbers.below(4) {
            0 => String::from_utf8_lossy(&numbers.mutate(good.as_bytes())).into_owned(),
            _ => good.to_owned(),
        };
        let body = numbers.mutate(if round % 2 == 0 { &get } else { &create });
        let head = if numbers.below(3) == 0 { numbers.mutate(&header) } else { header.clone() };
        let (head, body) = (RVec::from(head), RVec::from(body));
        let request = RawRequest { method: method.as_str().into(), header: head, body };
        let refused = if numbers.below(4) == 0 {
            endpoint.open(request, ROption::RNone).await.err()
        } else {
            endpoint.call(request).await.err()
        };
        let Some(status) = refused.into_option() else { continue };
        let status = v1::Status::decode(&*status).expect("an error that can be read");
        assert!(!status.message.contains("panicked"), "{method:?}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_plugin_tells_its_host_may_be_any_bytes() {
    let host = host();
    let record = v1::LogRecord { level: "info".into(), target: "t".into(), message: "m".into() };
    let record = record.encode_to_vec();
    let mut numbers = Numbers::new();
    for _ in 0..rounds() {
        let method = ["host/log", "host/metric", "host/secret", "host/"][numbers.below(4)];
        let body = numbers.mutate(&record);
        host.notify(method.into(), body.as_slice().into());
        let (header, body) = (RVec::from(numbers.mutate(&record)), RVec::from(body));
        let answer = host.call(RawRequest { method: method.into(), header, body }).await;
        let RResult::RErr(status) = answer else { panic!("this host knows no secrets") };
        let status = v1::Status::decode(&*status).expect("an error that can be read");
        assert!(!status.message.contains("panicked"), "{method:?}: {status:?}");
    }
}

struct Target;

#[async_trait]
impl Plugin for Target {
    type Config = serde_json::Value;

    async fn start(_: Host, _: serde_json::Value) -> Result<Providers> {
        Ok(Providers::default().with_pods(Self).with_containers(Self).with_volumes(Self))
    }
}

#[async_trait]
impl PodProvider for Target {
    async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
        Ok(Machine { id: request.id, ..Machine::default() })
    }

    async fn create(&self, _: CallContext, request: CreateRequest) -> Result<Machine> {
        Ok(Machine { name: request.name, ..Machine::default() })
    }
}

impl ContainerProvider for Target {}
impl VolumeProvider for Target {}

async fn start() -> EndpointBox {
    let request = v1::StartRequest { instance: "target".into(), ..Default::default() };
    match start_linked::<Target>("target", "0", host(), &request.encode_to_vec()).await {
        RResult::ROk(endpoint) => endpoint,
        RResult::RErr(status) => panic!("{:?}", v1::Status::decode(&*status)),
    }
}

fn host() -> EndpointBox {
    let services = std::sync::Arc::new(TracingServices);
    HostEndpoint::new(tokio::runtime::Handle::current(), services).into_raw()
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn new() -> Numbers {
        Numbers(from_env("INFRANETES_FUZZ_SEED", 1))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    /// Bytes that are nearly those of `good`, or nothing like them.
    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(6) {
            let place = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => bytes.truncate(place),
                1 => bytes.insert(place, self.below(256) as u8),
                2 => drop(bytes.splice(place..place, vec![0xff; self.below(12)])),
                3 => bytes.extend_from_within(place..),
                _ => {
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
            bytes.truncate(4096);
        }
        bytes
    }
}

fn from_env(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn rounds() -> u64 {
    from_env("INFRANETES_FUZZ_ROUNDS", 5_000)
}

const METHODS: [&str; 12] = [
    "pod/get",
    "pod/create",
    "pod/list",
    "pod/console",
    "container/exec",
    "container/create",
    "volume/get",
    "plugin/describe",
    "plugin/",
    "/",
    "",
    "pod/get/more",
];
