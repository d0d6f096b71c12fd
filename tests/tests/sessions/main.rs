//! Sessions between a node and an agent: who gets in, who does not, and what survives a cut.

#![expect(clippy::unwrap_used, reason = "what fails in a helper is a failed test")]

mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use infranetes_agent::invitation::Invitation;
use infranetes_agent::listener::Listen;
use infranetes_agent::run::Agent;
use infranetes_agent::times::BootTimes;
use infranetes_agent_protocol::{MEETING_PROTOCOL, SESSION_PROTOCOL};
use infranetes_core::error::FailureKind;
use infranetes_core::ids::{ContainerId, SandboxId};
use infranetes_core::session::duplex::{ExecStart, ProgramOutput};
use infranetes_core::session::tls::{NodeCa, TlsConnector};
use infranetes_core::session::{
    AgentConnector, AgentIdentity, AgentSession, Binding, ContainerPlan, ExecRequest, LayerSource,
    LogSource, MachineImage, MachineLayer, ObservedState, SessionError, Ticket, WatchEvent,
};
use infranetes_core::spec::{ContainerResources, Dns, PidMode, PodIdentity, SecuritySpec};
use infranetes_tests::containers::MemoryContainers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::wire::Wire;

/// An agent that was invited and listens, and the node's half of its invitation.
struct Guest {
    endpoint: String,
    ticket: Ticket,
    containers: MemoryContainers,
    dir: tempfile::TempDir,
    _life: JoinSet<()>,
}

impl Guest {
    async fn boot(node: &TlsConnector) -> Self {
        let invitation = node.invite(&sandbox()).unwrap();
        let containers = MemoryContainers::default();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let running = Agent {
            invitation: Invitation::parse(&invitation.user_data).unwrap(),
            listen: Some(Listen::Unix(socket.clone())),
            containers: (Arc::new(containers.clone())
                as Arc<dyn infranetes_sdk::ContainerProvider>)
                .into(),
            state: dir.path().to_owned(),
            owned: false,
            apart: false,
            addresses: Vec::new(),
            times: Arc::new(BootTimes::starting()),
        }
        .listen()
        .unwrap();
        let mut life = JoinSet::new();
        life.spawn(async move {
            running.serve_until(std::future::pending()).await.unwrap();
        });
        let endpoint = format!("unix://{}", socket.display());
        Self { endpoint, ticket: invitation.ticket, containers, dir, _life: life }
    }

    async fn session(&self, node: &TlsConnector) -> Arc<dyn AgentSession> {
        let identity = node.enrol(&self.endpoint, &self.ticket).await.unwrap().identity;
        node.connect(&self.endpoint, &identity).await.unwrap()
    }
}

fn node() -> TlsConnector {
    TlsConnector::new(NodeCa::generate().unwrap())
}

fn sandbox() -> SandboxId {
    SandboxId::from_random([1; 32])
}

fn container() -> ContainerId {
    ContainerId::from_random([2; 32])
}

fn plan() -> ContainerPlan {
    ContainerPlan {
        image: MachineImage::default(),
        args: vec!["/bin/sleep".into(), "inf".into()],
        env: Vec::new(),
        cwd: "/".into(),
        tty: false,
        stdin: false,
        stdin_once: false,
        stop_signal: String::new(),
        image_user: "nobody".into(),
        security: SecuritySpec::default(),
        resources: ContainerResources::default(),
        pid_mode: PidMode::Container,
        users: None,
        mounts: Vec::new(),
        volumes: Vec::new(),
        devices: Vec::new(),
    }
}

fn binding() -> Binding {
    Binding {
        sandbox: sandbox(),
        pod: PodIdentity {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            attempt: 0,
        },
        hostname: "web-0".into(),
        dns: Dns {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["svc".into()],
            options: Vec::new(),
        },
        sysctls: Default::default(),
        network: None,
    }
}

fn untrusted<T>(result: Result<T, SessionError>, problem: &str) {
    match result {
        Err(SessionError::Untrusted { problem: found, .. }) => {
            assert!(found.contains(problem), "{found:?} says nothing of {problem:?}");
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was trusted"),
    }
}

#[tokio::test]
async fn an_invited_agent_enrols_and_serves() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let session = guest.session(&node).await;
    let hello = session.hello().clone();
    assert_eq!(hello.sandbox_id, "");
    assert_eq!(hello.boot_id.len(), 32);
    assert!(hello.agent_started > Duration::ZERO && hello.now > hello.agent_started);

    session.bind(&binding()).await.unwrap();
    session.bind(&binding()).await.unwrap();
    let etc =
        |name: &str| std::fs::read_to_string(guest.dir.path().join("etc").join(name)).unwrap();
    assert_eq!(etc("resolv.conf"), "search svc\nnameserver 10.96.0.10\n");
    assert_eq!(etc("hostname"), "web-0\n");
    assert!(etc("hosts").contains(" web-0\n"));
    let other = Binding { sandbox: SandboxId::from_random([9; 32]), ..binding() };
    let refused = session.bind(&other).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Conflict);

    let identity = AgentIdentity { agent_name: guest.ticket.agent_name.clone() };
    let again = node.connect(&guest.endpoint, &identity).await.unwrap();
    assert_eq!(again.hello().sandbox_id, sandbox().to_string());
    assert_eq!(again.hello().boot_id, hello.boot_id);
}

#[tokio::test]
async fn an_enrolment_binds_at_once_and_its_session_goes_on_by_mutual_tls() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let enrolled = node.enrol(&guest.endpoint, &guest.ticket).await.unwrap();
    let session = enrolled.session.unwrap();
    assert_eq!(session.hello().sandbox_id, "");
    session.bind(&binding()).await.unwrap();
    // Said again, it goes the way of everything else.
    session.bind(&binding()).await.unwrap();
    let mut watch = session.watch().await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::Snapshot(Vec::new()));
    session.rotate_if_due().await.unwrap();
    let again = node.connect(&guest.endpoint, &enrolled.identity).await.unwrap();
    assert_eq!(again.hello().sandbox_id, sandbox().to_string());
    assert_eq!(again.hello().boot_id, session.hello().boot_id);
}

#[tokio::test]
async fn a_first_connection_that_says_anything_else_ends_and_the_node_gets_in() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let socket = guest.endpoint.strip_prefix("unix://").unwrap();
    // A length beyond all bounds; no message; a binding before its time: field 3, a message with a sandbox.
    for words in [&[0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 0], b"\0\0\0\x05\x1a\x03\x0a\x01s"] {
        let config = infranetes_tests::anonymous::tls(MEETING_PROTOCOL);
        let stream = UnixStream::connect(socket).await.unwrap();
        let name = "any.agent.infranetes".try_into().unwrap();
        let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        tls.write_all(words).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(20), tls.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.len() < 100, "a refusal at most: {answer:?}");
    }
    guest.session(&node).await;
}

#[tokio::test]
async fn strangers_who_came_first_and_say_no_more_do_not_keep_an_agent_from_its_node() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let mut stranger =
            UnixStream::connect(guest.endpoint.strip_prefix("unix://").unwrap()).await.unwrap();
        stranger.write_all(&[22]).await.unwrap();
        strangers.push(stranger);
    }
    timeout(Duration::from_secs(5), guest.session(&node)).await.unwrap();
}

#[tokio::test]
async fn a_container_lives_and_is_told_of() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let session = guest.session(&node).await;
    let id = container();
    let mut watch = session.watch().await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::Snapshot(Vec::new()));

    session.create_container(&id, &plan()).await.unwrap();
    session.create_container(&id, &plan()).await.unwrap();
    let other = ContainerPlan { cwd: "/tmp".into(), ..plan() };
    let taken = session.create_container(&id, &other).await.unwrap_err();
    assert_eq!(taken.kind(), FailureKind::Conflict);
    let mounts = guest.containers.request(id.as_str()).unwrap().mounts;
    let destinations: Vec<_> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(destinations, ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"]);

    session.start_container(&id).await.unwrap();
    session.start_container(&id).await.unwrap();
    session.stop_container(&id, Duration::ZERO).await.unwrap();
    let again = session.start_container(&id).await.unwrap_err();
    assert_eq!(again.kind(), FailureKind::WrongState);
    session.remove_container(&id).await.unwrap();
    session.remove_container(&id).await.unwrap();
    session.stop_container(&id, Duration::ZERO).await.unwrap();
    let gone = session.start_container(&id).await.unwrap_err();
    assert_eq!(gone.kind(), FailureKind::NotFound);

    // States in between may be seen or skipped; none comes twice or out of order.
    let mut seen = Vec::new();
    loop {
        match watch.next().await.unwrap().unwrap() {
            WatchEvent::Changed(container) => seen.push(container.state),
            WatchEvent::Removed(removed) => {
                assert_eq!(removed, id);
                break;
            }
            WatchEvent::Snapshot(_) => panic!("a second snapshot"),
        }
    }
    let order = [ObservedState::Created, ObservedState::Running, ObservedState::Exited];
    let places: Vec<_> = seen.iter().map(|state| order.iter().position(|o| o == state)).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{seen:?}");
}

#[tokio::test]
async fn commands_keep_their_exit_codes_and_their_bounds() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let session = guest.session(&node).await;
    let id = container();
    session.create_container(&id, &plan()).await.unwrap();
    let run = |args: &[&str], output_limit| {
        session.exec_sync(ExecRequest {
            container: id.clone(),
            args: args.iter().map(ToString::to_string).collect(),
            timeout: Some(Duration::from_secs(5)),
            output_limit,
        })
    };
    assert_eq!(run(&["echo", "x"], 100).await.unwrap_err().kind(), FailureKind::WrongState);
    session.start_container(&id).await.unwrap();

    let echoed = run(&["echo", "hello", "there"], 100).await.unwrap();
    assert_eq!((echoed.stdout.as_slice(), echoed.exit_code), (&b"hello there"[..], 0));
    let failed = run(&["fail", "7"], 100).await.unwrap();
    assert_eq!((failed.stderr.as_slice(), failed.exit_code), (&b"it failed"[..], 7));
    assert_eq!(run(&["nope"], 100).await.unwrap().exit_code, 127);
    let flood = run(&["flood", "3000000"], 1000).await.unwrap();
    assert_eq!((flood.stdout.len(), flood.exit_code), (1000, 0));
}

#[tokio::test]
async fn streams_that_nobody_reads_keep_nobody_from_getting_through() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let session = guest.session(&node).await;
    let id = container();
    session.create_container(&id, &plan()).await.unwrap();
    session.start_container(&id).await.unwrap();
    let start = ExecStart {
        container: id.clone(),
        args: vec!["flood".into(), "3000000".into()],
        tty: false,
        stdin: false,
        timeout: None,
    };
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    let mut open: Vec<Box<dyn Send>> = Vec::new();
    for number in 0..64 {
        if number % 2 == 0 {
            let input = futures::stream::empty().boxed();
            open.push(Box::new(session.exec(start.clone(), input).await.unwrap()));
        } else {
            // More than the machine takes, for a port at which nobody reads.
            let input = futures::stream::repeat(vec![0; 100_000]).boxed();
            open.push(Box::new(session.port_forward(port, input).await.unwrap()));
        }
    }
    let input = || futures::stream::empty().boxed();
    let refused = session.exec(start.clone(), input()).await.err().unwrap();
    assert_eq!(refused.kind(), FailureKind::Exhausted);
    for _ in 0..20 {
        timeout(Duration::from_secs(10), session.usage()).await.unwrap().unwrap();
    }
    // What is dropped makes room, also where it was stuck.
    drop(open);
    let mut outputs = session.exec(start, input()).await.unwrap();
    let mut count = 0;
    while let Some(output) = timeout(Duration::from_secs(10), outputs.next()).await.unwrap() {
        if let ProgramOutput::Stdout(data) = output.unwrap() {
            count += data.len();
        }
    }
    assert_eq!(count, 3_000_000);
    for _ in 0..32 {
        let (mut socket, _) = nobody.accept().await.unwrap();
        let mut bytes = Vec::new();
        // Reset or closed, but over.
        let _ = timeout(Duration::from_secs(10), socket.read_to_end(&mut bytes)).await.unwrap();
    }
}

#[tokio::test]
async fn layers_arrive_whole() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let session = guest.session(&node).await;
    let layer = |digest: &str, size_bytes| MachineLayer {
        digest: digest.into(),
        size_bytes,
        ..MachineLayer::default()
    };
    let image = MachineImage {
        id: "sha256:1".into(),
        layers: vec![layer("sha256:a", 700_000), layer("sha256:b", 3)],
    };
    assert_eq!(session.missing_layers(&image).await.unwrap(), ["sha256:a", "sha256:b"]);

    let big: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let source = |layer: &MachineLayer, bytes: &[u8]| LayerSource {
        layer: layer.clone(),
        reader: Box::pin(std::io::Cursor::new(bytes.to_vec())),
    };
    let sources = vec![source(&image.layers[0], &big), source(&image.layers[1], b"abc")];
    session.import_layers(sources).await.unwrap();
    assert_eq!(guest.containers.layer("sha256:a").unwrap(), big);
    assert_eq!(guest.containers.layer("sha256:b").unwrap(), b"abc");
    assert_eq!(session.missing_layers(&image).await.unwrap(), Vec::<String>::new());

    let short = vec![source(&layer("sha256:c", 5), b"1234")];
    let refused = session.import_layers(short).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Invalid);
    let broken = LayerSource { layer: layer("sha256:d", 5), reader: Box::pin(Broken) };
    let failed = session.import_layers(vec![broken]).await.unwrap_err();
    assert!(matches!(failed, SessionError::Local { .. }), "{failed:?}");
    assert_eq!(guest.containers.layer("sha256:d"), None);
}

struct Broken;

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("the disk is broken")))
    }
}

#[tokio::test]
async fn a_forged_token_enrols_nobody_and_the_true_one_still_works() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let forged = Ticket { token: vec![0; 32], ..guest.ticket.clone() };
    for _ in 0..20 {
        untrusted(node.enrol(&guest.endpoint, &forged).await.map(drop), "the proof does not fit");
    }
    guest.session(&node).await;
}

#[tokio::test]
async fn a_node_with_another_ca_gets_nothing() {
    let (ours, stranger) = (node(), node());
    let guest = Guest::boot(&ours).await;
    untrusted(stranger.enrol(&guest.endpoint, &guest.ticket).await.map(drop), "refused this node");
    let identity = ours.enrol(&guest.endpoint, &guest.ticket).await.unwrap().identity;
    untrusted(stranger.enrol(&guest.endpoint, &guest.ticket).await.map(drop), "refused this node");
    untrusted(stranger.connect(&guest.endpoint, &identity).await, "certificate");
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_nothing() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let socket = PathBuf::from(guest.endpoint.strip_prefix("unix://").unwrap());
    for enrolled in [false, true] {
        if enrolled {
            guest.session(&node).await;
        }
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        // Not even TLS: HTTP/2 in the clear.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.len() < 16, "an alert at most: {answer:?}");
        assert!(anonymous_call_fails(&socket).await);
    }
}

/// TLS as it should be, but for the client certificate.
async fn anonymous_call_fails(socket: &std::path::Path) -> bool {
    let config = infranetes_tests::anonymous::tls(SESSION_PROTOCOL);
    let stream = UnixStream::connect(socket).await.unwrap();
    let name = "any.agent.infranetes".try_into().unwrap();
    match tokio_rustls::TlsConnector::from(config).connect(name, stream).await {
        Err(_) => true,
        // TLS 1.3: the server's refusal comes after the client's own end of the handshake.
        Ok(mut tls) => {
            let _ = tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
            let mut answer = Vec::new();
            timeout(Duration::from_secs(20), tls.read_to_end(&mut answer)).await.unwrap().is_err()
                && answer.is_empty()
        }
    }
}

#[tokio::test]
async fn an_answer_that_got_lost_does_not_lock_the_node_out() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let first = node.enrol(&guest.endpoint, &guest.ticket).await.unwrap().identity;
    // The node crashed before it recorded that; the token is spent, and not needed.
    let spent = Ticket { token: vec![0; 32], ..guest.ticket.clone() };
    let again = node.enrol(&guest.endpoint, &spent).await.unwrap();
    assert!(again.identity == first && again.session.is_none());
    node.connect(&guest.endpoint, &first).await.unwrap();
}

#[tokio::test]
async fn an_agent_of_another_name_is_not_taken_for_ours() {
    let node = node();
    let (one, two) = (Guest::boot(&node).await, Guest::boot(&node).await);
    one.session(&node).await;
    two.session(&node).await;
    let other = AgentIdentity { agent_name: two.ticket.agent_name.clone() };
    untrusted(node.connect(&one.endpoint, &other).await, "certificate");
    untrusted(node.enrol(&one.endpoint, &two.ticket).await.map(drop), "refused");
}

#[tokio::test]
async fn an_expired_certificate_does_not_count() {
    let ca = NodeCa::generate().unwrap();
    let node = TlsConnector::with_certificate_life(ca, Duration::from_secs(3));
    let guest = Guest::boot(&node).await;
    let identity = node.enrol(&guest.endpoint, &guest.ticket).await.unwrap().identity;
    let open = node.connect(&guest.endpoint, &identity).await.unwrap();
    let end = SystemTime::now() + Duration::from_secs(30);
    let refused = loop {
        match node.connect(&guest.endpoint, &identity).await {
            Err(error) => break error,
            Ok(_) => assert!(SystemTime::now() < end, "an expired certificate still counts"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    untrusted::<()>(Err(refused), "certificate");
    // A session that is open outlives it, and mends it.
    open.rotate_if_due().await.unwrap();
    node.connect(&guest.endpoint, &identity).await.unwrap();
}

#[tokio::test]
async fn a_rotation_does_not_disturb_open_streams() {
    let ca = NodeCa::generate().unwrap();
    let same = NodeCa::from_bytes(&ca.to_bytes()).unwrap();
    let short = TlsConnector::with_certificate_life(ca, Duration::from_secs(60));
    let guest = Guest::boot(&short).await;
    let session = guest.session(&short).await;
    // Not due yet for a node that gives short certificates, long due for one that gives long ones.
    session.rotate_if_due().await.unwrap();
    let long = TlsConnector::with_certificate_life(same, Duration::from_secs(86_400));
    let identity = AgentIdentity { agent_name: guest.ticket.agent_name.clone() };
    let session = long.connect(&guest.endpoint, &identity).await.unwrap();
    let mut watch = session.watch().await.unwrap();
    watch.next().await.unwrap().unwrap();
    session.rotate_if_due().await.unwrap();
    session.create_container(&container(), &plan()).await.unwrap();
    assert!(matches!(watch.next().await.unwrap().unwrap(), WatchEvent::Changed(_)));
    long.connect(&guest.endpoint, &identity).await.unwrap();
}

#[tokio::test]
async fn nobody_there_is_not_yet() {
    let node = node();
    let ticket = node.invite(&sandbox()).unwrap().ticket;
    let identity = AgentIdentity { agent_name: ticket.agent_name.clone() };
    let dir = tempfile::tempdir().unwrap();
    let nowhere = format!("unix://{}", dir.path().join("none").display());
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // What a forwarder of a machine that still boots does.
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closing.local_addr().unwrap();
    let forwarder = tokio::spawn(async move {
        loop {
            drop(closing.accept().await);
        }
    });
    let forwarded = format!("tcp://{address}");
    for endpoint in [&nowhere, &format!("tcp://{refused}"), &forwarded] {
        let result = node.connect(endpoint, &identity).await.map(drop);
        assert!(matches!(result, Err(SessionError::NotYet { .. })), "{endpoint}: {result:?}");
    }
    // An enrolment is patient: it asks for some seconds before it says so.
    let result = node.enrol(&forwarded, &ticket).await.map(drop);
    assert!(matches!(result, Err(SessionError::NotYet { .. })), "{result:?}");
    forwarder.abort();
    assert!(matches!(node.connect("x", &identity).await, Err(SessionError::Local { .. })));
}

#[tokio::test]
async fn logs_and_watch_go_on_after_a_cut_without_loss_or_repetition() {
    let node = node();
    let guest = Guest::boot(&node).await;
    let wire = Wire::lay(&guest.endpoint).await;
    let identity = node.enrol(&wire.endpoint, &guest.ticket).await.unwrap().identity;
    let session = node.connect(&wire.endpoint, &identity).await.unwrap();
    let id = container();
    session.create_container(&id, &plan()).await.unwrap();
    session.start_container(&id).await.unwrap();
    let mut watch = session.watch().await.unwrap();
    watch.next().await.unwrap().unwrap();

    for line in ["one", "two", "three"] {
        guest.containers.write(id.as_str(), line);
    }
    let mut logs = session.logs(&id, 0).await.unwrap();
    let mut read = Vec::new();
    for _ in 0..3 {
        read.push(next_line(logs.as_mut()).await.unwrap());
    }
    logs.acknowledge(2).await.unwrap();
    while guest.containers.acknowledged(id.as_str()) < 2 {
        tokio::task::yield_now().await;
    }
    wire.cut();
    assert!(matches!(logs.next().await, Err(SessionError::Broken(_))));
    let cut = loop {
        match watch.next().await.unwrap() {
            Ok(_) => (),
            Err(error) => break error,
        }
    };
    assert!(matches!(cut, SessionError::Broken(_)), "{cut:?}");
    assert!(matches!(session.usage().await, Err(SessionError::Broken(_))));

    guest.containers.write(id.as_str(), "four");
    guest.containers.exit(id.as_str(), 3);
    let wire = Wire::lay(&guest.endpoint).await;
    let session = node.connect(&wire.endpoint, &identity).await.unwrap();
    let mut logs = session.logs(&id, 3).await.unwrap();
    while let Some(line) = next_line(logs.as_mut()).await {
        read.push(line);
    }
    assert_eq!(read, ["one", "two", "three", "four"]);
    let mut watch = session.watch().await.unwrap();
    let Some(Ok(WatchEvent::Snapshot(all))) = watch.next().await else { panic!("no snapshot") };
    assert_eq!((all.len(), all[0].state, all[0].exit_code), (1, ObservedState::Exited, 3));
}

async fn next_line(logs: &mut dyn LogSource) -> Option<String> {
    logs.next().await.unwrap().map(|chunk| String::from_utf8(chunk.data).unwrap())
}
