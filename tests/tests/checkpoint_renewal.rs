//! What machines of one checkpoint must not have in common: random numbers, and who their agents are. And all have the node's time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use infranetes_agent_protocol::SESSION_PROTOCOL;
use infranetes_cri::api::v1 as cri;
use infranetes_tests::anonymous;
use infranetes_tests::case::Case;
use infranetes_tests::client::{Client, container};
use infranetes_tests::wait::until;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

infranetes_tests::cases!(infranetes_tests::case::run; qemu: [
    machines_of_one_checkpoint_have_no_secret_in_common_and_the_time_of_the_node,
]);

async fn machines_of_one_checkpoint_have_no_secret_in_common_and_the_time_of_the_node(
    case: &mut Case,
) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let first = case.pod("first");
    let sandbox = client.run_pod(&first).await?;
    let idle = || container("idle", &case.image, &["sleep", "100000"]);
    let id = client.run_container(&sandbox, &first, idle()).await?;
    let written_down = agents(case).await?;
    ensure!(written_down.len() == 1, "{written_down:?}");
    let checkpoint = case.directory("checkpoint")?;
    client.checkpoint(&sandbox, &[&id], &checkpoint).await?;
    let written_at = Instant::now();
    let mut drawn = draw(&mut client, &id).await?;
    let description = std::fs::read_to_string(checkpoint.join("pod.json"))?;
    for name in &written_down {
        ensure!(description.contains(name.as_str()), "{name} is not in {description}");
    }

    // Long enough that a clock that stood still meanwhile is told from one that did not.
    until(2 * STOOD_STILL, "the checkpoint is old", async || {
        Ok(written_at.elapsed() >= STOOD_STILL)
    })
    .await?;
    for name in ["second", "third"] {
        let restored = client.restore(&case.pod(name), &[idle()], &checkpoint).await?;
        let id = &restored.restored_containers[0].container_id;
        let request = cri::StartContainerRequest { container_id: id.clone() };
        client.runtime.start_container(request).await?;
        let others = draw(&mut client, id).await?;
        let same = drawn.intersection(&others).count();
        ensure!(same == 0, "{same} random numbers of {name} were drawn before");
        drawn.extend(others);
        let said = client.exec(id, &["date", "+%s"]).await?;
        let clock: u64 = String::from_utf8_lossy(&said.stdout).trim().parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        ensure!(now.abs_diff(clock) <= 5, "the clock of {name} says {clock}, and it is {now}");
    }
    let names = agents(case).await?;
    ensure!(names.len() == 3, "two agents have one name: {names:?}");
    ensure!(names.is_disjoint(&written_down), "{names:?}: {written_down:?} was written down");
    Ok(())
}

/// So many that they overlap with those of another machine that draws from the same state and began a little sooner or later: the
/// kernel makes each of them of the one before.
async fn draw(client: &mut Client, container: &str) -> Result<BTreeSet<Vec<u8>>> {
    let command = format!("dd if=/dev/urandom bs=32 count={DRAWS} 2>/dev/null");
    let said = client.exec(container, &["sh", "-c", &command]).await?;
    let drawn: BTreeSet<Vec<u8>> = said.stdout.chunks(32).map(<[u8]>::to_vec).collect();
    ensure!(drawn.len() == DRAWS, "{} different random numbers", drawn.len());
    Ok(drawn)
}

/// The names by which the agents of all machines show themselves to strangers.
async fn agents(case: &Case) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for machine in std::fs::read_dir(case.node.path("state/providers/qemu/machines"))? {
        let record = machine?.path().join("machine.json");
        let Ok(record) = std::fs::read(record) else { continue };
        let record: serde_json::Value = serde_json::from_slice(&record)?;
        let port = record["port"].as_u64().context("a machine without a port")?;
        names.insert(agent(u16::try_from(port)?).await?);
    }
    Ok(names)
}

async fn agent(port: u16) -> Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let connector = TlsConnector::from(anonymous::tls(SESSION_PROTOCOL));
    let tls = connector.connect(ServerName::try_from("anybody.infranetes")?, stream).await?;
    let certificates = tls.get_ref().1.peer_certificates().context("no certificate")?;
    let text =
        String::from_utf8_lossy(certificates.first().context("no certificate")?).into_owned();
    let end = text.find(SUFFIX).context("no name in the certificate")?;
    let name: String = text[..end].chars().rev().take(33).collect();
    Ok(name.chars().rev().chain(SUFFIX.chars()).collect())
}

const SUFFIX: &str = ".agent.infranetes";
const STOOD_STILL: Duration = Duration::from_secs(15);
const DRAWS: usize = 2000;
