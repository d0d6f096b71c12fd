//! The life of containers: start, exit, output, exec, stop, remove.

mod support;

use std::time::{Duration, Instant};

use infranetes_sdk::v1::exec_input::Input as ExecPart;
use infranetes_sdk::v1::{
    ContainerState, KillContainerRequest, StopContainerRequest, TerminalSize,
};
use infranetes_sdk::{ContainerProvider, ErrorKind};
use support::{World, container, ctx, exec, isolated, request, script};

#[test]
fn a_container_runs_to_its_end_with_its_exit_code_and_output() {
    isolated("a_container_runs_to_its_end_with_its_exit_code_and_output", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        for (body, code, reason) in [
            ("echo out; echo err >&2", 0, "Completed"),
            ("echo out; echo err >&2; exit 7", 7, "Error"),
        ] {
            let (status, stdout, stderr) = world.output(script("c1", &image, body)).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{status:?}");
            assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
            assert!(status.started_unix_ns >= status.created_unix_ns);
            assert!(status.finished_unix_ns >= status.started_unix_ns);
        }
        world.assert_clean();
    });
}

#[test]
fn a_program_that_cannot_be_run_is_a_start_error() {
    isolated("a_program_that_cannot_be_run_is_a_start_error", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        for (program, code) in
            [("/bin/nope", 127), ("nope", 127), ("/etc/plain", 126), ("/bin/broken", 126)]
        {
            world.provider.create(ctx(), request("c1", &image, &[program])).await.unwrap();
            let started = world.provider.start(ctx(), container("c1")).await;
            let status = world.status("c1").await;
            let error = started.expect_err(&format!("{program}: {status:?}"));
            assert_eq!(error.kind, ErrorKind::Invalid, "{program}: {error:?}");
            assert_eq!(status.state(), ContainerState::Exited);
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (code, "StartError"),
                "{status:?}"
            );
            assert!(!status.message.is_empty());
            world.provider.remove(ctx(), container("c1")).await.unwrap();
        }
        world.assert_clean();
    });
}

#[test]
fn a_stop_asks_first_and_kills_later() {
    isolated("a_stop_asks_first_and_kills_later", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let polite = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
        world.run(script("polite", &image, polite)).await;
        world.run(request("deaf", &image, &["/bin/sleep", "1000"])).await;
        // Until it said so, it may not have set its trap.
        while !std::fs::read_dir(world.dir.path().join("run/c/polite")).unwrap().any(|_| true) {}
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stop = |id: &str, grace_ms| StopContainerRequest {
            id: id.into(),
            signal: String::new(),
            grace_ms,
        };
        world.provider.stop(ctx(), stop("polite", 20_000)).await.unwrap();
        let status = world.status("polite").await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::Exited, 3), "{status:?}");
        assert_eq!(world.logs("polite").await.0, "up\nbye\n");
        let before = Instant::now();
        world.provider.stop(ctx(), stop("deaf", 300)).await.unwrap();
        assert!(before.elapsed() >= Duration::from_millis(300));
        assert_eq!(world.status("deaf").await.exit_code, 137);
        // Again, and of what is gone already.
        world.provider.stop(ctx(), stop("deaf", 0)).await.unwrap();
        for id in ["polite", "deaf", "deaf"] {
            world.provider.remove(ctx(), container(id)).await.unwrap();
        }
        let error = world.provider.stop(ctx(), stop("deaf", 0)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        world.assert_clean();
    });
}

#[test]
fn an_exec_answers_its_output_and_its_true_exit_code() {
    isolated("an_exec_answers_its_output_and_its_true_exit_code", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        world.run(request("c1", &image, &["/bin/sleep", "1000"])).await;
        for (args, code, stdout) in [
            (vec!["/bin/echo", "hi"], 0, "hi\n"),
            (vec!["sh", "-c", "echo a; exit 7"], 7, "a\n"),
            (vec!["/bin/nope"], 127, ""),
            (vec!["/etc/plain"], 126, ""),
            (vec!["sh", "-c", "kill -9 $$"], 137, ""),
            (vec!["sh", "-c", "exit 255"], 255, ""),
        ] {
            let (exit, out, _) = world.exec(exec("c1", &args), vec![]).await.unwrap();
            assert_eq!((exit.code, out.as_str()), (code, stdout), "{args:?}");
            assert!(!exit.timed_out);
        }
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}

#[test]
fn an_exec_takes_input_until_it_is_closed() {
    isolated("an_exec_takes_input_until_it_is_closed", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        world.run(request("c1", &image, &["/bin/sleep", "1000"])).await;
        let mut start = exec("c1", &["cat"]);
        start.stdin = true;
        let input = vec![
            ExecPart::Stdin(b"one\n".to_vec()),
            ExecPart::Stdin(vec![b'x'; 300_000]),
            ExecPart::StdinClosed(true),
        ];
        let (exit, out, _) = world.exec(start, input).await.unwrap();
        assert_eq!((exit.code, out.len()), (0, 300_004));
        let mut start = exec("c1", &["sh", "-c", "stty size; tty; read line; echo got $line"]);
        (start.tty, start.stdin) = (true, true);
        let input = vec![
            ExecPart::Resize(TerminalSize { columns: 91, rows: 37 }),
            ExecPart::Stdin(b"line\n".to_vec()),
        ];
        let (exit, out, _) = world.exec(start, input).await.unwrap();
        assert_eq!(exit.code, 0, "{out}");
        assert!(out.contains("got line") && out.contains("/dev/pts/"), "{out:?}");
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}

#[test]
fn an_exec_that_takes_too_long_is_killed_with_all_that_it_started() {
    isolated("an_exec_that_takes_too_long_is_killed_with_all_that_it_started", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        world.run(request("c1", &image, &["/bin/sleep", "1000"])).await;
        let body = "echo begun; sleep 777 & (sleep 778 &) ; sh -c 'sleep 779; true'";
        let mut start = exec("c1", &["sh", "-c", body]);
        start.timeout_ms = 700;
        let before = Instant::now();
        let (exit, out, _) = world.exec(start, vec![]).await.unwrap();
        assert!(exit.timed_out && out == "begun\n", "{exit:?} {out}");
        assert!(before.elapsed() < Duration::from_secs(10));
        let (_, out, _) = world.exec(exec("c1", &["ps", "-o", "args"]), vec![]).await.unwrap();
        assert!(!out.contains("sleep 77"), "{out}");
        // A child that keeps the pipes open does not hold the answer back for ever.
        let before = Instant::now();
        let (exit, out, _) =
            world.exec(exec("c1", &["sh", "-c", "sleep 500 & echo x"]), vec![]).await.unwrap();
        assert_eq!((exit.code, out.as_str()), (0, "x\n"));
        assert!(before.elapsed() < Duration::from_secs(10));
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}

#[test]
fn repetitions_are_harmless_and_contradictions_are_refused() {
    isolated("repetitions_are_harmless_and_contradictions_are_refused", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let sleeping = request("c1", &image, &["/bin/sleep", "1000"]);
        for _ in 0..2 {
            world.provider.create(ctx(), sleeping.clone()).await.unwrap();
        }
        let error = world.provider.create(ctx(), request("c1", &image, &["/bin/true"])).await;
        assert_eq!(error.unwrap_err().kind, ErrorKind::Conflict);
        let error = world.exec(exec("c1", &["true"]), vec![]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        for _ in 0..2 {
            world.provider.start(ctx(), container("c1")).await.unwrap();
        }
        let kill = KillContainerRequest { id: "c1".into(), signal: "SIGKILL".into() };
        world.provider.kill(ctx(), kill.clone()).await.unwrap();
        assert_eq!(world.exited("c1").await.exit_code, 137);
        world.provider.kill(ctx(), kill).await.unwrap();
        world.provider.start(ctx(), container("c1")).await.unwrap();
        assert_eq!(world.status("c1").await.state(), ContainerState::Exited);
        for _ in 0..2 {
            world.provider.remove(ctx(), container("c1")).await.unwrap();
        }
        world.assert_clean();
    });
}

#[test]
fn a_container_that_ends_as_soon_as_it_may_run_again_was_resumed() {
    isolated("a_container_that_ends_as_soon_as_it_may_run_again_was_resumed", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let ids: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
        for id in &ids {
            world.run(request(id, &image, &["/bin/sleep", "1"])).await;
            world.provider.pause(ctx(), container(id)).await.unwrap();
        }
        // Their time passes while they stand still.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for id in &ids {
            world.provider.resume(ctx(), container(id)).await.unwrap();
        }
        for id in &ids {
            assert_eq!(world.exited(id).await.exit_code, 0);
            let error = world.provider.resume(ctx(), container(id)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Conflict);
            world.provider.remove(ctx(), container(id)).await.unwrap();
        }
        world.assert_clean();
    });
}
