//! Pod networks by the node's CNI plugins, each case in a network namespace of its own: this machine's network is not touched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1::{self as cri, PodSandboxState};
use infranetes_tests::case::Case;
use infranetes_tests::client::{Client, Pod, container};
use infranetes_tests::network::{Cni, FETCH_LIMIT, fetched, ips, portmap, remove_pods, run, serve};
use infranetes_tests::wait::until;
use serde_json::json;

infranetes_tests::cases!(infranetes_tests::network::on_a_cni_node; process: [
    pods_reach_each_other_and_the_node_them,
    a_port_of_the_node_leads_to_the_pod,
    every_interface_of_the_result_is_the_pods,
    what_a_pod_had_is_given_back_after_kills_at_any_moment,
    a_configuration_that_vanished_is_not_needed_to_disconnect,
    a_plugin_that_fails_is_quoted,
    a_plugin_that_hangs_is_killed_and_holds_up_nobody_else,
    a_stop_that_a_plugin_holds_up_fails_soon_and_del_goes_on_by_itself,
    without_a_configuration_the_node_says_so,
    plugins_that_are_not_ready_make_the_node_not_ready_and_a_start_lets_them_collect,
]);
infranetes_tests::cases!(infranetes_tests::network::on_a_cni_node; qemu: [
    pods_reach_each_other_and_the_node_them,
    a_port_of_the_node_leads_to_the_pod,
    every_interface_of_the_result_is_the_pods,
]);

async fn run_pod(
    client: &mut Client,
    pod: &Pod,
    change: impl FnOnce(&mut cri::PodSandboxConfig),
) -> Result<String, tonic::Status> {
    let mut config = pod.config();
    change(&mut config);
    let request =
        cri::RunPodSandboxRequest { config: Some(config), runtime_handler: pod.handler.clone() };
    Ok(client.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn pods_reach_each_other_and_the_node_them(case: &mut Case, cni: &Cni) -> Result<()> {
    cni.write_bridge()?;
    let mut client = case.client();
    client.pull(&case.image).await?;
    let (web, other) = (case.pod("web"), case.pod("other"));
    let (server, asker) = (client.run_pod(&web).await?, client.run_pod(&other).await?);
    let addresses = ips(&mut client, &server).await?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    ensure!(addresses[0].starts_with("10.88.0."), "{addresses:?}");
    ensure!(addresses[1].starts_with("fd88::"), "{addresses:?}");
    let serving = serve(case, &web, &server, "hello").await?;
    fetched(&addresses[0], "hello").await?;
    fetched(&format!("[{}]", addresses[1]), "hello").await?;

    let idle = container("idle", &case.image, &["sleep", "1000"]);
    let idle = client.run_container(&asker, &other, idle).await?;
    for address in &addresses {
        let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {address} 80");
        let answer = client.exec(&idle, &["sh", "-c", &ask]).await?;
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        let error = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(said.ends_with("hello\n"), "{address}: {said:?} {error}");
    }
    // What the network says of itself is so in the pod.
    let show = "ip address show eth0; ip route; cat /etc/resolv.conf /etc/hosts; ls /sys/class/net";
    let seen = client.exec(&serving, &["sh", "-c", show]).await?;
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    let own = format!("inet {}/24", addresses[0]);
    let host = format!("{} web", addresses[0]);
    for part in [
        own.as_str(),
        host.as_str(),
        "mtu 1420",
        "default via 10.88.0.1 dev eth0",
        "nameserver 10.88.0.1",
        "search of.the.network",
    ] {
        ensure!(seen.contains(part), "{part:?} is not in {seen}");
    }
    Ok(())
}

async fn a_port_of_the_node_leads_to_the_pod(case: &mut Case, cni: &Cni) -> Result<()> {
    cni.write_chain(&[cni.bridge()])?;
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("ports");
    let ports = |config: &mut cri::PodSandboxConfig| {
        config.port_mappings =
            vec![cri::PortMapping { container_port: 80, host_port: 12080, ..Default::default() }];
    };
    let refused = run_pod(&mut client, &pod, ports).await.err().context("it was not refused")?;
    ensure!(refused.message().contains("portMappings"), "{refused}");
    cni.write_bridge()?;
    let sandbox = run_pod(&mut client, &pod, ports).await?;
    serve(case, &pod, &sandbox, "through-the-node").await?;
    fetched("127.0.0.1:12080", "through-the-node").await
}

async fn every_interface_of_the_result_is_the_pods(case: &mut Case, cni: &Cni) -> Result<()> {
    // A second interface, made as a meta plugin would: by another plugin, under another name.
    let second = json!({
        "cniVersion": "1.0.0", "name": "second", "type": "bridge", "bridge": "cni1", "mtu": 1300,
        "ipam": {"type": "host-local", "dataDir": cni.path("leases2"), "ranges": [[{"subnet": "10.99.0.0/24"}]]},
    });
    cni.write_plugin(
        "second",
        &format!(
            "previous=$(cat)\ncase $CNI_COMMAND in ADD|DEL) ;; *) exit 0;; esac\n\
             more=$(echo '{second}' | CNI_IFNAME=net1 /usr/lib/cni/bridge) || {{ echo \"$more\"; exit 1; }}\n\
             [ $CNI_COMMAND = ADD ] || exit 0\n\
             python3 - \"$previous\" \"$more\" <<'END'\n{MERGE}\nEND"
        ),
    )?;
    cni.write_chain(&[cni.bridge(), json!({"type": "second"})])?;
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("two");
    let sandbox = client.run_pod(&pod).await?;
    let addresses = ips(&mut client, &sandbox).await?;
    ensure!(addresses.len() == 3 && addresses[2].starts_with("10.99.0."), "{addresses:?}");
    run("ip", &["address", "add", "10.99.0.1/24", "dev", "cni1"])?;
    serve(case, &pod, &sandbox, "both").await?;
    fetched(&addresses[0], "both").await?;
    fetched(&addresses[2], "both").await?;
    Ok(())
}

/// Puts the addresses of one result behind those of another.
const MERGE: &str = "import json, sys
first, more = json.loads(sys.argv[1])['prevResult'], json.loads(sys.argv[2])
offset = len(first['interfaces'])
first['interfaces'] += more['interfaces']
first['ips'] += [dict(ip, interface=ip['interface'] + offset) for ip in more['ips']]
print(json.dumps(first))";

async fn what_a_pod_had_is_given_back_after_kills_at_any_moment(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    // Slow enough to be killed in: before, between and after what the plugins do.
    let slow = "config=$(cat); [ $CNI_COMMAND = CHECK ] && exit 0\n\
                sleep 0.4; [ $CNI_COMMAND = ADD ] || exit 0\n\
                echo \"$config\" | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)[\"prevResult\"]))'";
    cni.write_plugin("slow", slow)?;
    cni.write_chain(&[cni.bridge(), json!({"type": "slow"}), portmap(), json!({"type": "slow"})])?;
    for millis in [0, 50, 150, 300, 500, 700, 900, 1200, 1800] {
        let pod = case.pod(&format!("kill-{millis}"));
        let mut client = case.client();
        let running = tokio::spawn({
            let (mut client, pod) = (client.clone(), pod.clone());
            async move { client.run_pod(&pod).await }
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        case.restart_hard().await?;
        let _ = running.await?;
        client = case.client();
        // Asking again joins or begins, and it becomes ready with one address.
        let sandbox = client.run_pod(&pod).await?;
        ensure!(ips(&mut client, &sandbox).await?.len() == 2);
        let stopping = tokio::spawn({
            let (mut client, sandbox) = (client.clone(), sandbox.clone());
            async move { client.remove_pod(&sandbox).await }
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        case.restart_hard().await?;
        let _ = stopping.await?;
        remove_pods(&mut case.client()).await?;
        until(FETCH_LIMIT, "nothing is left of the pod", async || Ok(cni.left()?.is_empty()))
            .await
            .with_context(|| format!("after {millis} ms: {:#?}", cni.left()))?;
    }
    Ok(())
}

async fn a_configuration_that_vanished_is_not_needed_to_disconnect(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    cni.write_bridge()?;
    let mut client = case.client();
    let (first, second) = (case.pod("first"), case.pod("second"));
    let first = client.run_pod(&first).await?;
    let second = client.run_pod(&second).await?;
    cni.remove_configuration()?;
    case.restart_hard().await?;
    client = case.client();
    // The namespace of one goes, too, as after a restart of the node.
    let pinned = cni.namespaces().join(&second);
    // It is busy while plugins look at it, which they do after a start of the daemon.
    until(FETCH_LIMIT, "the namespace is unpinned", async || {
        Ok(run("umount", &[&pinned.display().to_string()]).is_ok())
    })
    .await?;
    client.remove_pod(&second).await?;
    client.remove_pod(&first).await?;
    Ok(())
}

async fn a_plugin_that_fails_is_quoted(case: &mut Case, cni: &Cni) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("web");
    for (script, parts) in [
        (
            "[ $CNI_COMMAND = ADD ] || exit 0; echo '{\"code\": 107, \"msg\": \"the moon is full\", \"details\": \"again\"}'; exit 1",
            &["the moon is full", "(code 107)", "again", "\"moody\" refused ADD"][..],
        ),
        ("[ $CNI_COMMAND = ADD ] || exit 0; echo garbage", &["no result", "expected value"]),
        ("[ $CNI_COMMAND = ADD ] || exit 0; echo lost >&2; exit 3", &["exit status: 3", "lost"]),
        ("[ $CNI_COMMAND = ADD ] || exit 0; echo '{\"ips\": []}'", &["no address"]),
    ] {
        cni.write_plugin("moody", script)?;
        cni.write_chain(&[cni.bridge(), json!({"type": "moody"})])?;
        let error = client.run_pod(&pod).await.err().context("it was not refused")?;
        for part in parts {
            ensure!(error.message().contains(part), "{part:?} is not in {error}");
        }
        until(FETCH_LIMIT, "what was begun is taken back", async || Ok(cni.left()?.is_empty()))
            .await
            .with_context(|| format!("{:#?}", cni.left()))?;
    }
    // The same wish again starts over, and succeeds once the plugin does.
    cni.write_bridge()?;
    let sandbox = client.run_pod(&pod).await?;
    ensure!(ips(&mut client, &sandbox).await?.len() == 2);
    Ok(())
}

async fn a_plugin_that_hangs_is_killed_and_holds_up_nobody_else(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    let mut client = case.client();
    let pid = cni.path("pid");
    cni.write_plugin(
        "stuck",
        &format!("[ $CNI_COMMAND = ADD ] || exit 0; echo $$ > {}; sleep 1000; true", pid.display()),
    )?;
    cni.write_chain(&[cni.bridge(), json!({"type": "stuck"})])?;
    let stuck = case.pod("stuck");
    let hanging = tokio::spawn({
        let (mut client, stuck) = (client.clone(), stuck.clone());
        async move { client.run_pod(&stuck).await }
    });
    until(FETCH_LIMIT, "the plugin hangs", async || Ok(pid.exists())).await?;
    cni.write_bridge()?;
    client.run_pod(&case.pod("other")).await?;
    // A daemon that comes after it finds the plugin of its predecessor, and ends it.
    case.restart_hard().await?;
    let _ = hanging.await?;
    client = case.client();
    client.run_pod(&stuck).await?;
    let group = std::fs::read_to_string(&pid)?;
    // Nobody may be there to reap it.
    let state = std::fs::read_to_string(format!("/proc/{}/stat", group.trim()));
    let alive = state.is_ok_and(|state| !state.contains(") Z "));
    ensure!(!alive, "the plugin {group} still runs");
    Ok(())
}

async fn a_stop_that_a_plugin_holds_up_fails_soon_and_del_goes_on_by_itself(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    let mut client = case.client();
    let (mended, tries) = (cni.path("mended"), cni.path("tries"));
    let stubborn = format!(
        "config=$(cat)
         if [ $CNI_COMMAND = DEL ]; then
             echo DEL >> {tries}; [ -e {mended} ] && exit 0
             echo '{{\"code\": 11, \"msg\": \"the switch sleeps\"}}'; exit 1
         fi
         [ $CNI_COMMAND = ADD ] || exit 0
         echo \"$config\" | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)[\"prevResult\"]))'",
        tries = tries.display(),
        mended = mended.display(),
    );
    cni.write_plugin("stubborn", &stubborn)?;
    cni.write_chain(&[cni.bridge(), json!({"type": "stubborn"})])?;
    let sandbox = client.run_pod(&case.pod("web")).await?;
    let count = || std::fs::read_to_string(&tries).unwrap_or_default().lines().count();
    // What the first call hears, the second hears too: each has a try of its own, and none waits for the pause between two.
    for call in 1..=3 {
        let began = std::time::Instant::now();
        let error = client.stop_pod(&sandbox).await.err().context("it was stopped")?;
        ensure!(error.message().contains("the switch sleeps"), "{error}");
        ensure!(error.message().contains("could not be disconnected"), "{error}");
        ensure!(began.elapsed() < STOP_LIMIT, "call {call} took {:?}", began.elapsed());
        ensure!(count() >= call, "{} tries after {call} calls", count());
    }
    // What other plugins made is gone, and nobody has to ask for the rest.
    ensure!(!cni.left()?.iter().any(|left| left.contains("veth")), "{:?}", cni.left());
    let before = count();
    until(FETCH_LIMIT, "a try that nobody asked for", async || Ok(count() > before)).await?;
    std::fs::write(&mended, "")?;
    until(FETCH_LIMIT, "nothing is left of the pod", async || Ok(cni.left()?.is_empty())).await?;
    client.stop_pod(&sandbox).await?;
    Ok(())
}

async fn condition(client: &mut Client) -> Result<cri::RuntimeCondition> {
    let status = client.runtime.status(cri::StatusRequest::default()).await?.into_inner();
    let conditions = status.status.context("no status")?.conditions;
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
    network.context("no NetworkReady")
}

async fn without_a_configuration_the_node_says_so(case: &mut Case, cni: &Cni) -> Result<()> {
    let mut client = case.client();
    let network = condition(&mut client).await?;
    ensure!(!network.status && network.message.contains("no CNI configuration"), "{network:?}");
    let pod = case.pod("early");
    let error = client.run_pod(&pod).await.err().context("it was not refused")?;
    ensure!(error.message().contains("no CNI configuration"), "{error}");
    cni.write_chain(&[json!({"type": "no-such-plugin"})])?;
    let network = condition(&mut client).await?;
    ensure!(!network.status && network.message.contains("no-such-plugin"), "{network:?}");
    // It counts as soon as it is there.
    cni.write_bridge()?;
    let network = condition(&mut client).await?;
    ensure!(network.status, "{network:?}");
    let sandbox = client.run_pod(&pod).await?;
    let status = client.sandbox(&sandbox).await?.status.unwrap_or_default();
    ensure!(status.state == PodSandboxState::SandboxReady as i32, "{status:?}");
    Ok(())
}

async fn plugins_that_are_not_ready_make_the_node_not_ready_and_a_start_lets_them_collect(
    case: &mut Case,
    cni: &Cni,
) -> Result<()> {
    let (away, collected) = (cni.path("away"), cni.path("collected"));
    // Debian's plugins are older than 1.1: this one is new, and hands on what they know.
    let modern = format!(
        r#"case $CNI_COMMAND in
        STATUS) [ -e {away} ] || exit 0; echo '{{"code": 50, "msg": "the controller is away"}}'; exit 1 ;;
        GC) exec cat > {collected} ;;
        esac
        said=$(sed 's/"1[.]1[.]0"/"1.0.0"/g; s/"modern"/"bridge"/' | /usr/lib/cni/bridge); code=$?
        echo "$said" | sed 's/"1[.]0[.]0"/"1.1.0"/'; exit $code"#,
        away = away.display(),
        collected = collected.display(),
    );
    cni.write_plugin("modern", &modern)?;
    let mut plugin = cni.bridge();
    plugin["type"] = json!("modern");
    std::fs::write(&away, "")?;
    cni.write_list("1.1.0", &[plugin])?;
    let mut client = case.client();
    until(FETCH_LIMIT, "the node says why it is not ready", async || {
        let network = condition(&mut client.clone()).await?;
        Ok(!network.status && network.message.contains("the controller is away"))
    })
    .await?;
    std::fs::remove_file(&away)?;
    until(FETCH_LIMIT, "the node is ready", async || {
        Ok(condition(&mut client.clone()).await?.status)
    })
    .await?;
    let sandbox = client.run_pod(&case.pod("web")).await?;
    ensure!(ips(&mut client, &sandbox).await?.len() == 2);
    case.restart_hard().await?;
    until(FETCH_LIMIT, "what stays is told", async || {
        let told = std::fs::read(&collected).unwrap_or_default();
        let told = serde_json::from_slice::<serde_json::Value>(&told).unwrap_or_default();
        let stays = json!([{"containerID": sandbox, "ifname": "eth0"}]);
        Ok(told["cni.dev/valid-attachments"] == stays && told["name"] == "pods")
    })
    .await?;
    ensure!(ips(&mut case.client(), &sandbox).await?.len() == 2);
    Ok(())
}

/// The rest of a stop takes a part of it; the pause between two tries would take more.
const STOP_LIMIT: Duration = Duration::from_secs(10);
