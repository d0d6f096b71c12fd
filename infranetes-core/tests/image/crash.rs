//! A store whose process is killed, again and again, at moments of no choosing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use infranetes_core::image::{ImageStore, ImageStoreConfig, RegistryConfig};

use crate::node::{APP, Node, open_when_free};
use crate::registry::{Image, Registry};

const ROOT: &str = "INFRANETES_TEST_STORE";
const URL: &str = "INFRANETES_TEST_REGISTRY";
const KILLS: u64 = 40;

/// One image that everybody pulls, and one that shares a layer with it.
fn images() -> [Image; 2] {
    [Image::new("killed", &[1_500_000, 300_000]), Image::new("killed", &[1_500_000, 7])]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_killed_at_any_moment_opens_with_whole_images_only() {
    let registry = Registry::start().await;
    let images = images();
    images[0].publish(&registry, "team/app", "1");
    images[1].publish(&registry, "team/other", "1");
    let mut node = Node::new(&registry).await;
    let mut seen = 0;
    for round in 0..KILLS {
        let config = node.config();
        let dir = node.close().await;
        kill_after(Duration::from_millis(20 + round * 7 % 60), &config.root, &registry.url()).await;
        let store = open_when_free(&config).await;
        node = Node::reopened(dir, store, config);
        for info in node.store.list() {
            let image = images.iter().find(|image| image.id() == info.id.to_string()).unwrap();
            node.expect_whole(image).await;
            seen += 1;
        }
        node.expect_honest_usage();
    }
    println!("{KILLS} kills; {seen} images were there afterwards, all of them whole");
    node.pull().await.unwrap();
    node.expect_whole(&images[0]).await;
}

/// Lets another process pull and remove images, and kills it.
async fn kill_after(time: Duration, root: &Path, url: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::pulls_and_removes_until_it_is_killed", "--ignored"])
        .env(ROOT, root)
        .env(URL, url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(time).await;
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, which kills it"]
async fn pulls_and_removes_until_it_is_killed() {
    let (Ok(root), Ok(url)) = (std::env::var(ROOT), std::env::var(URL)) else { return };
    let mut config = ImageStoreConfig::new(root);
    let itself = infranetes_core::image::Endpoint::new(&url).unwrap();
    let registry = RegistryConfig { mirrors: vec![], itself: Some(itself) };
    config.registries.hosts.insert("reg.test".into(), registry);
    let store = ImageStore::open(config).await.unwrap();
    loop {
        let (one, other) =
            tokio::join!(store.pull(APP, None), store.pull("reg.test/team/other:1", None));
        one.unwrap();
        other.unwrap();
        store.remove(APP).await.unwrap();
        store.remove("reg.test/team/other:1").await.unwrap();
    }
}
