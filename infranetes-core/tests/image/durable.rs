//! What survives: cuts, cancelled pulls, restarts, and damage.

use std::time::Duration;

use infranetes_core::image::{
    ImageStore, LayerCheck, OpenImageStoreError, PullFailure as F, ReadImageError,
};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::node::{APP, Node, open_when_free};
use crate::registry::{Act, Image, PATIENCE, Registry};

/// A registry with an image of one layer, and that layer's digest.
async fn published(seed: &str, size: usize) -> (Registry, Image, String) {
    let registry = Registry::start().await;
    let image = Image::new(seed, &[size]);
    image.publish(&registry, "team/app", "1");
    let layer = image.layer(0).to_string();
    (registry, image, layer)
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_layer_that_is_cut_off_continues_where_it_stopped_also_after_a_restart() {
    let (registry, image, layer) = published("resume", 3_000_000).await;
    let node = Node::new(&registry).await;
    // Within a pull: every attempt that gets further gives the next one another chance.
    let cut = |count| Act::CutAfter(count);
    let acts = [cut(500_000), cut(500_000), cut(500_000), cut(500_000), cut(0)];
    registry.script(&layer, &acts);
    let error = node.pull().await.unwrap_err();
    let F::CutOff { have: 2_000_000, size: 3_000_000, .. } = error.failure() else {
        panic!("{error:?}")
    };
    assert!(error.to_string().contains("continues from there"), "{error}");
    assert!(error.failure().is_transient());
    node.expect_honest_usage();

    let node = node.restart().await;
    node.expect_honest_usage();
    registry.heal();
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
    let last = registry.asked(&layer).pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=2000000-"));
}

#[tokio::test]
async fn a_registry_without_ranges_is_asked_for_the_whole_again() {
    let (registry, image, layer) = published("no ranges", 200_000).await;
    registry.script(&layer, &[Act::CutAfter(100_000), Act::WholeBody]);
    let node = Node::new(&registry).await;
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
    registry.heal();

    // The same when it says so with a status.
    let image = Image::new("no ranges, refused", &[200_000]);
    image.publish(&registry, "team/app", "1");
    let layer = image.layer(0).to_string();
    registry.script(&layer, &[Act::CutAfter(100_000), Act::Status(416, ""), Act::Well]);
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
}

#[tokio::test]
async fn a_partial_file_that_was_damaged_is_fetched_anew() {
    let (registry, image, layer) = published("rotten", 300_000).await;
    registry.script(&layer, &[Act::CutAfter(200_000), Act::CutAfter(0)]);
    let node = Node::new(&registry).await;
    node.pull().await.unwrap_err();
    let partial = node.root().join("partial").join(layer.replace(':', "-"));
    let mut bytes = std::fs::read(&partial).unwrap();
    assert_eq!(bytes.len(), 200_000);
    bytes[1000] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    registry.heal();
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
}

#[tokio::test]
async fn a_dropped_pull_leaves_what_the_next_one_continues() {
    let (registry, image, layer) = published("dropped", 3_000_000).await;
    registry.script(&layer, &[Act::StallAfter(2_500_000), Act::Well]);
    let node = Node::new(&registry).await;
    let pull = tokio::spawn({
        let store = node.store.clone();
        async move { store.pull(APP, None).await }
    });
    wait_until("the first bytes", || node.store.usage().bytes > 2_000_000).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    assert!(node.store.list().is_empty());
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
    let range = registry.asked(&layer).pop().unwrap();
    let from =
        range.header("range").unwrap().trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
    assert!(from.parse::<u64>().unwrap() >= 2_000_000, "{from}");
}

#[tokio::test]
async fn one_of_two_who_wait_may_go() {
    let (registry, image, layer) = published("two", 100_000).await;
    registry.script(&layer, &[Act::StallAfter(50_000), Act::Well]);
    let node = Node::new(&registry).await;
    let first = tokio::spawn({
        let store = node.store.clone();
        async move { store.pull(APP, None).await }
    });
    wait_until("the layer", || !registry.asked(&layer).is_empty()).await;
    let (id, ()) = tokio::join!(node.pull(), async {
        tokio::task::yield_now().await;
        first.abort();
    });
    assert_eq!(id.unwrap().to_string(), image.id());
    assert_eq!(registry.asked("manifests").len(), 1);
}

#[tokio::test]
async fn images_are_there_after_a_restart_under_all_their_names() {
    let (registry, image, _) = published("kept", 1000).await;
    image.publish(&registry, "team/other", "2");
    let node = Node::new(&registry).await;
    let id = node.pull().await.unwrap();
    node.store.pull("reg.test/team/other:2", None).await.unwrap();
    let before = node.store.list();
    let node = node.restart().await;
    assert_eq!(node.store.list(), before);
    let digest = format!("reg.test/team/app@{}", image.digest());
    let hex = id.to_string().replace("sha256:", "");
    for name in [APP, "reg.test/team/other:2", &digest, &id.to_string(), &hex] {
        assert_eq!(node.store.status(name).unwrap().id, id, "{name}");
    }
    assert_eq!(before[0].repo_tags.len(), 2);
    let whole = image.manifest.len() + image.config.len() + 1000;
    assert_eq!(before[0].size_bytes, whole as u64);

    // One name is enough to remove it, all go, and what is gone may be removed.
    node.store.remove(APP).await.unwrap();
    node.store.remove(APP).await.unwrap();
    assert!(node.store.list().is_empty());
    let node = node.restart().await;
    assert!(node.store.list().is_empty());
    node.expect_honest_usage();
    assert!(node.store.usage().bytes < 1000);
}

#[tokio::test]
async fn a_removed_layer_is_read_to_its_end_and_a_held_one_stays() {
    let (registry, image, _) = published("read", 2_000_000).await;
    let node = Node::new(&registry).await;
    let id = node.pull().await.unwrap();
    let mut reader = node.store.open_layer(&image.layer(0)).await.unwrap();
    let mut start = vec![0; 1000];
    reader.read_exact(&mut start).await.unwrap();
    let hold = node.store.hold(&id).unwrap();
    node.store.remove(&id.to_string()).await.unwrap();
    assert!(node.store.open_layer(&image.layer(0)).await.is_ok(), "held");
    drop(hold);
    wait_until("the sweep", || node.store.usage().bytes < 1000).await;
    let gone = node.store.open_layer(&image.layer(0)).await.unwrap_err();
    assert!(matches!(gone, ReadImageError::NoLayer(_)), "{gone}");
    assert!(matches!(node.store.manifest_of(&id).await, Err(ReadImageError::NoImage(_))));
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    assert!([start, rest].concat() == image.layers[0]);
}

#[tokio::test]
async fn pulls_and_removals_at_once_leave_whole_images() {
    let (registry, image, _) = published("contended", 50_000).await;
    let node = Node::new(&registry).await;
    for _ in 0..20 {
        let (pulled, removed, also) =
            tokio::join!(node.pull(), node.store.remove(APP), node.store.remove(APP));
        pulled.unwrap();
        removed.unwrap();
        also.unwrap();
        if node.store.status(APP).is_some() {
            node.expect_whole(&image).await;
        }
    }
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
}

#[tokio::test]
async fn a_second_store_on_the_same_directory_is_refused() {
    let (registry, _, _) = published("twice", 10).await;
    let node = Node::new(&registry).await;
    let error = ImageStore::open(node.config()).await.err().unwrap();
    assert!(matches!(error, OpenImageStoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"));
}

#[tokio::test]
async fn a_damaged_or_missing_index_is_refused_and_nothing_is_deleted() {
    let (registry, image, layer) = published("damaged", 1000).await;
    let node = Node::new(&registry).await;
    node.pull().await.unwrap();
    let config = node.config();
    let (index, blob) =
        (config.root.join("index"), config.root.join("blobs").join(layer.replace(':', "-")));
    let dir = node.close().await;
    let good = std::fs::read(&index).unwrap();
    for damage in ["empty", "cut", "changed", "missing"] {
        match damage {
            "empty" => std::fs::write(&index, b"").unwrap(),
            "cut" => std::fs::write(&index, &good[..good.len() - 2]).unwrap(),
            "changed" => std::fs::write(&index, [&good[..], b" "].concat()).unwrap(),
            _ => std::fs::remove_file(&index).unwrap(),
        }
        let error = ImageStore::open(config.clone()).await.err().expect(damage);
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("nothing was deleted"), "{damage}: {cause}");
        assert!(blob.exists(), "{damage}");
    }
    std::fs::write(&index, good).unwrap();
    let store = open_when_free(&config).await;
    assert!(store.status(&image.id()).is_some());
    drop(dir);
}

#[tokio::test]
async fn an_image_that_lost_a_blob_is_pulled_again_without_the_others() {
    let registry = Registry::start().await;
    let image = Image::new("lost", &[1000, 2000]);
    image.publish(&registry, "team/app", "1");
    let node = Node::new(&registry).await;
    node.pull().await.unwrap();
    let config = node.config();
    let lost = image.layer(1).to_string();
    std::fs::remove_file(config.root.join("blobs").join(lost.replace(':', "-"))).unwrap();
    let node = node.restart().await;
    assert!(node.store.status(APP).is_none());
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
    assert_eq!(registry.asked(&image.layer(0).to_string()).len(), 1);
    assert_eq!(registry.asked(&lost).len(), 2);
}

#[tokio::test]
async fn a_layer_that_the_disk_changed_is_found_out_and_pulled_again() {
    let (registry, image, layer) = published("changed", 400_000).await;
    let other = Image::new("healthy", &[10]);
    other.publish(&registry, "team/other", "1");
    let node = Node::new(&registry).await;
    node.pull().await.unwrap();
    node.store.pull("reg.test/team/other:1", None).await.unwrap();
    let digest = image.layer(0);
    assert_eq!(node.store.recheck_layer(&digest).await.unwrap(), LayerCheck::Whole);

    let path = node.root().join("blobs").join(layer.replace(':', "-"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[300_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let _hold = node.store.hold(&image.id().parse().unwrap());
    assert_eq!(node.store.recheck_layer(&digest).await.unwrap(), LayerCheck::Deleted);
    assert!(node.store.status(APP).is_none());
    node.expect_whole(&other).await;
    let gone = node.store.recheck_layer(&digest).await.unwrap_err();
    assert!(matches!(gone, ReadImageError::NoLayer(_)), "{gone}");
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
}
