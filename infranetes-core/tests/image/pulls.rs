//! Pulls that succeed: how often, from where, and who was told what.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use infranetes_core::image::{AuthFields, Credentials, Platform};

use crate::node::{APP, Node, quick};
use crate::registry::{Act, Door, Image, PASSWORD, REFRESH, Registry, USER, publish_index};

fn ann() -> Credentials {
    Credentials::basic(USER, PASSWORD)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_pulls_of_one_image_are_one_download() {
    let registry = Registry::start().await;
    let image = Image::new("one", &[2_500_000, 10]);
    image.publish(&registry, "team/app", "1");
    let node = Node::new(&registry).await;
    let ids = join_all((0..20).map(|_| node.pull())).await;
    assert!(ids.iter().all(|id| id.as_ref().unwrap().to_string() == image.id()));
    assert_eq!(registry.asked("manifests").len(), 1);
    assert_eq!(registry.asked("blobs").len(), 3);
    node.expect_whole(&image).await;
    // Later on the registry is asked what the tag means, and for nothing else.
    node.pull().await.unwrap();
    assert_eq!((registry.asked("manifests").len(), registry.asked("blobs").len()), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_a_layer_download_it_once() {
    let registry = Registry::start().await;
    let mut images = Vec::new();
    for number in 0..8 {
        // The first layer is the same in all.
        let image = Image::new("shared", &[300_000, 10 + number]);
        image.publish(&registry, &format!("team/{number}"), "1");
        images.push(image);
    }
    let node = Node::new(&registry).await;
    let references: Vec<String> = (0..8).map(|n| format!("reg.test/team/{n}:1")).collect();
    let pulls = references.iter().map(|reference| node.store.pull(reference, None));
    assert!(join_all(pulls).await.iter().all(Result::is_ok));
    assert_eq!(registry.asked(&images[0].layer(0).to_string()).len(), 1);
    for image in &images {
        node.expect_whole(image).await;
    }
}

#[tokio::test]
async fn the_image_of_an_index_for_these_machines_is_pulled() {
    let registry = Registry::start().await;
    let here = Platform::of_this_node().architecture;
    let (ours, theirs) =
        (Image::new("ours", &[10]), Image::for_architecture("theirs", &[10], "sparc"));
    publish_index(&registry, "team/app", "1", &[("sparc", &theirs), (&here, &ours)]);
    let node = Node::new(&registry).await;
    assert_eq!(node.pull().await.unwrap().to_string(), ours.id());
    node.expect_whole(&ours).await;
}

#[tokio::test]
async fn every_kind_of_door_opens_to_its_credentials() {
    let fields = |edit: fn(&mut AuthFields)| {
        let mut fields = AuthFields::default();
        edit(&mut fields);
        Credentials::from_auth(fields).unwrap()
    };
    let refresh = || fields(|fields| fields.identity_token = REFRESH.into());
    let token = || fields(|fields| fields.registry_token = "registry-token".into());
    type Build = fn(&Registry) -> Door;
    let doors: [(&str, Build, Option<Credentials>); 5] = [
        ("basic", |_| Door::Basic(USER, PASSWORD), Some(ann())),
        ("token for all", |registry| registry.give_tokens_to(None), None),
        ("token for one", |registry| registry.give_tokens_to(Some(USER)), Some(ann())),
        ("identity token", |registry| registry.give_tokens_to(Some(USER)), refresh()),
        (
            "registry token",
            |registry| {
                registry.accept_token("registry-token");
                registry.give_tokens_to(Some("nobody"))
            },
            token(),
        ),
    ];
    for (name, door, credentials) in doors {
        let registry = Registry::start().await;
        let image = Image::new(name, &[10, 20]);
        image.publish(&registry, "team/app", "1");
        registry.close(door(&registry));
        let node = Node::new(&registry).await;
        node.pull_as(credentials).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        node.expect_whole(&image).await;
        assert!(registry.asked("/token").len() <= 1, "{name}: one token is enough");
    }
}

#[tokio::test]
async fn a_token_that_expires_under_a_pull_is_renewed() {
    let registry = Registry::start().await;
    let image = Image::new("long", &[200_000]);
    image.publish(&registry, "team/app", "1");
    registry.close(registry.give_tokens_to(Some(USER)));
    let layer = image.layer(0).to_string();
    registry.script(&layer, &[Act::StallAfter(100_000), Act::Well]);
    let node = Node::new(&registry).await;
    let expire = async {
        while registry.asked(&layer).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        registry.expire_tokens();
    };
    let (pulled, ()) = tokio::join!(node.pull_as(Some(ann())), expire);
    pulled.unwrap();
    node.expect_whole(&image).await;
    assert_eq!(registry.asked("/token").len(), 2);
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let (registry, storage) = (Registry::start().await, Registry::start().await);
    let image = Image::new("elsewhere", &[100_000]);
    image.publish(&registry, "team/app", "1");
    image.publish(&storage, "bucket", "1");
    registry.close(Door::Basic(USER, PASSWORD));
    let target = format!("{}/v2/bucket/blobs/{}", storage.url(), image.layer(0));
    registry.script(&image.layer(0).to_string(), &[Act::Redirect(target)]);
    let node = Node::new(&registry).await;
    node.pull_as(Some(ann())).await.unwrap();
    node.expect_whole(&image).await;
    assert!(registry.asked("blobs").iter().any(|asked| asked.header("authorization").is_some()));
    let asked = storage.asked("");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test]
async fn a_mirror_serves_without_learning_who_asks_and_the_registry_is_left_alone() {
    let (mirror, registry) = (Registry::start().await, Registry::start().await);
    let image = Image::new("mirrored", &[1000]);
    image.publish(&mirror, "team/app", "1");
    let node = Node::with_endpoints(registry.endpoint(), vec![mirror.mirror()]).await;
    node.pull_as(Some(ann())).await.unwrap();
    node.expect_whole(&image).await;
    assert!(registry.asked("").is_empty());

    // It is told nothing even if it asks, and then the registry itself gets its turn.
    mirror.close(Door::Basic(USER, PASSWORD));
    registry.close(Door::Basic(USER, PASSWORD));
    image.publish(&registry, "team/app", "1");
    node.pull_as(Some(ann())).await.unwrap();
    assert!(mirror.asked("").iter().all(|asked| asked.header("authorization").is_none()));
    assert!(
        registry.asked("manifests").iter().any(|asked| asked.header("authorization").is_some())
    );

    // Unless the configuration says that it may.
    let node = Node::with_endpoints(registry.endpoint(), vec![mirror.endpoint()]).await;
    let before = registry.asked("").len();
    node.pull_as(Some(ann())).await.unwrap();
    assert_eq!(registry.asked("").len(), before);
}

#[tokio::test]
async fn what_a_mirror_fails_at_the_next_one_does() {
    let image = Image::new("fallback", &[500_000]);
    let (cut, wrong, registry) =
        (Registry::start().await, Registry::start().await, Registry::start().await);
    for registry in [&cut, &wrong, &registry] {
        image.publish(registry, "team/app", "1");
    }
    let layer = image.layer(0).to_string();
    cut.script(&layer, &[Act::CutAfter(300_000), Act::Status(500, "")]);
    wrong.script(&layer, &[Act::Status(403, "")]);
    let mirrors = vec![cut.mirror(), wrong.mirror()];
    let node = Node::with_endpoints(registry.endpoint(), mirrors.clone()).await;
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
    let asked = registry.asked(&layer);
    assert_eq!(
        asked[0].header("range"),
        Some("bytes=300000-"),
        "what came from one is not asked of another"
    );

    // When nobody has it, the error is the registry's, and tells of the mirrors.
    for registry in [&cut, &wrong, &registry] {
        registry.script("manifests", &[Act::Status(404, "")]);
    }
    let node = Node::with_endpoints(registry.endpoint(), mirrors).await;
    let error = node.pull().await.unwrap_err().to_string();
    for address in [&cut.address, &wrong.address, &registry.address] {
        assert!(error.contains(address.as_str()), "{error}");
    }
}

#[tokio::test]
async fn credentials_for_another_server_stay_at_home() {
    let registry = Registry::start().await;
    Image::new("anonymous", &[10]).publish(&registry, "team/app", "1");
    let node = Node::new(&registry).await;
    registry.close(Door::Basic(USER, PASSWORD));
    node.pull_as(Some(ann().only_for("other.test"))).await.unwrap_err();
    assert!(registry.asked("").iter().all(|asked| asked.header("authorization").is_none()));
    node.pull_as(Some(ann().only_for("https://reg.test/v2/"))).await.unwrap();
}

#[tokio::test]
async fn only_so_many_images_are_pulled_at_once() {
    let registry = Registry::start().await;
    for number in 0..4 {
        let image = Image::new(&format!("busy{number}"), &[10]);
        image.publish(&registry, &format!("team/{number}"), "1");
    }
    registry.script("manifests", &[Act::StallAfter(0)]);
    let limits = infranetes_core::image::Limits { parallel_pulls: 2, ..quick() };
    let node = Node::with_limits(registry.endpoint(), vec![], limits).await;
    let node = Arc::new(node);
    let pulls: Vec<_> = (0..4)
        .map(|number| {
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                node.store.pull(&format!("reg.test/team/{number}:1"), None).await
            })
        })
        .collect();
    while registry.asked("manifests").len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(registry.asked("manifests").len(), 2);
    registry.heal();
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(node.store.list().len(), 4);
    assert!(node.store.status(APP).is_none());
}
