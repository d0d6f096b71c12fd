//! The real agent as a process in namespaces of this node, with a real container provider.

#![expect(clippy::unwrap_used, reason = "what fails in a helper is a failed test")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use infranetes_core::ids::SandboxId;
use infranetes_core::session::tls::{NodeCa, TlsConnector};
use infranetes_core::session::{AgentConnector, Binding};
use infranetes_core::spec::{Dns, PodIdentity};
use infranetes_tests::node::Programs;
use infranetes_tests::wait::until;
use tokio::process::{Child, Command};

const LIMIT: Duration = Duration::from_secs(30);

struct Agent {
    keeper: Child,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start(user_data: &[u8]) -> Self {
        let programs = Programs::from_env().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        let name = "libinfranetes_provider_oci";
        std::fs::copy(programs.bin.join(format!("{name}.so")), plugins.join(format!("{name}.so")))
            .unwrap();
        let config = serde_json::json!({ "run": dir.path().join("run") });
        std::fs::write(plugins.join(format!("{name}.json")), config.to_string()).unwrap();
        std::fs::write(dir.path().join("user-data"), user_data).unwrap();
        let keeper = Command::new(programs.bin.join("infranetes-agent"))
            .arg("--user-data")
            .arg(dir.path().join("user-data"))
            .arg("--plugins")
            .arg(&plugins)
            .arg("--state")
            .arg(dir.path().join("state"))
            .arg("--listen")
            .arg(format!("unix://{}", dir.path().join("agent.sock").display()))
            .args(["--isolate", "--hostname", "machine"])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { keeper, dir }
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.path().join("agent.sock").display())
    }

    /// The processes whose command line names this agent's directory.
    fn processes(&self) -> usize {
        let marker = self.dir.path().as_os_str().as_encoded_bytes();
        let cmdline = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
        let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(cmdline);
        all.filter(|line| line.windows(marker.len()).any(|part| part == marker)).count()
    }
}

fn sandbox() -> SandboxId {
    SandboxId::from_random([3; 32])
}

#[tokio::test]
async fn an_isolated_agent_is_a_machine_of_its_own_and_ends_in_order() {
    let node = TlsConnector::new(NodeCa::generate().unwrap());
    let invitation = node.invite(&sandbox()).unwrap();
    let mut agent = Agent::start(&invitation.user_data);
    let identity = node.enrol(&agent.endpoint(), &invitation.ticket).await.unwrap().identity;
    assert!(!agent.dir.path().join("user-data").exists(), "the token stayed on disk");
    let session = node.connect(&agent.endpoint(), &identity).await.unwrap();
    let own_hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let parameter = Path::new("/proc/sys/net/core/somaxconn");
    let own_parameter = std::fs::read_to_string(parameter).unwrap();
    session
        .bind(&Binding {
            sandbox: sandbox(),
            pod: PodIdentity {
                name: "web".into(),
                namespace: "default".into(),
                uid: "u".into(),
                attempt: 0,
            },
            hostname: "web-of-a-test".into(),
            dns: Dns::default(),
            sysctls: [("net.core.somaxconn".to_owned(), "77".to_owned())].into(),
            network: None,
        })
        .await
        .unwrap();
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), own_hostname);
    assert_eq!(std::fs::read_to_string(parameter).unwrap(), own_parameter);
    let usage = session.usage().await.unwrap();
    assert!(usage.agent_rss_bytes > 0 && usage.memory_total_bytes > usage.memory_available_bytes);
    assert_eq!(agent.processes(), 2, "a keeper and an agent");

    session.shutdown(Duration::ZERO).await.unwrap();
    let status = tokio::time::timeout(LIMIT, agent.keeper.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(agent.processes(), 0);
}

#[tokio::test]
async fn nothing_outlives_a_keeper_that_is_killed() {
    let node = TlsConnector::new(NodeCa::generate().unwrap());
    let invitation = node.invite(&sandbox()).unwrap();
    let mut agent = Agent::start(&invitation.user_data);
    node.enrol(&agent.endpoint(), &invitation.ticket).await.unwrap();
    agent.keeper.kill().await.unwrap();
    until(LIMIT, "the agent is gone", async || Ok(agent.processes() == 0)).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_cannot_start_says_why_in_one_line() {
    let agent = Agent::start(
        b"{\"version\":9,\"agent_name\":\"a\",\"ca_pem\":\"\",\"token\":\"c2VjcmV0\"}",
    );
    let output =
        tokio::time::timeout(LIMIT, agent.keeper.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text, "infranetes-agent: the user-data has version 9; this agent reads version 1\n");
}
