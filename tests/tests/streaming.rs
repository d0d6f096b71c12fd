//! Exec, attach and port-forward on the real daemon, over SPDY and WebSocket.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::{Client, Pod, container};
use infranetes_tests::on_both;
use infranetes_tests::streams::kubectl::{Kubectl, forwarded_port};
use infranetes_tests::streams::secure::Identity;
use infranetes_tests::streams::{self, Forward, Session, Socket, Wanted, tunnelled};
use infranetes_tests::wait::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

on_both!(
    commands_have_their_streams_and_tell_how_they_ended,
    large_input_and_output_arrive_whole,
    a_terminal_has_a_size_and_control_characters,
    a_command_ends_with_its_client,
    attached_clients_come_and_go,
    input_that_is_there_once_ends_with_its_client,
    ports_are_reached_over_many_connections,
    websocket_clients_have_the_same,
    a_slow_client_disturbs_nobody,
    links_work_once_and_only_for_what_they_are_for,
    kubectl_has_all_of_it_over_spdy_and_websocket,
);

mod process_alone {
    #[tokio::test]
    async fn links_are_served_over_tls_where_the_configuration_says_so() -> anyhow::Result<()> {
        let case = super::links_are_served_over_tls_where_the_configuration_says_so;
        super::case::run("process", case).await
    }
}

const SLEEPER: &[&str] = &["sleep", "6000"];

async fn sandbox(case: &Case, name: &str) -> Result<(Client, Pod, String)> {
    let mut client = case.client();
    let pod = case.pod(name);
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    Ok((client, pod, sandbox))
}

async fn sleeper(case: &Case, name: &str) -> Result<(Client, String, String)> {
    let (mut client, pod, sandbox) = sandbox(case, name).await?;
    let config = container("sleeper", &case.image, SLEEPER);
    let id = client.run_container(&sandbox, &pod, config).await?;
    Ok((client, sandbox, id))
}

async fn exec(client: &mut Client, id: &str, command: &[&str], wanted: Wanted) -> Result<Session> {
    Session::open(&client.exec_link(id, command, wanted).await?, wanted).await
}

async fn processes(client: &mut Client, id: &str, pattern: &str) -> Result<u32> {
    let script = format!("ps | grep -c '{pattern}'");
    let counted = client.exec(id, &["sh", "-c", &script]).await?;
    Ok(String::from_utf8(counted.stdout)?.trim().parse()?)
}

async fn commands_have_their_streams_and_tell_how_they_ended(case: &mut Case) -> Result<()> {
    let (mut client, _, id) = sleeper(case, "exec").await?;
    for (script, stdout, stderr, code) in [
        ("echo out; echo err >&2", "out\n", "err\n", 0),
        ("exit 7", "", "", 7),
        ("kill -9 $$", "", "", 137),
        ("echo $0 | tr h H", "sH\n", "", 0),
    ] {
        let session = exec(&mut client, &id, &["sh", "-c", script], Wanted::OUTPUT).await?;
        let ended = session.end().await?;
        ensure!(ended.stdout == stdout.as_bytes(), "{script}: {ended:?}");
        ensure!(ended.stderr == stderr.as_bytes(), "{script}: {ended:?}");
        ensure!(ended.exit_code() == Some(code), "{script}: {ended:?}");
    }
    let ended = exec(&mut client, &id, &["/no/such"], Wanted::OUTPUT).await?.end().await?;
    ensure!(ended.exit_code() == Some(127), "{ended:?}");

    // The end of input is not the end of output.
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let command = ["sh", "-c", "cat; echo then; sleep 0.2; echo more"];
    let mut session = exec(&mut client, &id, &command, wanted).await?;
    session.type_in(b"line\n").await?;
    session.read_until("line\n").await?;
    session.end_stdin().await?;
    let ended = session.end().await?;
    ensure!(ended.stdout == b"then\nmore\n" && ended.exit_code() == Some(0), "{ended:?}");

    // Input that nobody reads any more does no harm.
    let mut session = exec(&mut client, &id, &["head", "-c", "3"], wanted).await?;
    let mut stdin = session.take_stdin().context("wanted")?;
    let feed = tokio::spawn(async move {
        while stdin.send(Bytes::from_static(&[b'x'; 32 << 10])).await.is_ok() {}
    });
    let ended = session.end().await?;
    ensure!(ended.stdout == b"xxx" && ended.exit_code() == Some(0), "{ended:?}");
    timeout(LIMIT, feed).await??;

    // Only some of the streams.
    let wanted = Wanted { stderr: false, ..Wanted::OUTPUT };
    let command = ["sh", "-c", "echo out; yes | head -c 1000000 >&2; exit 3"];
    let ended = exec(&mut client, &id, &command, wanted).await?.end().await?;
    ensure!(ended.stdout == b"out\n" && ended.exit_code() == Some(3), "{ended:?}");
    Ok(())
}

async fn large_input_and_output_arrive_whole(case: &mut Case) -> Result<()> {
    let (mut client, _, id) = sleeper(case, "large").await?;
    let bytes = if case.node.provider() == "qemu" { 8 << 20 } else { 50 << 20 };
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let mut session = exec(&mut client, &id, &["cat"], wanted).await?;
    let mut stdin = session.take_stdin().context("wanted")?;
    let sent: Vec<u8> =
        (0..bytes).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = Bytes::from(sent);
    let feed = tokio::spawn({
        let sent = sent.clone();
        async move {
            stdin.send(sent).await?;
            stdin.finish().await
        }
    });
    let begin = std::time::Instant::now();
    let ended = session.end().await?;
    feed.await??;
    println!("{bytes} bytes through cat and back in {:?}", begin.elapsed());
    ensure!(ended.exit_code() == Some(0), "{:?}", ended.status);
    ensure!(ended.stdout.len() == sent.len(), "{} of {}", ended.stdout.len(), sent.len());
    ensure!(ended.stdout == sent, "other bytes came back");
    Ok(())
}

async fn a_terminal_has_a_size_and_control_characters(case: &mut Case) -> Result<()> {
    let (mut client, _, id) = sleeper(case, "terminal").await?;
    let mut session = exec(&mut client, &id, &["sh"], Wanted::TERMINAL).await?;
    session.resize(123, 45).await?;
    session
        .type_in(
            b"until [ \"$(stty size)\" = '45 123' ]; do sleep 0.1; done; echo it-is-$((40+2))\n",
        )
        .await?;
    session.read_until("it-is-42").await?;
    session.resize(80, 24).await?;
    session
        .type_in(
            b"until [ \"$(stty size)\" = '24 80' ]; do sleep 0.1; done; echo it-is-$((41+2))\n",
        )
        .await?;
    session.read_until("it-is-43").await?;
    session.type_in(b"test -t 0 && test -t 1 && test -t 2 && echo all-$((1+1))\n").await?;
    session.read_until("all-2").await?;
    // Control-C ends what runs, not the shell.
    session.type_in(b"echo begin-$((2+1)); sleep 600\n").await?;
    session.read_until("begin-3").await?;
    // Before it runs, the terminal is the shell's, and nobody would end what comes after.
    until(Duration::from_secs(30), "it sleeps", async || {
        Ok(processes(&mut client.clone(), &id, "[s]leep 600$").await? == 1)
    })
    .await?;
    session.type_in(&[3]).await?;
    session.type_in(b"echo code-$?\n").await?;
    session.read_until("code-130").await?;
    session.type_in(b"exit 9\n").await?;
    let ended = session.end().await?;
    ensure!(ended.exit_code() == Some(9), "{ended:?}");
    // The end of input is control-D.
    let mut session = exec(&mut client, &id, &["sh"], Wanted::TERMINAL).await?;
    session.type_in(b"echo here-$((1+1))\n").await?;
    // With its prompt the shell reads letter by letter again. A control-D that comes while the terminal still makes lines is no letter, and
    // lost when it does no more.
    session.read_until("here-2\r\n/ # ").await?;
    session.end_stdin().await?;
    let ended = session.end().await?;
    ensure!(ended.exit_code() == Some(0), "{ended:?}");
    Ok(())
}

async fn a_command_ends_with_its_client(case: &mut Case) -> Result<()> {
    let (mut client, _, id) = sleeper(case, "cut").await?;
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let command = ["sh", "-c", "sleep 4321 & sleep 4321 & echo ready; wait"];
    let mut session = exec(&mut client, &id, &command, wanted).await?;
    session.read_until("ready").await?;
    ensure!(processes(&mut client, &id, "[s]leep 4321").await? >= 2);
    drop(session);
    until(LIMIT, "the command and its children are gone", async || {
        Ok(processes(&mut client, &id, "[s]leep 4321").await? == 0)
    })
    .await?;

    // One whose client vanished while its input was stuck.
    let mut session = exec(&mut client, &id, &["sleep", "4322"], wanted).await?;
    let mut stdin = session.take_stdin().context("wanted")?;
    let stuck = async { while stdin.send(Bytes::from_static(&[0; 32 << 10])).await.is_ok() {} };
    ensure!(timeout(Duration::from_secs(3), stuck).await.is_err(), "nothing held the input back");
    drop((stdin, session));
    until(LIMIT, "the stuck command is gone", async || {
        Ok(processes(&mut client, &id, "[s]leep 4322").await? == 0)
    })
    .await
}

async fn attached_clients_come_and_go(case: &mut Case) -> Result<()> {
    let (mut client, pod, sandbox) = sandbox(case, "attach").await?;
    let script =
        "while read line; do echo \"got $line\"; done; echo input ended >&2; sleep 0.3; exit 5";
    let mut config = container("reader", &case.image, &["sh", "-c", script]);
    config.stdin = true;
    let id = client.run_container(&sandbox, &pod, config).await?;
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let mut first = Session::open(&client.attach_link(&id, wanted).await?, wanted).await?;
    let watching = client.attach_link(&id, Wanted::OUTPUT).await?;
    let mut watching = Session::open(&watching, Wanted::OUTPUT).await?;
    // Who only watches is not told when it is attached, and what came before is not repeated.
    until(LIMIT, "the line is seen by both", async || {
        first.type_in(b"one\n").await?;
        first.read_until("got one\n").await?;
        let seen = timeout(Duration::from_secs(1), watching.read_until("got one\n")).await;
        Ok(matches!(seen, Ok(Ok(_))))
    })
    .await?;
    drop(first);
    let mut second = Session::open(&client.attach_link(&id, wanted).await?, wanted).await?;
    second.type_in(b"two\n").await?;
    second.read_until("got two\n").await?;
    watching.read_until("got two\n").await?;
    // The end of this client's input is not the end of the container's.
    second.end_stdin().await?;
    let mut third = Session::open(&client.attach_link(&id, wanted).await?, wanted).await?;
    third.type_in(b"three\n").await?;
    second.read_until("got three\n").await?;
    case.wait_log(&pod, "reader", "got three").await?;
    client.stop_container(&id, 0).await?;
    for session in [watching, second, third] {
        let ended = session.end().await?;
        ensure!(ended.status["status"] == "Success", "{ended:?}");
    }

    let mut config = container("terminal", &case.image, &["sh"]);
    (config.stdin, config.tty) = (true, true);
    let id = client.run_container(&sandbox, &pod, config).await?;
    let link = client.attach_link(&id, Wanted::TERMINAL).await?;
    let mut session = Session::open(&link, Wanted::TERMINAL).await?;
    session.resize(99, 33).await?;
    session
        .type_in(b"until [ \"$(stty size)\" = '33 99' ]; do sleep 0.1; done; echo size-$((1+1))\n")
        .await?;
    session.read_until("size-2").await?;
    drop(session);
    let link = client.attach_link(&id, Wanted::TERMINAL).await?;
    let mut session = Session::open(&link, Wanted::TERMINAL).await?;
    session.type_in(b"echo again-$((1+1)); exit 3\n").await?;
    session.read_until("again-2").await?;
    session.end().await?;
    Ok(())
}

async fn input_that_is_there_once_ends_with_its_client(case: &mut Case) -> Result<()> {
    use infranetes_cri::api::v1::ContainerState::ContainerExited;
    let (mut client, pod, sandbox) = sandbox(case, "once").await?;
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    for (name, ends_first) in [("ended", true), ("left", false)] {
        let mut config = container(name, &case.image, &["sh", "-c", "cat; echo after; exit 4"]);
        (config.stdin, config.stdin_once) = (true, true);
        let id = client.run_container(&sandbox, &pod, config).await?;
        // One who only watches is not the one.
        let link = client.attach_link(&id, Wanted::OUTPUT).await?;
        drop(Session::open(&link, Wanted::OUTPUT).await?);
        let mut session = Session::open(&client.attach_link(&id, wanted).await?, wanted).await?;
        session.type_in(b"hello\n").await?;
        session.read_until("hello\n").await?;
        if ends_first {
            session.end_stdin().await?;
            let ended = session.end().await?;
            ensure!(ended.stdout == b"after\n", "{ended:?}");
        } else {
            drop(session);
        }
        let status = client.wait_container(&id, ContainerExited, LIMIT).await?;
        ensure!(status.exit_code == 4, "{status:?}");
        case.wait_log(&pod, name, "after").await?;
    }
    Ok(())
}

async fn a_slow_client_disturbs_nobody(case: &mut Case) -> Result<()> {
    let (mut client, pod, sandbox) = sandbox(case, "slow").await?;
    // Many times what is on its way to a client at most.
    let bytes = if case.node.provider() == "qemu" { 10_000_000 } else { 20_000_000 };
    let script = format!(
        "sleep 1; yes $(head -c 3000 /dev/zero | tr '\\0' x) | head -c {bytes}; echo; echo done; exec sleep 6000"
    );
    let config = container("writer", &case.image, &["sh", "-c", &script]);
    let id = client.run_container(&sandbox, &pod, config).await?;
    // None of these reads anything: the container's log and everybody else go on.
    let mut stuck = Vec::new();
    let link = client.attach_link(&id, Wanted::OUTPUT).await?;
    let lazy = Session::open(&link, Wanted::OUTPUT).await?;
    for _ in 0..8 {
        let link = client.exec_link(&id, &["yes"], Wanted::OUTPUT).await?;
        stuck.push(Session::open(&link, Wanted::OUTPUT).await?);
    }
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let link = client.exec_link(&id, &["sleep", "6000"], wanted).await?;
    let mut deaf = Session::open(&link, wanted).await?;
    let mut stdin = deaf.take_stdin().context("wanted")?;
    let feeding = async { while stdin.send(Bytes::from_static(&[0; 32 << 10])).await.is_ok() {} };
    ensure!(timeout(Duration::from_secs(2), feeding).await.is_err(), "nothing held it back");
    until(LIMIT * 2, "the container's log is whole", async || {
        let lines = case.log_lines(&pod, "writer").unwrap_or_default();
        Ok(lines.last().is_some_and(|(_, _, text)| text == "done"))
    })
    .await?;
    let quick = timeout(LIMIT, client.exec(&id, &["echo", "quick"])).await??;
    ensure!(quick.stdout == b"quick\n", "{quick:?}");
    // The lazy one finds what it did not take, and why it was dropped.
    let ended = lazy.end().await?;
    ensure!(ended.stdout.len() < bytes, "nothing was dropped");
    let said = ended.status["message"].as_str().unwrap_or_default();
    ensure!(said.contains("fell behind"), "{:?}", ended.status);
    drop((stuck, deaf));
    until(LIMIT, "the stuck commands are gone", async || {
        Ok(processes(&mut client, &id, "[y]es$").await? == 0)
    })
    .await
}

async fn links_are_served_over_tls_where_the_configuration_says_so(case: &mut Case) -> Result<()> {
    let identity = Identity::make(&case.node.path(""))?;
    let (certificate, key) = (identity.certificate.display(), identity.key.display());
    let table =
        format!("[streaming]\ncertificate_file = \"{certificate}\"\nkey_file = \"{key}\"\n");
    case.configure(&table).await?;
    let (mut client, sandbox, id) = sleeper(case, "secure").await?;
    let command = ["sh", "-c", "cat; exit 3"];
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };

    let link = client.exec_link(&id, &command, wanted).await?;
    ensure!(link.starts_with("https://127.0.0.1:"), "{link}");
    let stream = identity.connect(&link).await?;
    let (connection, _) = streams::connect_over(stream, &link, &["v4.channel.k8s.io"]).await?;
    let mut session = Session::over(connection, wanted).await?;
    session.type_in(b"over SPDY").await?;
    session.end_stdin().await?;
    let ended = session.end().await?;
    ensure!(ended.stdout == b"over SPDY" && ended.exit_code() == Some(3), "{ended:?}");

    let link = client.exec_link(&id, &command, wanted).await?;
    let stream = identity.connect(&link).await?;
    let mut socket = Socket::over(stream, &link, "v5.channel.k8s.io").await?;
    socket.send(0, &[b'x'; 100_000]).await?;
    socket.send(255, &[0]).await?;
    let (channels, _) = socket.end().await?;
    ensure!(channels[1] == [b'x'; 100_000], "{} bytes", channels[1].len());
    ensure!(String::from_utf8_lossy(&channels[3]).contains("\"3\""), "{:?}", channels[3]);

    // Who speaks no TLS, or trusts others, gets no link.
    let link = client.port_forward_link(&sandbox, &[]).await?;
    let plain = streams::request(&link, "GET", "").await;
    ensure!(!plain.is_ok_and(|(_, answer)| answer.starts_with("HTTP/1.1 101")), "without TLS");
    let other = Identity::make(tempfile::tempdir()?.path())?;
    ensure!(other.connect(&link).await.is_err(), "anybody is trusted");
    let stream = identity.connect(&link).await?;
    let (connection, _) = streams::connect_over(stream, &link, &["portforward.k8s.io"]).await?;
    let refused = Forward::over(connection).port(7999).await?.ask(b"?").await;
    let refused = refused.err().context("nobody listens there")?;
    ensure!(refused.to_string().contains("nobody answers at port 7999"), "{refused}");
    Ok(())
}

async fn ports_are_reached_over_many_connections(case: &mut Case) -> Result<()> {
    let (mut client, pod, sandbox) = sandbox(case, "ports").await?;
    // Echoes, and says more when the question's end came. It takes one connection after another: its queue is too short for more.
    let echo = "printf '#!/bin/sh\\ncat; echo end\\n' > /tmp/echo; chmod +x /tmp/echo; yes 0123456789 | head -n 30000 > /tmp/large; httpd -p 7002 -h /tmp; httpd -p [::1]:7003 -h /tmp; echo up; exec nc -ll -p 7000 -e /tmp/echo";
    let config = container("echo", &case.image, &["sh", "-c", echo]);
    client.run_container(&sandbox, &pod, config).await?;
    case.wait_log(&pod, "echo", "up").await?;
    let mut forward = Forward::open(&client.port_forward_link(&sandbox, &[]).await?).await?;
    until(LIMIT, "the port is open", async || {
        let answer = forward.port(7000).await?.ask(b"?").await;
        Ok(answer.is_ok_and(|answer| answer == b"?end\n"))
    })
    .await?;
    let mut asking = Vec::new();
    // The last of them listens on IPv6 alone.
    for number in [7002; 8].into_iter().chain([7003]) {
        let port = forward.port(number).await?;
        asking.push(tokio::spawn(async move {
            let answer = port.ask(b"GET /large HTTP/1.0\r\n\r\n").await?;
            let expected = "0123456789\n".repeat(30_000);
            ensure!(answer.ends_with(expected.as_bytes()), "{} bytes", answer.len());
            Ok(())
        }));
    }
    for asking in asking {
        timeout(LIMIT, asking).await???;
    }
    let refused =
        forward.port(7999).await?.ask(b"?").await.err().context("nobody listens there")?;
    ensure!(refused.to_string().contains("nobody answers at port 7999"), "{refused}");
    let question = [b'x'; 100_000];
    let answer = forward.port(7000).await?.ask(&question).await?;
    ensure!(answer == [&question[..], b"end\n"].concat(), "{} bytes", answer.len());

    // SPDY within WebSocket, and channels of WebSocket.
    let mut forward =
        Forward::over(tunnelled(&client.port_forward_link(&sandbox, &[]).await?).await?);
    ensure!(forward.port(7000).await?.ask(b"tunnel").await? == b"tunnelend\n");
    let link = client.port_forward_link(&sandbox, &[7000, 7999]).await?;
    let mut socket = Socket::open(&link, "v4.channel.k8s.io").await?;
    socket.send(0, b"channel\n").await?;
    let mut channels = <[Vec<u8>; 4]>::default();
    while !channels[0].ends_with(b"channel\n") || channels[3].len() < 10 {
        let (channel, data) = socket.next().await?.context("it ended early")?;
        channels[usize::from(channel)].extend(data);
    }
    ensure!(channels[0] == [&7000_u16.to_le_bytes()[..], b"channel\n"].concat(), "{channels:?}");
    ensure!(channels[1] == 7000_u16.to_le_bytes(), "{channels:?}");
    ensure!(String::from_utf8_lossy(&channels[3]).contains("port 7999"), "{channels:?}");
    Ok(())
}

async fn websocket_clients_have_the_same(case: &mut Case) -> Result<()> {
    let (mut client, _, id) = sleeper(case, "websocket").await?;
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let command = ["sh", "-c", "cat; echo err >&2; exit 6"];
    let link = client.exec_link(&id, &command, wanted).await?;
    let mut socket = Socket::open(&link, "v5.channel.k8s.io").await?;
    socket.send(0, b"typed").await?;
    socket.send(255, &[0]).await?;
    let ([_, stdout, stderr, error, _], closed) = socket.end().await?;
    ensure!((&stdout[..], &stderr[..]) == (b"typed", b"err\n"), "{stdout:?} {stderr:?}");
    let status: serde_json::Value = serde_json::from_slice(&error)?;
    ensure!(status["details"]["causes"][0]["message"] == "6", "{status}");
    ensure!(closed.is_empty(), "clients know no end of a channel: {closed:?}");

    // A terminal with v4.
    let link = client.exec_link(&id, &["sh"], Wanted::TERMINAL).await?;
    let mut socket = Socket::open(&link, "v4.channel.k8s.io").await?;
    socket.send(4, b"{\"Width\":66,\"Height\":22}").await?;
    socket.send(0, b"until [ \"$(stty size)\" = '22 66' ]; do sleep 0.1; done; exit 8\n").await?;
    let ([_, _, _, error, _], _) = socket.end().await?;
    let status: serde_json::Value = serde_json::from_slice(&error)?;
    ensure!(status["details"]["causes"][0]["message"] == "8", "{status}");

    // The command ends with a client that never reads.
    let link = client.exec_link(&id, &["yes"], Wanted::OUTPUT).await?;
    let socket = Socket::open(&link, "v5.channel.k8s.io").await?;
    until(LIMIT, "it runs", async || Ok(processes(&mut client, &id, "[y]es$").await? == 1)).await?;
    let quick = timeout(LIMIT, client.exec(&id, &["echo", "quick"])).await??;
    ensure!(quick.stdout == b"quick\n", "{quick:?}");
    drop(socket);
    until(LIMIT, "it is gone", async || Ok(processes(&mut client, &id, "[y]es$").await? == 0)).await
}

async fn links_work_once_and_only_for_what_they_are_for(case: &mut Case) -> Result<()> {
    let (mut client, sandbox, id) = sleeper(case, "links").await?;
    let link = client.exec_link(&id, &["true"], Wanted::OUTPUT).await?;
    ensure!(link.starts_with("http://127.0.0.1:"), "{link}");
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    let odd = spdy.replace("v4.channel", "v9.channel");
    let plain = streams::request(&link, "GET", "").await?.1;
    ensure!(plain.starts_with("HTTP/1.1 400 "), "{plain}");
    let (base, token) = link.rsplit_once('/').context("a link has a path")?;
    let other = format!("{}/attach/{token}", base.trim_end_matches("/exec"));
    ensure!(streams::request(&other, "POST", spdy).await?.1.starts_with("HTTP/1.1 404 "));
    let ended = Session::open(&link, Wanted::OUTPUT).await?.end().await?;
    ensure!(ended.exit_code() == Some(0), "{ended:?}");
    ensure!(streams::request(&link, "POST", spdy).await?.1.starts_with("HTTP/1.1 404 "));
    let link = client.exec_link(&id, &["true"], Wanted::OUTPUT).await?;
    let refused = streams::request(&link, "POST", &odd).await?.1;
    ensure!(
        refused.starts_with("HTTP/1.1 403 ") && refused.contains("v4.channel.k8s.io"),
        "{refused}"
    );

    // Nobody is there who would say something: half of a request, a client that opens no streams, and bombs.
    let host = link.trim_start_matches("http://").split('/').next().context("a host")?.to_owned();
    let mut silent = tokio::net::TcpStream::connect(&host).await?;
    silent.write_all(b"POST /exec/").await?;
    let mut garbage = tokio::net::TcpStream::connect(&host).await?;
    garbage.write_all(&[0xff; 70_000]).await.ok();
    let link = client.exec_link(&id, &["sleep", "4323"], Wanted::OUTPUT).await?;
    let (mut bomb, head) = streams::request(&link, "POST", spdy).await?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
    bomb.write_all(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).await?;
    let mut answer = Vec::new();
    timeout(LIMIT, bomb.read_to_end(&mut answer)).await??;
    ensure!(answer.starts_with(&[0x80, 3, 0, 7]), "no GOAWAY: {answer:?}");
    let closed = timeout(LIMIT, silent.read_to_end(&mut answer)).await;
    closed.context("half of a request keeps its connection")??;

    use tonic::Code;
    let cases = [
        (client.exec_link(&id, &[], Wanted::OUTPUT).await, Code::InvalidArgument),
        (
            client.exec_link(&id, &["x"], Wanted { stderr: true, ..Wanted::TERMINAL }).await,
            Code::InvalidArgument,
        ),
        (client.exec_link("0".repeat(64).as_str(), &["x"], Wanted::OUTPUT).await, Code::NotFound),
        (client.port_forward_link(&sandbox, &[0]).await, Code::InvalidArgument),
        (client.port_forward_link(&id, &[]).await, Code::NotFound),
    ];
    for (answer, code) in cases {
        let error = answer.err().context("a link was given")?;
        ensure!(error.code() == code, "{error}");
    }
    client.stop_container(&id, 0).await?;
    for answer in [
        client.exec_link(&id, &["true"], Wanted::OUTPUT).await,
        client.attach_link(&id, Wanted::OUTPUT).await,
    ] {
        let error = answer.err().context("a link to what does not run")?;
        ensure!(error.code() == Code::FailedPrecondition, "{error}");
    }
    Ok(())
}

async fn kubectl_has_all_of_it_over_spdy_and_websocket(case: &mut Case) -> Result<()> {
    if !Kubectl::is_installed() {
        eprintln!("skipped: there is no kubectl on this machine");
        return Ok(());
    }
    let (mut client, pod, sandbox) = sandbox(case, "kubectl").await?;
    let echo = "printf '#!/bin/sh\\ncat; echo end\\n' > /tmp/echo; chmod +x /tmp/echo; nc -ll -p 7000 -e /tmp/echo & while read line; do echo \"got $line\"; done; exec sleep 6000";
    let mut config = container("c", &case.image, &["sh", "-c", echo]);
    config.stdin = true;
    let id = client.run_container(&sandbox, &pod, config).await?;
    let mut kubectl = Kubectl::new(client.clone(), &sandbox, &id).await?;
    for websockets in [false, true] {
        kubectl.websockets = websockets;
        let exec = ["exec", "-i", "p", "-c", "c", "--", "sh", "-c"];
        let run = async |script, input| kubectl.run(&[&exec[..], &[script]].concat(), input).await;
        let output = run("cat; echo err >&2; exit 7", b"typed".to_vec()).await?;
        ensure!(output.stdout == b"typed" && output.status.code() == Some(7), "{output:?}");
        ensure!(output.stderr.starts_with(b"err\n"), "{output:?}");
        let large: Vec<u8> = (0..5 << 20).map(|at: u32| (at >> 7) as u8).collect();
        let output = run("cat", large.clone()).await?;
        ensure!(output.stdout == large && output.status.success(), "{} came", output.stdout.len());
        let output = run("head -c 3", large).await?;
        ensure!(output.stdout.len() == 3 && output.status.success(), "{output:?}");

        let mut attached = kubectl.start(&["attach", "-i", "p", "-c", "c"])?;
        let word = format!("hello-{websockets}\n");
        attached.stdin.as_mut().context("piped")?.write_all(word.as_bytes()).await?;
        let mut answer = vec![0; "got ".len() + word.len()];
        let mut stdout = attached.stdout.take().context("piped")?;
        timeout(LIMIT, stdout.read_exact(&mut answer)).await??;
        ensure!(answer == format!("got {word}").as_bytes(), "{answer:?}");
        attached.kill().await?;

        let mut forward = kubectl.start(&["port-forward", "pod/p", ":7000"])?;
        let port = forwarded_port(&mut forward).await?;
        for question in [&b"one"[..], b"two", &[b'x'; 300_000]] {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            let (mut read, mut write) = stream.split();
            let mut answer = Vec::new();
            let ask = async {
                write.write_all(question).await?;
                write.shutdown().await
            };
            let (asked, read) = tokio::join!(ask, timeout(LIMIT, read.read_to_end(&mut answer)));
            asked?;
            read??;
            ensure!(answer == [question, b"end\n"].concat(), "{} came back", answer.len());
        }
        forward.kill().await?;

        let mut left = kubectl.start(&[&exec[..], &["echo begun; exec sleep 4324"]].concat())?;
        let mut begun = [0; 6];
        timeout(LIMIT, left.stdout.as_mut().context("piped")?.read_exact(&mut begun)).await??;
        left.kill().await?;
        until(LIMIT, "the command ended with its kubectl", async || {
            Ok(processes(&mut client, &id, "[s]leep 4324").await? == 0)
        })
        .await?;
    }
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(60);
