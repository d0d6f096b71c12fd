//! Directories that machines have together with the node, on the real daemon.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::{self, Case};
use infranetes_tests::kubelet::mount;
use infranetes_tests::kubelet::world::World;
use infranetes_tests::on_both;
use infranetes_tests::wait::until;

on_both!(
    what_a_container_writes_to_a_shared_directory_is_on_the_node,
    what_was_written_while_the_daemon_was_dead_comes_later,
);

mod process_alone {
    use super::case;

    #[tokio::test]
    async fn two_pods_have_one_directory() -> anyhow::Result<()> {
        case::run("process", super::two_pods_have_one_directory).await
    }

    #[tokio::test]
    async fn too_much_stays_in_the_machine_and_is_told() -> anyhow::Result<()> {
        case::run("process", super::too_much_stays_in_the_machine_and_is_told).await
    }

    #[tokio::test]
    async fn what_a_pod_with_users_of_its_own_writes_is_the_nodes_users() -> anyhow::Result<()> {
        case::run("process", super::what_a_pod_with_users_of_its_own_writes_is_the_nodes_users)
            .await
    }

    #[tokio::test]
    async fn a_full_disk_of_the_node_has_nothing_half_written() -> anyhow::Result<()> {
        case::run("process", super::a_full_disk_of_the_node_has_nothing_half_written).await
    }
}

async fn what_a_container_writes_to_a_shared_directory_is_on_the_node(
    case: &mut Case,
) -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    fs::create_dir(at("d"))?;
    for name in ["kept", "changed", "goes", "d/goes"] {
        fs::write(at(name), name)?;
    }
    symlink("/nowhere", at("link"))?;
    let mut world = World::new(case, "shared", &keys(host.path(), "")).await?;
    let one = world.run("one", &case.image, "sleep 600", vec![mount(host.path(), "/s", false)]);
    let one = one.await?;
    let two = world.run("two", &case.image, "sleep 600", vec![mount(host.path(), "/s", true)]);
    let two = two.await?;
    // What a command did is on the node when it is answered.
    for (script, expected) in [
        ("cat /s/kept /s/d/goes; readlink /s/link", "keptd/goes/nowhere"),
        ("echo -n new > /s/changed; rm -r /s/goes /s/d; ls /s", "changed\nkept\nlink"),
        (
            "mkdir -p /s/a/b; echo -n deep > /s/a/b/file; ln -s ../x /s/a/l; chmod 4751 /s/a/b/file",
            "",
        ),
        ("touch /s/x 2>/dev/null; mkfifo /s/pipe; mv /s/kept /s/a/moved", ""),
    ] {
        let found = world.sh(&one, script).await?;
        ensure!(found == expected, "{script}: {found:?}");
    }
    ensure!(fs::read_to_string(at("changed"))? == "new");
    ensure!(!at("goes").exists() && !at("d").exists() && !at("kept").exists());
    ensure!(fs::read_to_string(at("a/b/file"))? == "deep");
    ensure!(fs::metadata(at("a/b/file"))?.permissions().mode() & 0o7777 == 0o751);
    ensure!(fs::read_link(at("a/l"))? == Path::new("../x"));
    ensure!(fs::read_to_string(at("a/moved"))? == "kept");
    ensure!(!at("pipe").exists(), "a FIFO was made on the node");
    ensure!(case.node.log().contains("a FIFO or a socket"), "nobody was told of the FIFO");

    // What the node did is there when a command begins, for all containers, whoever may write.
    fs::write(at("changed"), "of the node")?;
    fs::write(at("born"), "born")?;
    fs::remove_file(at("a/moved"))?;
    let found =
        world.sh(&two, "cat /s/changed /s/born; ls /s/a; echo x > /s/born || echo no").await?;
    ensure!(found.starts_with("of the nodebornb\nl") && found.ends_with("no"), "{found:?}");
    ensure!(fs::read_to_string(at("born"))? == "born");

    // A container that runs is followed without any command, and so is the node.
    let script = "until [ -e /s/ask ]; do sleep 0.1; done; echo answer > /s/answer; sleep 600";
    world.run("three", &case.image, script, vec![mount(host.path(), "/s", false)]).await?;
    fs::write(at("ask"), "")?;
    until(SOON, "the container answers", async || Ok(at("answer").exists())).await?;

    // What it wrote last is there before it is said to have exited.
    let script = "echo -n last > /s/last; rm /s/ask; exit 3";
    let four =
        world.run("four", &case.image, script, vec![mount(host.path(), "/s", false)]).await?;
    let exited = cri::ContainerState::ContainerExited;
    let status = world.client.wait_container(&four, exited, LIMIT).await?;
    ensure!(status.exit_code == 3, "{status:?}");
    ensure!(fs::read_to_string(at("last"))? == "last" && !at("ask").exists());
    let left = fs::read_dir(host.path())?.flatten().map(|one| one.file_name());
    ensure!(!left.into_iter().any(|name| name.to_string_lossy().starts_with(".infranetes")));
    Ok(())
}

async fn what_was_written_while_the_daemon_was_dead_comes_later(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    fs::write(at("goes"), "1")?;
    fs::write(at("stays"), "1")?;
    let mut world = World::new(case, "killed", &keys(host.path(), "")).await?;
    // It writes all the time, so that the daemon is killed in the middle of something.
    let script = "n=0; while true; do n=$((n+1)); echo $n > /s/count; cp /s/count /s/c$((n%20)); \
                  [ $n = 30 ] && rm /s/goes; sleep 0.05; done";
    let one = world.run("one", &case.image, script, vec![mount(host.path(), "/s", false)]).await?;
    let count = || -> u64 {
        fs::read_to_string(at("count")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    for _ in 0..3 {
        let before = count();
        until(LIMIT, "the count goes on", async || Ok(count() > before)).await?;
        case.daemon.kill_now().await?;
        fs::write(at("unseen"), "of the node")?;
        case.restart_hard().await?;
        world.client = case.client();
    }
    let before = count();
    until(LIMIT, "the count goes on", async || Ok(count() > before + 5)).await?;
    until(LIMIT, "a removal is seen", async || Ok(!at("goes").exists())).await?;
    let unseen = world.sh(&one, "cat /s/unseen /s/stays").await?;
    ensure!(unseen == "of the node1", "{unseen:?}");
    // What ended while nobody looked is brought, and no file is a mix of two.
    for number in 0..20 {
        let text = fs::read_to_string(at(&format!("c{number}")))?;
        let whole = text.is_empty() || text.trim().parse::<u64>().is_ok_and(|n| n % 20 == number);
        ensure!(whole, "c{number} has {text:?}");
    }
    Ok(())
}

async fn two_pods_have_one_directory(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let mut world = World::new(case, "first", &keys(host.path(), "")).await?;
    let mounts = || vec![mount(host.path(), "/s", false)];
    let one = world.run("one", &case.image, "sleep 600", mounts()).await?;
    let pod = case.pod("second");
    let second = world.client.run_pod(&pod).await?;
    let config = cri::ContainerConfig {
        mounts: mounts(),
        ..infranetes_tests::client::container("two", &case.image, &["sleep", "600"])
    };
    let two = world.client.run_container(&second, &pod, config).await?;
    for turn in 0..5 {
        let (writer, reader) = if turn % 2 == 0 { (&one, &two) } else { (&two, &one) };
        world.sh(writer, &format!("echo {turn} > /s/file; mkdir /s/d{turn}")).await?;
        let found = world.sh(reader, "cat /s/file; ls /s | wc -l").await?;
        ensure!(found == format!("{turn}\n{}", turn + 2), "{found:?}");
    }
    world.sh(&one, "rm -r /s/*").await?;
    let found = world.sh(&two, "ls -A /s").await?;
    ensure!(found.is_empty() && fs::read_dir(host.path())?.next().is_none(), "{found:?}");
    Ok(())
}

async fn too_much_stays_in_the_machine_and_is_told(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    fs::write(at("file"), "1")?;
    let limits = "shared_mib = 1\nshared_entries = 20\n";
    let mut world = World::new(case, "toomuch", &keys(host.path(), limits)).await?;
    let mounts = vec![mount(host.path(), "/s", false)];
    let one = world.run("one", &case.image, "sleep 600", mounts.clone()).await?;
    for (much, less, says) in [
        ("mkdir /s/many; touch /s/many/$(seq -s ' /s/many/' 1 30)", "rm -r /s/many", "20 entries"),
        ("dd if=/dev/zero of=/s/big bs=1M count=2 2>/dev/null", "rm /s/big", "1048576 bytes"),
    ] {
        world.sh(&one, much).await?;
        world.sh(&one, "echo -n 2 > /s/file").await?;
        ensure!(fs::read_dir(host.path())?.count() == 1, "{much} is on the node");
        ensure!(fs::read_to_string(at("file"))? == "1");
        let told = || {
            case.node.log().lines().any(|line| {
                line.contains(says)
                    && line.contains("toomuch")
                    && line.contains(host.path().to_str().unwrap_or("?"))
            })
        };
        until(LIMIT, "the log says so", async || Ok(told())).await?;
        world.sh(&one, less).await?;
        ensure!(fs::read_to_string(at("file"))? == "2", "it does not go on");
        world.sh(&one, "echo -n 1 > /s/file").await?;
    }
    // On the node the limit is the same: such a directory cannot be mounted.
    fs::write(at("big"), vec![0; (1 << 20) + 1])?;
    let refused = world.run("two", &case.image, "true", mounts).await;
    let refused = refused.err().context("it was not refused")?;
    ensure!(refused.message().contains("shared_mib"), "{refused:?}");
    Ok(())
}

async fn what_a_pod_with_users_of_its_own_writes_is_the_nodes_users(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let at = |name: &str| host.path().join(name);
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777))?;
    fs::write(at("file"), "1")?;
    chown(at("file"), Some(1000), Some(2000))?;
    let mapping = || vec![cri::IdMapping { host_id: 131_072, container_id: 0, length: 65_536 }];
    let users = cri::UserNamespace {
        mode: cri::NamespaceMode::Pod as i32,
        uids: mapping(),
        gids: mapping(),
    };
    let keys = keys(host.path(), "");
    let mut world = World::with_users(case, "mapped", &keys, Some(users)).await?;
    let mounts = vec![mount(host.path(), "/s", false)];
    let one = world.run("one", &case.image, "sleep 600", mounts).await?;
    let script = "stat -c %u:%g /s/file; echo 2 > /s/new; chown 7:8 /s/new; mkdir /s/own";
    let found = world.sh(&one, script).await?;
    ensure!(found == "1000:2000", "{found:?}");
    let owner = |name: &str| fs::metadata(at(name)).map(|found| (found.uid(), found.gid()));
    ensure!((owner("new")?, owner("own")?, owner("file")?) == ((7, 8), (0, 0), (1000, 2000)));
    Ok(())
}

async fn a_full_disk_of_the_node_has_nothing_half_written(case: &mut Case) -> Result<()> {
    let host = tempfile::tempdir()?;
    let disk = infranetes_tests::kubelet::Mounted::sized_tmpfs(host.path(), "1m")?;
    let at = |name: &str| host.path().join(name);
    let mut world = World::new(case, "full", &keys(host.path(), "")).await?;
    let mounts = vec![mount(host.path(), "/s", false)];
    let one = world.run("one", &case.image, "sleep 600", mounts).await?;
    world
        .sh(&one, "echo -n small > /s/small; dd if=/dev/zero of=/s/big bs=1M count=3 2>/dev/null")
        .await?;
    ensure!(fs::read_to_string(at("small"))? == "small", "one hinders the other");
    ensure!(fs::read_dir(host.path())?.count() == 1, "something half is on the node");
    ensure!(case.node.log().contains("No space left"), "nobody was told");
    world.sh(&one, "rm /s/big; echo -n fits > /s/fits").await?;
    ensure!(fs::read_to_string(at("fits"))? == "fits");
    case.client().stop_pod(&world.sandbox).await?;
    drop(disk);
    Ok(())
}

fn keys(path: &Path, more: &str) -> String {
    format!("shared_host_paths = [\"{}\"]\n{more}", path.display())
}

const LIMIT: Duration = Duration::from_secs(60);
/// Two seconds for the way in, as many for the way back, and what a busy machine takes.
const SOON: Duration = Duration::from_secs(30);
