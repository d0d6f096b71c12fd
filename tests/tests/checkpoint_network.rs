//! Checkpoints of pods in the node's pod network, with real machines: the first pod and those that go on from it stand side by side.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::Case;
use infranetes_tests::client::{Client, Pod, container};
use infranetes_tests::network::{Cni, FETCH_LIMIT, fetched, ips, remove_pods, run};
use infranetes_tests::wait::until;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

infranetes_tests::cases!(infranetes_tests::network::on_a_cni_node; qemu: [
    a_pod_and_one_that_goes_on_from_its_checkpoint_each_have_their_own_network,
    a_restore_that_a_kill_cuts_off_leaves_nothing,
    other_interfaces_than_those_of_the_checkpoint_are_refused_by_name,
]);

async fn a_pod_and_one_that_goes_on_from_its_checkpoint_each_have_their_own_network(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    cni.write_bridge()?;
    let mut client = case.client();
    client.pull(&case.image).await?;
    let (first, second) = (case.pod("first"), case.pod("second"));
    let sandbox = client.run_pod(&first).await?;
    let old = ips(&mut client, &sandbox).await?;
    let listeners = Listeners::listen(&["10.88.0.1", "fd88::1"]).await?;
    let web = client.run_container(&sandbox, &first, web(&case.image)).await?;
    listeners.wait_for(2).await?;
    let checkpoint = case.directory("checkpoint")?;
    client.checkpoint(&sandbox, &[&web], &checkpoint).await?;

    let capture = Capture::begin(&cni.path("frames")).await?;
    let restored = restore_at(&mut client, &second, &case.image, &checkpoint, 12080).await?;
    let again = &restored.restored_containers[0].container_id;
    let new = ips(&mut client, &restored.pod_sandbox_id).await?;
    ensure!(new.len() == 2 && new.iter().all(|ip| !old.contains(ip)), "{old:?} {new:?}");
    let request = cri::StartContainerRequest { container_id: again.clone() };
    client.runtime.start_container(request).await?;
    for ip in old.iter().chain(&new) {
        let address = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        fetched(&address, "hello").await?;
    }
    fetched("127.0.0.1:12080", "hello").await?;
    // Both ways, which leaves by the interfaces that the pods have.
    for (container, ips) in [(again, &old), (&web, &new)] {
        for ip in ips {
            let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {ip} 80");
            let said = shell(&mut client, container, &ask).await?;
            ensure!(said.ends_with("hello\n"), "{ip}: {said:?}");
        }
    }
    // The first pod's connections go on, with what is still written to them.
    listeners.wait_for_more().await?;

    let show = "cat /sys/class/net/eth0/address; ip address; ip route; ip -6 route; \
                cat /etc/hosts /etc/resolv.conf; hostname; cat /sys/class/net/eth0/mtu";
    let seen = shell(&mut client, again, show).await?;
    let (old_mac, _) = link(cni, &sandbox)?;
    let (new_mac, node_side) = link(cni, &restored.pod_sandbox_id)?;
    for word in old.iter().chain([&old_mac]) {
        ensure!(!seen.contains(word.as_str()), "{word} is still in {seen}");
    }
    let own = [
        new_mac.clone(),
        format!("inet {}/24", new[0]),
        format!("inet6 {}/64", new[1]),
        "default via 10.88.0.1 dev eth0".to_owned(),
        "default via fd88::1 dev eth0".to_owned(),
        format!("{} second", new[0]),
        "nameserver 10.88.0.1".to_owned(),
        "1420".to_owned(),
    ];
    for part in own {
        ensure!(seen.contains(&part), "{part:?} is not in {seen}");
    }
    let sources = capture.sources(&node_side)?;
    ensure!(sources.contains(&Source::Link(new_mac)), "{sources:?}");
    ensure!(sources.contains(&Source::Ip(new[0].parse()?)), "{sources:?}");
    for bad in old.iter().map(|ip| ip.parse().map(Source::Ip)) {
        let bad = bad?;
        ensure!(!sources.contains(&bad), "{bad:?} sent from the restored machine: {sources:?}");
    }
    ensure!(!sources.contains(&Source::Link(old_mac)), "{sources:?}");
    Ok(())
}

async fn a_restore_that_a_kill_cuts_off_leaves_nothing(case: &mut Case, cni: &Cni) -> Result<()> {
    let (mut client, checkpoint) = written_down(case, cni).await?;
    for millis in [0, 150, 400, 800] {
        let pod = case.pod(&format!("kill-{millis}"));
        let restoring = tokio::spawn({
            let (mut client, image) = (client.clone(), case.image.clone());
            let (pod, checkpoint) = (pod.clone(), checkpoint.clone());
            async move { restore_at(&mut client, &pod, &image, &checkpoint, 12080).await }
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        case.restart_hard().await?;
        let _ = restoring.await?;
        client = case.client();
        // A restore that was done just before the kill is a pod like others.
        remove_pods(&mut client).await?;
        until(SETTLE_LIMIT, "nothing is left of it", async || Ok(cni.left()?.is_empty()))
            .await
            .with_context(|| format!("after {millis} ms: {:#?}", cni.left()))?;
    }
    restore_at(&mut client, &case.pod("last"), &case.image, &checkpoint, 12080).await?;
    Ok(())
}

async fn other_interfaces_than_those_of_the_checkpoint_are_refused_by_name(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    let (mut client, checkpoint) = written_down(case, cni).await?;
    // Another plugin makes one more.
    let more = "config=$(cat); case $CNI_COMMAND in ADD) ;; *) exit 0;; esac\n\
                nsenter --net=$CNI_NETNS ip link add net1 type veth peer name far\n\
                nsenter --net=$CNI_NETNS ip link set net1 up\n\
                echo \"$config\" | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)[\"prevResult\"]))'";
    cni.write_plugin("more", more)?;
    cni.write_chain(&[cni.bridge(), serde_json::json!({"type": "more"})])?;
    let second = case.pod("second");
    let wanted = [self::web(&case.image)];
    let error = client.restore(&second, &wanted, &checkpoint).await.err();
    let error = error.context("it was not refused")?;
    ensure!(error.message().contains("[eth0]"), "{error}");
    ensure!(error.message().contains("[eth0, net1]"), "{error}");
    until(FETCH_LIMIT, "nothing is left of it", async || Ok(cni.left()?.is_empty())).await?;
    // Nor does a machine of the pod network become one without.
    let provider = case.node.provider().to_owned();
    case.configure(&format!("[handlers.plain]\nprovider = \"{provider}\"\n")).await?;
    let mut client = case.client();
    let plain = Pod { handler: "plain".to_owned(), ..case.pod("plain") };
    let error = client.restore(&plain, &wanted, &checkpoint).await.err();
    let error = error.context("it was not refused")?;
    ensure!(error.code() == tonic::Code::InvalidArgument, "{error}");
    ensure!(error.message().contains("is in the node's pod network"), "{error}");
    Ok(())
}

/// The checkpoint of a pod that is gone.
async fn written_down(case: &Case, cni: &Cni) -> Result<(Client, PathBuf)> {
    cni.write_bridge()?;
    let mut client = case.client();
    client.pull(&case.image).await?;
    let first = case.pod("first");
    let sandbox = client.run_pod(&first).await?;
    let web = client.run_container(&sandbox, &first, web(&case.image)).await?;
    let checkpoint = case.directory("checkpoint")?;
    client.checkpoint(&sandbox, &[&web], &checkpoint).await?;
    remove_pods(&mut client).await?;
    Ok((client, checkpoint))
}

/// Serves a word at port 80, and writes to the node all the time, by both versions.
fn web(image: &str) -> cri::ContainerConfig {
    let write = |ip: &str| {
        format!("(while :; do echo still; sleep 0.1; done) | nc {ip} {LISTENER_PORT} & ")
    };
    let script = format!(
        "{}{}mkdir -p /tmp/www; echo hello > /tmp/www/index.html; httpd -f -p 80 -h /tmp/www",
        write("10.88.0.1"),
        write("fd88::1")
    );
    container("web", image, &["sh", "-c", &script])
}

/// Restores the pod with a port of the node that leads to it.
async fn restore_at(
    client: &mut Client,
    pod: &Pod,
    image: &str,
    checkpoint: &Path,
    port: i32,
) -> Result<cri::RestorePodResponse> {
    let mut config = pod.config();
    config.port_mappings =
        vec![cri::PortMapping { container_port: 80, host_port: port, ..Default::default() }];
    let request = cri::RestorePodRequest {
        checkpoint_path: checkpoint.display().to_string(),
        config: Some(config),
        runtime_handler: pod.handler.clone(),
        container_configs: vec![web(image)],
        ..Default::default()
    };
    Ok(client.runtime.restore_pod(request).await?.into_inner())
}

async fn shell(client: &mut Client, container: &str, script: &str) -> Result<String> {
    let said = client.exec(container, &["sh", "-c", script]).await?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// The link address of a pod's interface, and the name of the other end of it on the node.
fn link(cni: &Cni, sandbox: &str) -> Result<(String, String)> {
    let namespace = format!("--net={}", cni.namespaces().join(sandbox).display());
    let own = run("nsenter", &[&namespace, "ip", "-json", "link", "show", "eth0"])?;
    let own: serde_json::Value = serde_json::from_str(&own)?;
    let mac = own[0]["address"].as_str().context("no address")?.to_owned();
    let index = own[0]["link_index"].as_u64().context("no other end")?;
    let links: serde_json::Value = serde_json::from_str(&run("ip", &["-json", "link", "show"])?)?;
    let links = links.as_array().context("no links")?;
    let other = links.iter().find(|link| link["ifindex"].as_u64() == Some(index));
    let other = other.and_then(|link| link["ifname"].as_str()).context("no other end")?;
    Ok((mac, other.to_owned()))
}

/// Who listens to what pods write, and counts it.
struct Listeners {
    heard: tokio::sync::watch::Receiver<(usize, u64)>,
}

impl Listeners {
    async fn listen(ips: &[&str]) -> Result<Listeners> {
        let (told, heard) = tokio::sync::watch::channel((0, 0));
        for ip in ips {
            let ip: IpAddr = ip.parse()?;
            let listener = listener(ip).await?;
            let told = told.clone();
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let told = told.clone();
                    told.send_modify(|(connections, _)| *connections += 1);
                    tokio::spawn(async move {
                        let mut chunk = [0; 512];
                        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                            told.send_modify(|(_, bytes)| *bytes += read as u64);
                        }
                        told.send_modify(|(connections, _)| *connections -= 1);
                    });
                }
            });
        }
        Ok(Listeners { heard })
    }

    async fn wait_for(&self, connections: usize) -> Result<()> {
        let mut heard = self.heard.clone();
        let all = heard.wait_for(|(now, _)| *now == connections);
        tokio::time::timeout(FETCH_LIMIT, all).await.context("nobody connects")??;
        Ok(())
    }

    /// The connections that there were go on, and no others came.
    async fn wait_for_more(&self) -> Result<()> {
        let mut heard = self.heard.clone();
        let (connections, bytes) = *heard.borrow();
        ensure!(connections == 2, "{connections} connections");
        let more = heard.wait_for(|(_, now)| *now > bytes + 20);
        tokio::time::timeout(FETCH_LIMIT, more).await.context("they are silent")??;
        Ok(())
    }
}

/// A new address of IPv6 belongs to nobody until the kernel has asked whether another has it.
async fn listener(ip: IpAddr) -> Result<TcpListener> {
    let mut bound = None;
    until(FETCH_LIMIT, "the node has its address", async || {
        bound = match TcpListener::bind((ip, LISTENER_PORT)).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => None,
            bound => Some(bound?),
        };
        Ok(bound.is_some())
    })
    .await?;
    bound.context("no listener")
}

/// All frames that come into this network, by a program that writes them down.
struct Capture {
    program: Child,
    frames: PathBuf,
}

/// Where a frame says that it is from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Link(String),
    Ip(IpAddr),
}

impl Capture {
    async fn begin(frames: &Path) -> Result<Capture> {
        let program = Command::new("python3")
            .args(["-c", CAPTURE])
            .stdout(std::fs::File::create(frames)?)
            .stdin(Stdio::null())
            .spawn()?;
        let capture = Capture { program, frames: frames.to_owned() };
        until(FETCH_LIMIT, "frames are captured", async || {
            Ok(std::fs::read_to_string(frames)?.starts_with("ready"))
        })
        .await?;
        Ok(capture)
    }

    /// Who sent what came in at an interface.
    fn sources(&self, interface: &str) -> Result<BTreeSet<Source>> {
        let mut sources = BTreeSet::new();
        for line in std::fs::read_to_string(&self.frames)?.lines() {
            let Some((name, frame)) = line.split_once(' ').filter(|(name, _)| *name == interface)
            else {
                continue;
            };
            let frame = hex::decode(frame).with_context(|| name.to_owned())?;
            sources.extend(sources_of(&frame));
        }
        Ok(sources)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// What an Ethernet frame says: its own source, that of the packet, and the sender of an ARP message.
fn sources_of(frame: &[u8]) -> Vec<Source> {
    let mac = |bytes: &[u8]| {
        Source::Link(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
    };
    let v4 = |at: usize| -> Option<Source> {
        let octets: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(Source::Ip(octets.into()))
    };
    let mut sources: Vec<Source> = frame.get(6..12).map(mac).into_iter().collect();
    match frame.get(12..14) {
        Some([0x08, 0x00]) => sources.extend(v4(26)),
        Some([0x08, 0x06]) => {
            sources.extend(frame.get(22..28).map(mac));
            sources.extend(v4(28));
        }
        Some([0x86, 0xdd]) => {
            let octets = frame.get(22..38).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
            sources.extend(octets.map(|octets| Source::Ip(octets.into())));
        }
        _ => {}
    }
    sources
}

/// Lines of interface and frame, those that are sent left out.
const CAPTURE: &str = "import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print('ready', flush=True)
while True:
    data, where = s.recvfrom(65535)
    if where[2] != socket.PACKET_OUTGOING:
        print(where[0], data[:64].hex(), flush=True)
";
/// What a machine leaves whose provider was just being asked for it is looked for during half a minute.
const SETTLE_LIMIT: Duration = Duration::from_secs(90);
const LISTENER_PORT: u16 = 9000;
