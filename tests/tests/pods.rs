//! Pods on the real daemon, each case with the `process` provider and with real machines of `qemu`.

use std::time::Duration;

use anyhow::{Result, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerState, PodSandboxState};
use infranetes_tests::case::Case;
use infranetes_tests::client::container;
use infranetes_tests::footprint::processes_with;
use infranetes_tests::on_both;
use infranetes_tests::wait::until;

on_both!(
    a_pod_with_two_containers_lives_and_goes,
    containers_end_with_their_true_exit_codes,
    output_arrives_whole_and_in_order,
    a_killed_daemon_disturbs_nobody,
    a_dead_machine_is_told_and_can_be_removed,
    no_secret_is_in_any_log,
);

async fn a_pod_with_two_containers_lives_and_goes(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("two");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let status = client.sandbox(&sandbox).await?.status.unwrap_or_default();
    ensure!(status.state == PodSandboxState::SandboxReady as i32, "{status:?}");

    let serve = "echo served > /tmp/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp";
    let server = container("server", &case.image, &["sh", "-c", serve]);
    let server = client.run_container(&sandbox, &pod, server).await?;
    let read =
        "until wget -q -O - http://127.0.0.1:8080/; do sleep 0.1; done; hostname; exec sleep 600";
    let reader = container("reader", &case.image, &["sh", "-c", read]);
    let reader = client.run_container(&sandbox, &pod, reader).await?;
    case.wait_log(&pod, "reader", "served").await?;
    case.wait_log(&pod, "reader", "two").await?;

    let listed = client.runtime.list_containers(cri::ListContainersRequest::default()).await?;
    let mut listed: Vec<_> = listed.into_inner().containers.into_iter().map(|c| c.id).collect();
    let mut expected = vec![server.clone(), reader.clone()];
    listed.sort();
    expected.sort();
    ensure!(listed == expected, "listed {listed:?}");

    client.stop_container(&server, 0).await?;
    client.stop_container(&server, 0).await?;
    let status = client.container(&server).await?.status.unwrap_or_default();
    ensure!(status.state == ContainerState::ContainerExited as i32, "{status:?}");
    client.remove_pod(&sandbox).await?;
    let listed = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
    ensure!(listed.into_inner().items.is_empty(), "the sandbox is still listed");
    Ok(())
}

async fn containers_end_with_their_true_exit_codes(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("codes");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    for (name, script, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("killed", "sh -c 'kill -9 $$'; exit $?", 137, "Error"),
    ] {
        let config = container(name, &case.image, &["sh", "-c", script]);
        let id = client.run_container(&sandbox, &pod, config).await?;
        let exited = ContainerState::ContainerExited;
        let status = client.wait_container(&id, exited, EXIT_LIMIT).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (code, reason), "{name}: {status:?}");
    }

    let stubborn = container("stubborn", &case.image, &["sleep", "600"]);
    let stubborn = client.run_container(&sandbox, &pod, stubborn).await?;
    client.stop_container(&stubborn, 1).await?;
    let status = client.container(&stubborn).await?.status.unwrap_or_default();
    ensure!(status.exit_code == 137 && status.finished_at >= status.started_at, "{status:?}");

    let sleeper = container("sleeper", &case.image, &["sleep", "600"]);
    let sleeper = client.run_container(&sandbox, &pod, sleeper).await?;
    for (command, code) in [(vec!["true"], 0), (vec!["sh", "-c", "exit 7"], 7)] {
        let result = client.exec(&sleeper, &command).await?;
        ensure!(result.exit_code == code, "{command:?}: {result:?}");
    }
    let result = client.exec(&sleeper, &["sh", "-c", "echo out; echo err >&2"]).await?;
    ensure!((&result.stdout[..], &result.stderr[..]) == (b"out\n", b"err\n"), "{result:?}");

    let slow = cri::ExecSyncRequest {
        container_id: sleeper.clone(),
        cmd: ["sleep", "321"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let error = client.runtime.exec_sync(slow).await.err().map(|status| status.code());
    ensure!(error == Some(tonic::Code::DeadlineExceeded), "{error:?}");
    let result = client.exec(&sleeper, &["sh", "-c", "ps | grep -c '[s]leep 321'"]).await?;
    ensure!(result.stdout == b"0\n", "the command outlived its time: {result:?}");

    let missing = container("missing", &case.image, &["/no/such/command"]);
    let id = client.create_container(&sandbox, &pod, missing).await?;
    let request = cri::StartContainerRequest { container_id: id.clone() };
    let error = client.runtime.start_container(request).await.err();
    let said = error.map(|status| status.message().to_owned()).unwrap_or_default();
    ensure!(said.contains("/no/such/command"), "{said:?}");
    // The machine tells how it ended right after its answer.
    let status = client.wait_container(&id, ContainerState::ContainerExited, EXIT_LIMIT).await?;
    ensure!(status.reason == "StartError" && status.exit_code != 0, "{status:?}");
    Ok(())
}

async fn output_arrives_whole_and_in_order(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("output");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo oops >&2; printf unfinished";
    let writer = container("writer", &case.image, &["sh", "-c", script]);
    let id = client.run_container(&sandbox, &pod, writer).await?;
    client.wait_container(&id, ContainerState::ContainerExited, EXIT_LIMIT).await?;
    case.wait_log(&pod, "writer", "unfinished").await?;
    let lines = case.log_lines(&pod, "writer")?;
    let out: Vec<_> = lines.iter().filter(|(stream, ..)| stream == "stdout").collect();
    let expected = (0..2000).map(|i| format!("line {i}"));
    ensure!(out.iter().map(|line| line.2.clone()).take(2000).eq(expected), "lines are missing");
    ensure!(out.last().is_some_and(|line| line.1 == "P" && line.2 == "unfinished"), "{out:?}");
    ensure!(
        lines
            .iter()
            .any(|(stream, tag, text)| (&**stream, &**tag, &**text) == ("stderr", "F", "oops"))
    );

    let talker = ["sh", "-c", "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.2; done"];
    let id =
        client.run_container(&sandbox, &pod, container("talker", &case.image, &talker)).await?;
    case.wait_log(&pod, "talker", "tick 1").await?;
    let path = std::path::Path::new(&pod.log_directory).join("talker.log");
    std::fs::rename(&path, path.with_extension("old"))?;
    let request = cri::ReopenContainerLogRequest { container_id: id };
    client.runtime.reopen_container_log(request).await?;
    case.wait_log(&pod, "talker", "tick").await
}

async fn a_killed_daemon_disturbs_nobody(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("steady");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let script =
        "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exec sleep 600";
    let id = client
        .run_container(&sandbox, &pod, container("writer", &case.image, &["sh", "-c", script]))
        .await?;
    let before = client.container(&id).await?.status.unwrap_or_default();
    case.wait_log(&pod, "writer", "line 5").await?;
    case.restart_hard().await?;

    let mut client = case.client();
    let after = client.sandbox(&sandbox).await?.status.unwrap_or_default();
    ensure!(after.state == PodSandboxState::SandboxReady as i32, "{after:?}");
    until(EXIT_LIMIT, "exec works again", async || {
        Ok(client.exec(&id, &["true"]).await.is_ok_and(|result| result.exit_code == 0))
    })
    .await?;
    let status = client.container(&id).await?.status.unwrap_or_default();
    ensure!(status.state == ContainerState::ContainerRunning as i32, "{status:?}");
    ensure!(status.started_at == before.started_at, "it was started again");
    // The same wish again, as a kubelet that saw its call break would send it.
    ensure!(client.run_pod(&pod).await? == sandbox, "the retry made another sandbox");
    case.wait_log(&pod, "writer", "line 59").await?;
    let lines: Vec<_> = case.log_lines(&pod, "writer")?.into_iter().map(|line| line.2).collect();
    let expected: Vec<_> = (0..60).map(|i| format!("line {i}")).collect();
    ensure!(lines == expected, "output was lost or repeated: {lines:?}");
    Ok(())
}

async fn a_dead_machine_is_told_and_can_be_removed(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("victim");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let id = client
        .run_container(&sandbox, &pod, container("sleeper", &case.image, &["sleep", "600"]))
        .await?;
    let dir = case.node.dir().display().to_string();
    let daemon = case.daemon.pid();
    let machine = processes_with(&dir)
        .into_iter()
        .filter(|(pid, line)| {
            Some(*pid) != daemon
                && (line.contains("qemu-system") || line.contains("infranetes-agent"))
        })
        .map(|(pid, _)| pid);
    for pid in machine {
        // One may end by the death of another.
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    }
    until(LOSS_LIMIT, "the sandbox is not ready any more", async || {
        let status = client.sandbox(&sandbox).await?.status.unwrap_or_default();
        Ok(status.state == PodSandboxState::SandboxNotready as i32)
    })
    .await?;
    let exited = ContainerState::ContainerExited;
    let status = client.wait_container(&id, exited, EXIT_LIMIT).await?;
    ensure!(status.reason == "MachineLost" && status.exit_code != 0, "{status:?}");
    client.remove_pod(&sandbox).await?;
    Ok(())
}

async fn no_secret_is_in_any_log(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("discreet");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let secret = "s3cret-of-this-case";
    let mut config = container("quiet", &case.image, &["sleep", "600"]);
    config.envs.push(cri::KeyValue { key: "TOKEN".to_owned(), value: secret.into() });
    let id = client.run_container(&sandbox, &pod, config).await?;
    let result = client.exec(&id, &["sh", "-c", "test \"$TOKEN\" = s3cret-of-this-case"]).await?;
    ensure!(result.exit_code == 0, "the container did not get its environment");
    let registry = case.registry.host();
    let credentials = cri::PullImageRequest {
        image: Some(cri::ImageSpec { image: format!("{registry}/nobody:1"), ..Default::default() }),
        auth: Some(cri::AuthConfig {
            username: "user".to_owned(),
            password: "s3cret-password".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = client.images.pull_image(credentials).await;
    ensure!(refused.is_err(), "an image that does not exist was pulled");
    for needle in [secret, "s3cret-password"] {
        let found = case.node.files_with(needle)?;
        // The record may keep what it must; logs and consoles may not.
        let logs: Vec<_> = found.into_iter().filter(|path| !path.contains("/state/")).collect();
        ensure!(logs.is_empty(), "{needle:?} stands in {logs:?}");
        ensure!(!format!("{:?}", refused).contains(needle));
    }
    Ok(())
}

const EXIT_LIMIT: Duration = Duration::from_secs(30);
const LOSS_LIMIT: Duration = Duration::from_secs(90);
