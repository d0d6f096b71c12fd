//! Requests that nobody should send: at the daemon's socket, on every call of CRI. Each is refused or bounded, nothing of it
//! reaches another pod, and the daemon answers the next call.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BufMut, Bytes};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::{Client, container};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_by_every_call() -> Result<()> {
    case::run("process", async |case| {
        let channel = Client::channel(&case.node.socket()).await?;
        for (service, methods) in [("RuntimeService", &RUNTIME[..]), ("ImageService", &IMAGES)] {
            for method in methods {
                for payload in payloads() {
                    let mut grpc = tonic::client::Grpc::new(channel.clone());
                    grpc.ready().await?;
                    let path = format!("/runtime.v1.{service}/{method}").parse()?;
                    let call = grpc.unary(Request::new(payload.clone()), path, Raw);
                    // A stream that begins and goes on is an answer, too.
                    let endless = *method == "GetContainerEvents";
                    let patience = if endless { A_MOMENT } else { PATIENCE };
                    let Ok(answer) = tokio::time::timeout(patience, call).await else {
                        ensure!(endless, "{method} does not answer");
                        continue;
                    };
                    let code = answer.err().map(|status: Status| status.code());
                    // What cannot be decoded never comes as far as our code.
                    let sound =
                        code.is_none_or(|code| REFUSALS.contains(&code) || code == Code::Internal);
                    ensure!(sound, "{method} answers {code:?} to {payload:?}");
                }
            }
            answers(case).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn ids_that_are_none_are_refused_by_every_call_that_takes_one() -> Result<()> {
    case::run("process", async |case| {
        let neighbour = Neighbour::run(case).await?;
        for id in ids() {
            for (call, code) in calls_with(case.client(), &id).await {
                let shown: String = id.chars().take(40).collect();
                let sound = code.is_none_or(|code| REFUSALS.contains(&code));
                ensure!(sound, "{call} answers {code:?} to {shown:?}");
            }
        }
        answers(case).await?;
        neighbour.is_untouched(case).await
    })
    .await
}

#[tokio::test]
async fn sandboxes_that_cannot_be_are_refused_by_name() -> Result<()> {
    case::run("process", async |case| {
        let mut client = case.client();
        for (what, change) in bad_sandboxes() {
            let mut config = case.pod("bad").config();
            change(&mut config);
            let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
            let refused = client.runtime.run_pod_sandbox(request).await.err();
            expect_refusal(what, refused)?;
        }
        let request = cri::ListPodSandboxRequest::default();
        let left = client.runtime.list_pod_sandbox(request).await?.into_inner().items;
        ensure!(left.is_empty(), "something was made of them: {left:?}");
        answers(case).await
    })
    .await
}

#[tokio::test]
async fn containers_that_cannot_be_are_refused_by_name() -> Result<()> {
    case::run("process", async |case| {
        let neighbour = Neighbour::run(case).await?;
        let mut client = case.client();
        for (what, change) in bad_containers() {
            let mut config = container("bad", &case.image, &["true"]);
            change(&mut config);
            let pod = case.pod("neighbour");
            let refused = client.create_container(&neighbour.sandbox, &pod, config).await.err();
            expect_refusal(what, refused)?;
        }
        answers(case).await?;
        neighbour.is_untouched(case).await
    })
    .await
}

#[tokio::test]
async fn talk_that_is_no_http_2_ends_and_harms_nobody() -> Result<()> {
    case::run("process", async |case| {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let frame = [&preface[..], &[0xff, 0xff, 0xff, 0x04, 0, 0, 0, 0, 0]].concat();
        let talks: [&[u8]; 5] =
            [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[0xff; 4096], preface, &frame];
        for talk in talks {
            let mut half_open = tokio::net::UnixStream::connect(case.node.socket()).await?;
            half_open.write_all(talk).await?;
            half_open.shutdown().await?;
            // The daemon hangs up by itself; what it says until then does not matter.
            let mut said = Vec::new();
            let end = tokio::time::timeout(PATIENCE, half_open.read_to_end(&mut said)).await;
            ensure!(end.is_ok(), "{talk:?} keeps a connection open");
            answers(case).await?;
        }
        Ok(())
    })
    .await
}

type ChangeSandbox = fn(&mut cri::PodSandboxConfig);
type ChangeContainer = fn(&mut cri::ContainerConfig);

fn bad_sandboxes() -> Vec<(&'static str, ChangeSandbox)> {
    vec![
        ("no metadata", |c| c.metadata = None),
        ("an empty uid", |c| c.metadata.get_or_insert_default().uid.clear()),
        ("a long name", |c| c.metadata.get_or_insert_default().name = "n".repeat(1 << 20)),
        ("10,000 labels", |c| {
            c.labels = (0..10_000).map(|i| (i.to_string(), "v".into())).collect()
        }),
        ("an annotation of 10 MB", |c| {
            c.annotations.insert("a".into(), "x".repeat(10_000_000));
        }),
        ("a log directory with ..", |c| c.log_directory = "/var/log/../../etc".into()),
        ("a relative log directory", |c| c.log_directory = "etc".into()),
        ("a hostname of two lines", |c| c.hostname = "a\nb".into()),
        ("a name server that is none", |c| {
            c.dns_config =
                Some(cri::DnsConfig { servers: vec!["$(reboot)".into()], ..Default::default() });
        }),
        ("a port beyond all ports", |c| {
            c.port_mappings.push(cri::PortMapping { container_port: 65_536, ..Default::default() });
        }),
        ("a protocol without a meaning", |c| {
            c.port_mappings.push(cri::PortMapping { protocol: 99, ..Default::default() });
        }),
        ("a sysctl that is a path", |c| {
            let sysctls = &mut c.linux.get_or_insert_default().sysctls;
            sysctls.insert("../../etc/passwd".into(), "x".into());
        }),
        ("resources below nothing", |c| {
            c.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: i64::MIN,
                ..Default::default()
            });
        }),
        ("a namespace mode without a meaning", |c| {
            sandbox_namespaces(c).pid = 77;
        }),
        ("the node's network", |c| sandbox_namespaces(c).network = cri::NamespaceMode::Node as i32),
        ("the node's IPC objects", |c| sandbox_namespaces(c).ipc = cri::NamespaceMode::Node as i32),
        ("users beyond all users", |c| {
            let beyond = cri::IdMapping { host_id: u32::MAX, container_id: 0, length: u32::MAX };
            sandbox_namespaces(c).userns_options = Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Pod as i32,
                uids: vec![beyond],
                gids: vec![beyond],
            });
        }),
    ]
}

fn bad_containers() -> Vec<(&'static str, ChangeContainer)> {
    vec![
        ("no metadata", |c| c.metadata = None),
        ("no image", |c| c.image = None),
        ("an image that is none", |c| c.image.get_or_insert_default().image = "../../x y".into()),
        ("10,000 labels", |c| {
            c.labels = (0..10_000).map(|i| (i.to_string(), "v".into())).collect()
        }),
        ("an annotation of 10 MB", |c| {
            c.annotations.insert("a".into(), "x".repeat(10_000_000));
        }),
        ("a log path with ..", |c| c.log_path = "../../../etc/cron.d/x".into()),
        ("an absolute log path", |c| c.log_path = "/etc/cron.d/x".into()),
        ("a relative working directory", |c| c.working_dir = "tmp".into()),
        ("arguments of 4 MB", |c| c.args = vec!["x".repeat(1 << 20); 4]),
        ("a NUL in an argument", |c| c.args = vec!["a\0b".into()]),
        ("a variable with =", |c| {
            c.envs.push(cri::KeyValue { key: "A=B".into(), value: "x".into() });
        }),
        ("variables of 4 MB", |c| {
            let variable = |i| cri::KeyValue { key: format!("V{i}"), value: vec![b'x'; 1 << 20] };
            c.envs = (0..4).map(variable).collect();
        }),
        ("a mount into a relative path", |c| c.mounts.push(mount("/tmp", "etc"))),
        ("a mount with ..", |c| c.mounts.push(mount("/tmp/../etc", "/x"))),
        ("a device", |c| {
            let host_path = "/dev/../etc/shadow".into();
            c.devices.push(cri::Device { host_path, ..Default::default() });
        }),
        ("a signal without a meaning", |c| c.stop_signal = 9999),
        ("a user below nothing", |c| security(c).run_as_user = Some(cri::Int64Value { value: -1 })),
        ("a group without a user", |c| {
            security(c).run_as_group = Some(cri::Int64Value { value: 1 })
        }),
        ("a policy without a meaning", |c| security(c).supplemental_groups_policy = 42),
        ("a capability that is none", |c| {
            security(c).capabilities = Some(cri::Capability {
                add_capabilities: vec!["../SYS_ADMIN".into()],
                ..Default::default()
            });
        }),
        ("a masked path with ..", |c| security(c).masked_paths = vec!["/proc/../etc".into()]),
        ("a seccomp profile with ..", |c| {
            security(c).seccomp = Some(cri::SecurityProfile {
                profile_type: cri::security_profile::ProfileType::Localhost as i32,
                localhost_ref: "/var/lib/../../etc/shadow".into(),
            });
        }),
        ("a seccomp profile that is a directory", |c| {
            security(c).seccomp = Some(cri::SecurityProfile {
                profile_type: cri::security_profile::ProfileType::Localhost as i32,
                localhost_ref: "/etc".into(),
            });
        }),
        ("the processes of a container that is none", |c| {
            security(c).namespace_options = Some(cri::NamespaceOption {
                pid: cri::NamespaceMode::Target as i32,
                target_id: "../x".into(),
                ..Default::default()
            });
        }),
    ]
}

fn sandbox_namespaces(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn mount(host: &str, container: &str) -> cri::Mount {
    cri::Mount { host_path: host.into(), container_path: container.into(), ..Default::default() }
}

/// A pod that has nothing to do with any of it.
struct Neighbour {
    sandbox: String,
    container: String,
}

impl Neighbour {
    async fn run(case: &Case) -> Result<Neighbour> {
        let mut client = case.client();
        let pod = case.pod("neighbour");
        client.pull(&case.image).await?;
        let sandbox = client.run_pod(&pod).await?;
        let config = container("sleeper", &case.image, &["sleep", "600"]);
        let container = client.run_container(&sandbox, &pod, config).await?;
        Ok(Neighbour { sandbox, container })
    }

    async fn is_untouched(&self, case: &Case) -> Result<()> {
        let mut client = case.client();
        let listed = client.runtime.list_containers(cri::ListContainersRequest::default()).await?;
        let listed: Vec<_> = listed.into_inner().containers.into_iter().map(|c| c.id).collect();
        ensure!(listed == [self.container.clone()], "there are {listed:?}");
        let result = client.exec(&self.container, &["true"]).await?;
        ensure!(result.exit_code == 0, "it does not run any more: {result:?}");
        Ok(())
    }
}

/// The code of each call that takes an id; `None` where it succeeded, as stopping and removing nothing does.
async fn calls_with(mut client: Client, id: &str) -> Vec<(&'static str, Option<Code>)> {
    let (id, runtime) = (id.to_owned(), &mut client.runtime);
    let command = vec!["true".to_owned()];
    macro_rules! codes {
        ($($call:ident($request:expr)),* $(,)?) => {
            vec![$((stringify!($call), runtime.$call($request).await.err().map(|s| s.code()))),*]
        };
    }
    codes![
        stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }),
        remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }),
        pod_sandbox_status(cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: true
        }),
        pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id: id.clone() }),
        port_forward(cri::PortForwardRequest {
            pod_sandbox_id: id.clone(),
            port: vec![-1, 70_000]
        }),
        create_container(cri::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(container("c", "busybox", &["true"])),
            sandbox_config: None,
        }),
        start_container(cri::StartContainerRequest { container_id: id.clone() }),
        stop_container(cri::StopContainerRequest { container_id: id.clone(), timeout: i64::MIN }),
        remove_container(cri::RemoveContainerRequest { container_id: id.clone() }),
        container_status(cri::ContainerStatusRequest { container_id: id.clone(), verbose: true }),
        container_stats(cri::ContainerStatsRequest { container_id: id.clone() }),
        update_container_resources(cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            ..Default::default()
        }),
        reopen_container_log(cri::ReopenContainerLogRequest { container_id: id.clone() }),
        checkpoint_container(cri::CheckpointContainerRequest {
            container_id: id.clone(),
            location: "../../x".into(),
            timeout: -1,
        }),
        exec_sync(cri::ExecSyncRequest {
            container_id: id.clone(),
            cmd: command.clone(),
            timeout: i64::MIN,
        }),
        exec(cri::ExecRequest {
            container_id: id.clone(),
            cmd: command,
            stdout: true,
            ..Default::default()
        }),
        attach(cri::AttachRequest { container_id: id, stdout: true, ..Default::default() }),
    ]
}

fn ids() -> Vec<String> {
    let long = "a".repeat(1 << 20);
    let texts = ["", " ", "..", "../../etc/passwd", "/", "\0", "a\nb", "%00", "💥", "-", "ABCDEF"];
    let mut ids: Vec<String> = texts.map(str::to_owned).into();
    ids.extend(["f".repeat(64), "F".repeat(64), "g".repeat(64), "f".repeat(65), long]);
    ids
}

fn payloads() -> Vec<Bytes> {
    // Field 1 with a length that is not there, of another kind, not text; groups; many levels of messages.
    let nested = (0..200).fold(Vec::new(), |inner: Vec<u8>, _| {
        let mut outer = vec![0x0a];
        let mut length = inner.len();
        while length >= 0x80 {
            outer.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend(inner);
        outer
    });
    let plain: [&[u8]; 6] = [
        b"",
        &[0xff; 64],
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x08, 0x96, 0x01],
        &[0x0a, 0x02, 0xc3, 0x28],
        &[0x0b, 0x0b, 0x0c],
    ];
    plain.iter().map(|bytes| Bytes::copy_from_slice(bytes)).chain([nested.into()]).collect()
}

fn expect_refusal(what: &str, refused: Option<Status>) -> Result<()> {
    let status = refused.with_context(|| format!("{what}: it was taken"))?;
    let code = status.code();
    ensure!(REFUSALS.contains(&code), "{what}: {code:?} {}", status.message());
    let said = status.message().len();
    ensure!(said > 0 && said < 4096, "{what}: {said} bytes of explanation");
    Ok(())
}

async fn answers(case: &Case) -> Result<()> {
    let request = cri::VersionRequest { version: "0.1.0".to_owned() };
    let mut client = case.client();
    tokio::time::timeout(PATIENCE, client.runtime.version(request)).await??;
    Ok(())
}

/// Bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// A refusal is about the request; nothing of ours is broken by it.
const REFUSALS: [Code; 6] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::OutOfRange,
    Code::ResourceExhausted,
    Code::Unimplemented,
];
const PATIENCE: Duration = Duration::from_secs(20);
const A_MOMENT: Duration = Duration::from_millis(500);
const IMAGES: [&str; 6] =
    ["PullImage", "ImageStatus", "ListImages", "StreamImages", "RemoveImage", "ImageFsInfo"];
const RUNTIME: [&str; 37] = [
    "Version",
    "Status",
    "RuntimeConfig",
    "UpdateRuntimeConfig",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "StreamPodSandboxes",
    "UpdatePodSandboxResources",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ContainerStatus",
    "ListContainers",
    "StreamContainers",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "StreamContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "StreamPodSandboxStats",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "StreamPodSandboxMetrics",
    "GetContainerEvents",
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
];
