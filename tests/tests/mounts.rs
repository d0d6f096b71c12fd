//! What pods mount, on the real daemon, with the files that a kubelet would have made for them.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::container;
use infranetes_tests::image::TestImage;
use infranetes_tests::kubelet::mount;
use infranetes_tests::kubelet::world::World;
use infranetes_tests::layer::Layer;
use infranetes_tests::on_both;
use infranetes_tests::wait::until;
use tonic::Code;

on_both!(
    a_pod_has_all_that_a_kubelet_mounts_in_every_pod,
    changes_of_the_node_follow_as_a_whole,
    what_a_container_wrote_is_on_the_node_when_it_has_exited,
    images_are_mounted_read_only,
    devices_are_the_machines_own,
);

mod process_alone {
    use super::case;

    #[tokio::test]
    async fn paths_of_the_node_are_copied_by_policy() -> anyhow::Result<()> {
        case::run("process", super::paths_of_the_node_are_copied_by_policy).await
    }

    #[tokio::test]
    async fn what_cannot_be_mounted_is_refused_and_says_why() -> anyhow::Result<()> {
        case::run("process", super::what_cannot_be_mounted_is_refused_and_says_why).await
    }
}

async fn a_pod_has_all_that_a_kubelet_mounts_in_every_pod(case: &mut Case) -> Result<()> {
    let mut world = World::new(case, "every", "").await?;
    let dir = &mut world.dir;
    let token =
        dir.kept("projected", "token", &[("token", "s3cr3t-t0ken"), ("namespace", "default")])?;
    let config = dir.kept("configmap", "config", &[("a", "1"), ("b", "1")])?;
    let (disk, memory) = (dir.empty_dir("disk")?, dir.memory_dir("memory", "3m")?);
    let (hosts, words) =
        (dir.hosts("127.0.0.1 localhost\n1.2.3.4 web\n")?, dir.termination_log("one")?);
    let part = dir.part("config", "one", 0, &config.join("..data/a"))?;
    let shared = dir.part("disk", "one", 1, &{
        let sub = disk.join("sub");
        fs::create_dir(&sub)?;
        sub
    })?;
    let mounts = vec![
        mount(&token, "/var/run/secrets/kubernetes.io/serviceaccount", true),
        mount(&config, "/config", true),
        mount(&disk, "/disk", false),
        mount(&memory, "/memory", false),
        mount(&hosts, "/etc/hosts", false),
        mount(&words, "/dev/termination-log", false),
        mount(&part, "/etc/part", true),
        mount(&shared, "/shared", false),
    ];
    let one = world.run("one", &case.image, "sleep 600", mounts.clone()).await?;
    // Nothing of the node is ever mounted below an emptyDir: whoever wants to see it misses nothing.
    let mut slave = mount(&disk, "/d", false);
    slave.propagation = cri::MountPropagation::PropagationHostToContainer as i32;
    let two = vec![slave, mount(&memory, "/m", true)];
    let two = world.run("two", &case.image, "sleep 600", two).await?;

    let seen = [
        ("cat /var/run/secrets/kubernetes.io/serviceaccount/token", "s3cr3t-t0ken"),
        ("cat /config/a /config/b /etc/part", "111"),
        ("readlink /config/..data; readlink /config/a", "..1\n..data/a"),
        ("stat -c %a:%u:%g /config/..data/a", "640:0:0"),
        ("tail -n 1 /etc/hosts", "1.2.3.4 web"),
        ("stat -c %a /disk; stat -c %a /memory", "777\n777"),
        ("find /disk /memory -maxdepth 0 -mmin -60", "/disk\n/memory"),
        ("stat -c %a /dev/termination-log", "666"),
        ("touch /config/x 2>/dev/null || echo refused", "refused"),
        ("echo 2 > /etc/part 2>/dev/null || echo refused", "refused"),
        ("df -k /memory | tail -n 1 | awk '{print $2}'", "3072"),
        ("stat -f -c %T /config", "tmpfs"),
        ("echo hi > /disk/file; echo ho > /memory/file; echo he > /shared/file", ""),
    ];
    for (script, expected) in seen {
        let found = world.sh(&one, script).await?;
        ensure!(found == expected, "{script}: {found:?}");
    }
    let found = world
        .sh(&two, "cat /d/file /m/file /d/sub/file; touch /m/x 2>/dev/null || echo no")
        .await?;
    ensure!(found == "hi\nho\nhe\nno", "the containers share nothing: {found:?}");
    ensure!(!disk.join("file").exists(), "an emptyDir was copied back");
    let found = world
        .sh(&one, "dd if=/dev/zero of=/memory/big bs=1M count=8 2>&1 | grep -c 'No space'")
        .await?;
    ensure!(found == "1", "the emptyDir in memory has no bound: {found:?}");

    let status = world.client.container(&one).await?.status.context("no status")?;
    ensure!(status.mounts == mounts, "{:?}", status.mounts);
    // The record keeps what is mounted.
    case.restart_hard().await?;
    world.client = case.client();
    let status = world.client.container(&one).await?.status.context("no status")?;
    ensure!(status.mounts == mounts, "{:?}", status.mounts);
    let written = case.node.files_with("s3cr3t-t0ken")?;
    let own = world.dir.path("").display().to_string();
    let elsewhere: Vec<_> = written.iter().filter(|path| !path.starts_with(&own)).collect();
    ensure!(elsewhere.is_empty(), "a secret is on the disk: {elsewhere:?}");
    Ok(())
}

async fn changes_of_the_node_follow_as_a_whole(case: &mut Case) -> Result<()> {
    let mut world = World::new(case, "follow", "").await?;
    let dir = &mut world.dir;
    let config = dir.kept("configmap", "config", &[("a", "0"), ("b", "0")])?;
    let part = dir.part("config", "one", 0, &config.join("..data"))?;
    let hosts = dir.hosts("1.1.1.1 old\n")?;
    let mounts = vec![
        mount(&config, "/config", true),
        mount(&part, "/part", true),
        mount(&hosts, "/etc/hosts", false),
    ];
    // Both files through one directory, as a reader does who wants them to fit together.
    let script = "while true; do cd /config/..data && a=$(cat a 2>/dev/null) && b=$(cat b 2>/dev/null) && [ \"$a\" != \"$b\" ] && echo \"MIXED $a $b\"; done";
    let one = world.run("one", &case.image, script, mounts).await?;
    let reader = &one;
    let read = async |world: &mut World, file: &str| world.sh(reader, &format!("cat {file}")).await;
    ensure!(read(&mut world, "/config/b").await? == "0");

    let mut slowest = Duration::ZERO;
    for round in 1..=8 {
        let text = round.to_string();
        world.dir.swap(&config, &[("a", &text), ("b", &text)])?;
        let changed = Instant::now();
        until(Duration::from_secs(20), "the change is in the machine", async || {
            Ok(read(&mut world, "/config/b").await? == text)
        })
        .await?;
        slowest = slowest.max(changed.elapsed());
    }
    println!("the slowest of 8 changes took {slowest:?}");
    ensure!(slowest < Duration::from_secs(2), "a change took {slowest:?}");
    ensure!(read(&mut world, "/part/b").await? == "0", "a part follows");

    world.dir.hosts("2.2.2.2 new\n")?;
    until(Duration::from_secs(20), "the hosts file follows", async || {
        Ok(read(&mut world, "/etc/hosts").await? == "2.2.2.2 new")
    })
    .await?;
    // Names come and go, too.
    world.dir.swap(&config, &[("c", "x"), ("a", "9"), ("b", "9")])?;
    until(Duration::from_secs(20), "a new name is there", async || {
        let names = world.sh(reader, "ls /config | tr '\\n' ' '").await?;
        Ok(names.trim() == "a b c")
    })
    .await?;
    world.dir.swap(&config, &[("a", "9"), ("b", "9")])?;
    until(Duration::from_secs(20), "an old name is gone", async || {
        Ok(world.sh(reader, "ls /config | tr '\\n' ' '").await?.trim() == "a b")
    })
    .await?;

    // What changes while there is no daemon follows with the next one.
    case.daemon.kill_now().await?;
    world.dir.swap(&config, &[("a", "late"), ("b", "late")])?;
    case.daemon = case.node.start().await?;
    world.client = case.client();
    until(Duration::from_secs(20), "a change that nobody saw is there", async || {
        Ok(read(&mut world, "/config/b").await.unwrap_or_default() == "late")
    })
    .await?;
    let mixed = case.log_lines(&world.pod, "one")?;
    ensure!(mixed.is_empty(), "a reader saw half of a change: {mixed:?}");
    Ok(())
}

async fn what_a_container_wrote_is_on_the_node_when_it_has_exited(case: &mut Case) -> Result<()> {
    let mut world = World::new(case, "words", "write_back_kib = 4\n").await?;
    let hosts = world.dir.hosts("1.1.1.1 old\n")?;
    for (name, script, expected) in [
        ("short", "echo -n last words > /dev/termination-log; exit 3", "last words".to_owned()),
        ("silent", "exit 0", String::new()),
        (
            "long",
            "seq 100000 > /dev/termination-log",
            (1..=100_000).map(|n| format!("{n}\n")).collect::<String>(),
        ),
    ] {
        let words = world.dir.termination_log(name)?;
        let mounts =
            vec![mount(&words, "/dev/termination-log", false), mount(&hosts, "/etc/hosts", false)];
        let id = world.run(name, &case.image, script, mounts).await?;
        world.exited(&id).await?;
        // At once: who is told that it exited reads the file.
        let found = fs::read_to_string(&words)?;
        let expected = &expected[expected.len().saturating_sub(4096)..];
        ensure!(found == expected, "{name}: {} bytes: {:?}", found.len(), found.get(..100));
        ensure!(fs::read_to_string(&hosts)? == "1.1.1.1 old\n", "an unchanged file was written");
    }

    // A stop, while there is a daemon and after one was killed.
    let script = "trap 'echo stopped > /dev/termination-log; echo 3.3.3.3 x >> /etc/hosts; exit 0' TERM; echo ready; while true; do sleep 0.1; done";
    for restart in [false, true] {
        let name = format!("stopped-{restart}");
        let words = world.dir.termination_log(&name)?;
        let mounts =
            vec![mount(&words, "/dev/termination-log", false), mount(&hosts, "/etc/hosts", false)];
        let id = world.run(&name, &case.image, script, mounts).await?;
        if restart {
            case.restart_hard().await?;
            world.client = case.client();
        }
        // The shell has to have its trap.
        case.wait_log(&world.pod, &name, "ready").await?;
        until(Duration::from_secs(30), "the container is stopped", async || {
            Ok(world.client.stop_container(&id, 20).await.is_ok())
        })
        .await?;
        ensure!(fs::read_to_string(&words)? == "stopped\n", "{name}: nothing came back");
        ensure!(fs::read_to_string(&hosts)?.ends_with("3.3.3.3 x\n"), "{name}");
    }

    // A daemon that was not there when it exited.
    let words = world.dir.termination_log("alone")?;
    let mounts = vec![mount(&words, "/dev/termination-log", false)];
    let script = "sleep 2; echo alone > /dev/termination-log";
    let id = world.run("alone", &case.image, script, mounts).await?;
    case.daemon.kill_now().await?;
    // Machines say it on their consoles, which are files of the node.
    let exited = format!("container exited container=\"{id}\"");
    until(Duration::from_secs(60), "the container exited", async || {
        Ok(!case.node.files_with(&exited)?.is_empty())
    })
    .await?;
    case.daemon = case.node.start().await?;
    world.client = case.client();
    world.exited(&id).await?;
    ensure!(fs::read_to_string(&words)? == "alone\n");
    Ok(())
}

async fn images_are_mounted_read_only(case: &mut Case) -> Result<()> {
    let mut world = World::new(case, "images", "").await?;
    let model = format!("{}/model:1", case.registry.host());
    let mut layer = Layer::default();
    layer.dir("weights", 0o755)?;
    layer.file("weights/a", 0o644, b"one")?;
    let image = TestImage::empty().with_layer(layer.finish()?)?;
    image.push(&case.registry.host(), "model", "1").await?;
    let pulled = world.client.pull(&model).await?;
    let image = |sub_path: &str, readonly: bool| cri::Mount {
        container_path: "/model".to_owned(),
        readonly,
        image: Some(cri::ImageSpec { image: model.clone(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    };
    let one = world.run("one", &case.image, "sleep 600", vec![image("", true)]).await?;
    let found =
        world.sh(&one, "cat /model/weights/a; touch /model/x 2>/dev/null || echo no").await?;
    ensure!(found == "oneno", "{found:?}");
    let part = world.run("part", &case.image, "sleep 600", vec![image("weights", true)]).await?;
    ensure!(world.sh(&part, "cat /model/a").await? == "one");

    let status = world.client.container(&one).await?.status.context("no status")?;
    let reference = status.mounts[0].image.clone().unwrap_or_default().image_ref;
    ensure!(reference == pulled, "{reference:?}, and not {pulled:?}");
    for (name, mount, code, says) in [
        ("nothing", image("nothing", true), Code::NotFound, "nothing"),
        ("writable", image("", false), Code::InvalidArgument, "read-only"),
    ] {
        let refused = world.run(name, &case.image, "true", vec![mount]).await;
        let refused = refused.err().context("it was not refused")?;
        ensure!(refused.code() == code && refused.message().contains(says), "{name}: {refused:?}");
    }
    Ok(())
}

async fn devices_are_the_machines_own(case: &mut Case) -> Result<()> {
    let mut world = World::new(case, "devices", "").await?;
    let device = |host_path: &str, container_path: &str, permissions: &str| cri::Device {
        host_path: host_path.to_owned(),
        container_path: container_path.to_owned(),
        permissions: permissions.to_owned(),
    };
    let mut run = async |name: &str, devices: Vec<cri::Device>| {
        let config =
            cri::ContainerConfig { devices, ..container(name, &case.image, &["sleep", "600"]) };
        world.client.run_container(&world.sandbox, &world.pod, config).await
    };
    // The kernel's log is a device of every machine that no container has by itself.
    let one = run(
        "one",
        vec![
            device("/dev/kmsg", "/dev/log-to-write", "w"),
            device("/dev/kmsg", "/dev/kmsg", "w"),
            device("/dev/null", "", "rwm"),
        ],
    )
    .await?;
    let none = run("none", Vec::new()).await?;
    let missing = run("missing", vec![device("/dev/not-there", "", "rw")]).await;
    let elsewhere = run("elsewhere", vec![device("/etc/passwd", "/dev/x", "r")]).await;
    for (result, says) in [(missing, "no device /dev/not-there"), (elsewhere, "below /dev")] {
        let refused = result.err().context("it was not refused")?;
        let named = refused.message().contains(says);
        ensure!(refused.code() == Code::Unimplemented && named, "{refused:?}");
    }
    let node = "stat -c '%F %t:%T' /dev/log-to-write /dev/kmsg";
    let same = "character special file 1:b";
    ensure!(world.sh(&one, node).await? == format!("{same}\n{same}"));
    let cases = [
        (&one, "echo hello > /dev/log-to-write && echo yes", "yes"),
        // The cgroup's rules are those of the device, by any name.
        (&one, "(: < /dev/log-to-write) 2>/dev/null && echo yes || echo no", "no"),
        (&one, "echo x > /dev/null && echo yes", "yes"),
        (&none, "test -e /dev/kmsg && echo yes || echo no", "no"),
        (&none, "(mknod /k c 1 11 && echo x > /k) 2>/dev/null && echo yes || echo no", "no"),
    ];
    for (container, script, expected) in cases {
        let found = world.sh(container, script).await?;
        ensure!(found == expected, "{script}: {found:?}");
    }
    Ok(())
}

async fn paths_of_the_node_are_copied_by_policy(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let allowed = host.path().join("allowed");
    let scratch = host.path().join("scratch");
    for dir in [&allowed, &scratch] {
        fs::create_dir_all(dir.join("deep"))?;
        fs::write(dir.join("deep/file"), "flag")?;
    }
    symlink(&scratch, allowed.join("out"))?;
    symlink("deep", allowed.join("in"))?;
    symlink(host.path().join("denied"), allowed.join("denied"))?;
    fs::create_dir(host.path().join("denied"))?;
    let keys = format!(
        "host_paths = [\"{}\"]\nscratch_host_paths = [\"{}\"]\n",
        allowed.display(),
        scratch.display()
    );
    let mut world = World::new(case, "policy", &keys).await?;
    let mounts = vec![
        mount(&allowed, "/allowed", true),
        mount(&allowed.join("in"), "/link", true),
        mount(&allowed.join("out"), "/scratch", false),
        mount(&scratch.join("not/there"), "/missing", false),
        mount(&scratch.join("deep/file"), "/file", false),
    ];
    let one = world.run("one", &case.image, "sleep 600", mounts).await?;
    for (script, expected) in [
        ("cat /allowed/deep/file /link/file /scratch/deep/file /file", "flagflagflagflag"),
        ("readlink /allowed/in", "deep"),
        ("touch /allowed/x 2>/dev/null || echo no", "no"),
        (
            "echo new > /scratch/deep/file; echo new > /file; touch /missing/x; cat /scratch/deep/file",
            "new",
        ),
        ("ls /missing", "x"),
    ] {
        let found = world.sh(&one, script).await?;
        ensure!(found == expected, "{script}: {found:?}");
    }
    world.client.stop_container(&one, 0).await?;
    ensure!(fs::read_to_string(scratch.join("deep/file"))? == "flag", "a copy was copied back");
    ensure!(!scratch.join("not").exists(), "something was made on the node");
    for (name, path, readonly, code, says) in [
        ("denied", host.path().join("denied"), true, Code::PermissionDenied, "host_paths"),
        ("link", allowed.join("denied"), true, Code::PermissionDenied, "host_paths"),
        ("writable", allowed.clone(), false, Code::PermissionDenied, "scratch_host_paths"),
        ("neighbour", host.path().join("allowed-not"), true, Code::PermissionDenied, "host_paths"),
    ] {
        let refused =
            world.run(name, &case.image, "true", vec![mount(&path, "/m", readonly)]).await;
        let refused = refused.err().context("it was not refused")?;
        ensure!(refused.code() == code && refused.message().contains(says), "{name}: {refused:?}");
    }
    Ok(())
}

async fn what_cannot_be_mounted_is_refused_and_says_why(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    let _socket = std::os::unix::net::UnixListener::bind(at("socket"))?;
    fs::create_dir(at("with-socket"))?;
    let _other = std::os::unix::net::UnixListener::bind(at("with-socket/s"))?;
    ensure!(std::process::Command::new("mkfifo").arg(at("fifo")).status()?.success());
    fs::create_dir(at("many"))?;
    for number in 0..80 {
        fs::write(at(&format!("many/{number}")), "")?;
    }
    fs::create_dir(at("big"))?;
    fs::write(at("big/file"), vec![0; (1 << 20) + 1])?;
    let deep = (0..80).fold(at("deep"), |path, _| path.join("d"));
    fs::create_dir_all(deep)?;
    let keys = "scratch_host_paths = [\"/\"]\ncopy_mib = 1\ncopy_entries = 70\n";
    let mut world = World::new(case, "refused", keys).await?;
    let claim = world.dir.volume("csi", "claim")?.join("mount");
    fs::create_dir(&claim)?;
    fs::write(claim.join("data"), "data")?;
    let unmounted = world.dir.path("volume-subpaths/v/c/0");
    fs::create_dir_all(&unmounted)?;
    let swapped = world.dir.volume("configmap", "swapped")?;
    fs::remove_dir(&swapped)?;
    symlink("/etc", &swapped)?;
    let absent = world.dir.path("volumes/kubernetes.io~secret/absent");
    let plain = |path: &std::path::Path| mount(path, "/m", false);
    let change = |change: fn(&mut cri::Mount)| {
        let mut mount = mount(&at("many"), "/m", true);
        change(&mut mount);
        mount
    };
    let cases = [
        (plain(&at("socket")), Code::Unimplemented, "a socket"),
        (plain(&at("with-socket")), Code::Unimplemented, "with-socket/s is a socket"),
        (plain(&at("fifo")), Code::Unimplemented, "a FIFO"),
        (plain("/dev/null".as_ref()), Code::Unimplemented, "devices"),
        (plain("/dev/shm".as_ref()), Code::Unimplemented, "shared memory"),
        (plain("/sys/fs/cgroup".as_ref()), Code::Unimplemented, "cgroups"),
        (plain("/proc/self".as_ref()), Code::Unimplemented, "processes"),
        (plain(&at("many")), Code::ResourceExhausted, "copy_entries"),
        (plain(&at("big")), Code::ResourceExhausted, "copy_mib"),
        (plain(&at("deep")), Code::ResourceExhausted, "nested deeper"),
        (plain(&claim), Code::Unimplemented, "kubernetes.io/csi"),
        (plain(&unmounted), Code::InvalidArgument, "no part of a volume"),
        (plain(&swapped), Code::InvalidArgument, "leads through a link"),
        (plain(&absent), Code::NotFound, "absent"),
        (change(|m| m.propagation = 1), Code::Unimplemented, "HOST_TO_CONTAINER"),
        (change(|m| m.propagation = 2), Code::Unimplemented, "BIDIRECTIONAL"),
        (
            change(|m| (m.recursive_read_only, m.readonly) = (true, false)),
            Code::InvalidArgument,
            "not read-only",
        ),
        (
            change(|m| (m.recursive_read_only, m.propagation) = (true, 1)),
            Code::InvalidArgument,
            "not private",
        ),
        (change(|m| m.host_path = "/tmp/../etc".into()), Code::InvalidArgument, "\"..\""),
    ];
    for (number, (mount, code, says)) in cases.into_iter().enumerate() {
        let refused =
            world.run(&format!("c{number}"), &case.image, "true", vec![mount.clone()]).await;
        let refused = refused.err().with_context(|| format!("{mount:?} was not refused"))?;
        let named = refused.message().contains(says);
        ensure!(refused.code() == code && named, "{mount:?}: {refused:?}");
    }
    // A claim that nobody writes to can be had.
    let one =
        world.run("claim", &case.image, "cat /m/data", vec![mount(&claim, "/m", true)]).await?;
    ensure!(world.exited(&one).await?.exit_code == 0);

    // Submounts are writable where only the mount itself is read-only.
    let below = at("below");
    fs::create_dir_all(below.join("tmpfs"))?;
    let _mounted = infranetes_tests::kubelet::Mounted::tmpfs(&below.join("tmpfs"))?;
    for (name, recursive_read_only, expected) in
        [("plain", false, "yes"), ("recursive", true, "no")]
    {
        let mut read_only = mount(&below, "/m", true);
        read_only.recursive_read_only = recursive_read_only;
        let id = world.run(name, &case.image, "sleep 600", vec![read_only]).await?;
        let script =
            "touch /m/x 2>/dev/null || touch /m/tmpfs/x 2>/dev/null && echo yes || echo no";
        let found = world.sh(&id, script).await?;
        ensure!(found == expected, "{name}: {found:?}");
    }
    Ok(())
}
