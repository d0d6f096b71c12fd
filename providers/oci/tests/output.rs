//! Output and input: what is kept, what waits, what a restart finds.

mod support;

use std::time::Duration;

use infranetes_sdk::v1::attach_input::Input as AttachPart;
use infranetes_sdk::v1::attach_output::Output as AttachPiece;
use infranetes_sdk::v1::logs_input::Input as LogsPart;
use infranetes_sdk::v1::{
    AttachInput, ContainerEventsRequest, ContainerState, LogsInput, LogsStart,
};
use infranetes_sdk::{ContainerProvider, StreamExt, stream};
use support::{World, container, ctx, exec, isolated, script};

fn logs_start(id: &str, after: u64) -> LogsInput {
    LogsInput { input: Some(LogsPart::Start(LogsStart { id: id.into(), after })) }
}

#[test]
fn a_container_that_writes_faster_than_its_reader_reads_waits_and_loses_nothing() {
    let name = "a_container_that_writes_faster_than_its_reader_reads_waits_and_loses_nothing";
    isolated(name, async || {
        let world = World::with(|config| {
            (config.log_memory_kib, config.log_file_mib) = (248, 1);
        })
        .await;
        let image = world.busybox().await;
        // Twelve times what the spool takes.
        world.run(script("c1", &image, "seq 2000000")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.status("c1").await.state(), ContainerState::Running);
        let kept = || {
            let files = std::fs::read_dir(world.dir.path().join("run/c/c1")).unwrap().flatten();
            let logs = files.filter(|one| one.file_name().to_string_lossy().starts_with("log."));
            logs.map(|one| one.metadata().unwrap().len()).sum::<u64>()
        };
        assert!((500_000..1_100_000).contains(&kept()), "{}", kept());
        let (acknowledge, input) = stream::channel(8);
        acknowledge.send(Ok(logs_start("c1", 0))).await.unwrap();
        let mut chunks = world.provider.logs(ctx(), input).await.unwrap();
        let (mut text, mut last) = (Vec::new(), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            assert_eq!(chunk.sequence, last + 1);
            last = chunk.sequence;
            text.extend(chunk.data);
            let durable = LogsInput { input: Some(LogsPart::Acknowledged(last)) };
            // The provider may have ended the stream already.
            let _ = acknowledge.send(Ok(durable)).await;
        }
        let mut expected = String::new();
        for number in 1..=2_000_000 {
            expected.push_str(&number.to_string());
            expected.push('\n');
        }
        assert!(text == expected.as_bytes(), "{} of {} bytes", text.len(), expected.len());
        assert_eq!(world.exited("c1").await.exit_code, 0);
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}

#[test]
fn a_full_spool_does_not_keep_a_container_from_being_removed() {
    isolated("a_full_spool_does_not_keep_a_container_from_being_removed", async || {
        let world = World::with(|config| {
            (config.log_memory_kib, config.log_file_mib) = (248, 0);
        })
        .await;
        let image = world.busybox().await;
        world.run(script("c1", &image, "yes")).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}

#[test]
fn attached_clients_write_and_see_what_comes() {
    isolated("attached_clients_write_and_see_what_comes", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        for tty in [false, true] {
            let mut request =
                script("c1", &image, "while read line; do echo got $line; done; echo end");
            let process = request.process.as_mut().unwrap();
            (process.stdin, process.stdin_once, process.tty) = (true, true, tty);
            world.run(request).await;
            let (input, inputs) = stream::channel(8);
            let send = async |part| {
                input.send(Ok(AttachInput { input: Some(part) })).await.unwrap();
            };
            send(AttachPart::Start(container("c1"))).await;
            send(AttachPart::Stdin(b"one\n".to_vec())).await;
            let mut output = world.provider.attach(ctx(), inputs).await.unwrap();
            let mut seen = String::new();
            while !seen.contains("got one") {
                match output.next().await.unwrap().unwrap().output.unwrap() {
                    AttachPiece::Stdout(data) => seen += &support::text(data),
                    AttachPiece::Stderr(data) => panic!("{}", support::text(data)),
                }
            }
            send(AttachPart::StdinClosed(true)).await;
            while let Some(piece) = output.next().await {
                if let AttachPiece::Stdout(data) = piece.unwrap().output.unwrap() {
                    seen += &support::text(data);
                }
            }
            assert!(seen.contains("end"), "tty {tty}: {seen:?}");
            assert_eq!(world.exited("c1").await.exit_code, 0);
            world.provider.remove(ctx(), container("c1")).await.unwrap();
        }
        world.assert_clean();
    });
}

#[test]
fn events_begin_with_what_is_and_go_on_with_what_changes() {
    isolated("events_begin_with_what_is_and_go_on_with_what_changes", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        world.provider.create(ctx(), script("c1", &image, "exit 3")).await.unwrap();
        let mut events = world.provider.events(ctx(), ContainerEventsRequest {}).await.unwrap();
        let mut states = Vec::new();
        world.provider.start(ctx(), container("c1")).await.unwrap();
        while states.last() != Some(&ContainerState::Exited) {
            let status = events.next().await.unwrap().unwrap().status.unwrap();
            states.push(status.state());
        }
        use ContainerState::{Created, Exited, Running};
        assert_eq!(states, [Created, Running, Exited]);
        world.provider.remove(ctx(), container("c1")).await.unwrap();
    });
}

#[test]
fn a_restart_finds_nothing_of_the_containers_before_it() {
    isolated("a_restart_finds_nothing_of_the_containers_before_it", async || {
        let mut world = World::new().await;
        let image = world.busybox().await;
        for id in ["c1", "c2"] {
            world.run(script(id, &image, "sleep 1000 & sleep 1000")).await;
        }
        world.provider = support::open(world.dir.path(), &world.parent, |_| {}).await;
        let list = world.provider.list(ctx(), Default::default()).await.unwrap();
        assert!(list.containers.is_empty());
        // The processes of the runtime saw their children die, and end by themselves.
        for _ in 0..200 {
            let path = world.dir.path().join("run/state").display().to_string();
            let found = std::process::Command::new("pgrep").args(["-f", &path]).output().unwrap();
            if found.stdout.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.assert_clean();
        // The image is still here.
        world.run(script("c1", &image, "exec sleep 1000")).await;
        let (exit, ..) = world.exec(exec("c1", &["true"]), vec![]).await.unwrap();
        assert_eq!(exit.code, 0);
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}
