//! Pods with users of their own, which are others in the machine: what they mount is theirs as it would be without that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::Case;
use infranetes_tests::image::TestImage;
use infranetes_tests::kubelet::mount;
use infranetes_tests::kubelet::world::World;
use infranetes_tests::layer::Layer;
use infranetes_tests::on_both;
use infranetes_tests::wait::until;
use tonic::Code;

on_both!(what_such_a_pod_mounts_belongs_to_its_users);

const FIRST: u32 = 131_072;
const COUNT: u32 = 65_536;

async fn what_such_a_pod_mounts_belongs_to_its_users(case: &mut Case) -> Result<()> {
    let mut world = World::with_users(case, "users", "", Some(users(FIRST))).await?;
    let dir = &mut world.dir;
    let token = dir.kept("projected", "token", &[("token", "t0ken")])?;
    let config = dir.kept("configmap", "config", &[("a", "1")])?;
    // A group for files, an owner whom the pod does not have, and one who would be the pod's if it were not mapped.
    for (name, uid, gid) in [("group", 0, 2000), ("alien", COUNT + 7, 0), ("same", FIRST + 7, 0)] {
        let path = config.join("..data").join(name);
        fs::write(&path, name)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        chown(&path, Some(uid), Some(gid))?;
    }
    let (disk, memory) = (dir.empty_dir("disk")?, dir.memory_dir("memory", "3m")?);
    chown(&disk, Some(0), Some(2000))?;
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o2770))?;
    let (hosts, words) = (dir.hosts("1.2.3.4 web\n")?, dir.termination_log("one")?);
    let part = dir.part("disk", "one", 1, &{
        let sub = disk.join("sub");
        fs::create_dir(&sub)?;
        sub
    })?;
    let model = format!("{}/model:1", case.registry.host());
    let mut layer = Layer::default();
    layer.file("secret", 0o600, b"weights")?;
    let image = TestImage::empty().with_layer(layer.finish()?)?;
    image.push(&case.registry.host(), "model", "1").await?;
    world.client.pull(&model).await?;
    let image = cri::Mount {
        container_path: "/model".to_owned(),
        readonly: true,
        image: Some(cri::ImageSpec { image: model.clone(), ..Default::default() }),
        ..Default::default()
    };
    let mounts = vec![
        mount(&token, "/token", true),
        mount(&config, "/config", true),
        mount(&disk, "/disk", false),
        mount(&memory, "/memory", false),
        mount(&part, "/part", false),
        mount(&hosts, "/etc/hosts", false),
        mount(&words, "/dev/termination-log", false),
        image,
    ];
    let script = "trap 'echo bye > /dev/termination-log; exit 0' TERM; echo ready; while true; do sleep 0.1; done";
    let one = world.run("one", &case.image, script, mounts.clone()).await?;
    let map = format!("0 {FIRST} {COUNT}");
    for (script, expected) in [
        ("tr -s ' ' < /proc/self/uid_map", map.as_str()),
        ("cat /token/token /config/a", "t0ken1"),
        ("stat -c %u:%g:%a /config/..data/a", "0:0:640"),
        ("stat -c %u:%g /config /token /memory", "0:0\n0:0\n0:0"),
        ("stat -c %u:%g:%a /config/..data/group", "0:2000:640"),
        ("stat -c %u:%g /config/..data/alien", "65534:0"),
        ("stat -c %u:%g /config/..data/same", "65534:0"),
        ("stat -c %u:%g:%a /disk", "0:2000:2770"),
        ("stat -c %u:%g /part", "0:2000"),
        ("stat -c %u:%g:%a /model/secret; cat /model/secret", "0:0:600\nweights"),
        ("echo > /model/x 2>/dev/null || echo refused", "refused"),
        ("stat -c %u:%g /etc/hosts /etc/resolv.conf /etc/hostname", "0:0\n0:0\n0:0"),
        ("cat /etc/hosts; echo more >> /etc/hosts; tail -n 1 /etc/hosts", "1.2.3.4 web\nmore"),
        ("echo hi > /disk/file; echo ho > /memory/file; stat -c %u:%g /disk/file", "0:2000"),
        ("echo he > /part/file; chown 5:6 /disk/file; cat /disk/sub/file", "he"),
        ("echo x > /config/x 2>/dev/null || echo refused", "refused"),
    ] {
        let found = world.sh(&one, script).await.with_context(|| script.to_owned())?;
        ensure!(found == expected, "{script}: {found:?}");
    }
    let two = vec![mount(&disk, "/d", false)];
    let two = world.run("two", &case.image, "sleep 600", two).await?;
    ensure!(world.sh(&two, "stat -c %u:%g /d/file; cat /d/file").await? == "5:6\nhi");

    // What changes on the node follows, with the same owners.
    world.dir.swap(&config, &[("a", "2")])?;
    until(Duration::from_secs(20), "the change is in the machine", async || {
        Ok(world.sh(&one, "cat /config/a").await? == "2")
    })
    .await?;
    ensure!(world.sh(&one, "stat -c %u:%g /config/..data/a").await? == "0:0");

    let status = world.client.container(&one).await?.status.context("no status")?;
    ensure!(status.mounts[0].uid_mappings == users(FIRST).uids, "{:?}", status.mounts[0]);
    case.wait_log(&world.pod, "one", "ready").await?;
    world.client.stop_container(&one, 20).await?;
    ensure!(fs::read_to_string(&words)? == "bye\n", "nothing came back");
    ensure!(fs::read_to_string(&hosts)? == "1.2.3.4 web\nmore\n", "nothing came back");
    for path in [&words, &hosts] {
        let found = fs::metadata(path)?;
        ensure!((found.uid(), found.gid()) == (0, 0), "the node's file has another owner");
    }

    // Only the pod's own mapping is possible.
    world.users = Some(users(FIRST + COUNT));
    let refused = world.run("other", &case.image, "true", vec![mount(&disk, "/d", false)]).await;
    let refused = refused.err().context("it was not refused")?;
    ensure!(refused.code() == Code::Unimplemented, "{refused:?}");
    ensure!(refused.message().contains("as the pod's users"), "{refused:?}");
    Ok(())
}

fn users(first: u32) -> cri::UserNamespace {
    let map = cri::IdMapping { host_id: first, container_id: 0, length: COUNT };
    cri::UserNamespace { mode: cri::NamespaceMode::Pod as i32, uids: vec![map], gids: vec![map] }
}
