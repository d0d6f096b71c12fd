//! Images that are mounted in a container of another image.

mod support;

use infranetes_sdk::v1::{CreateContainerRequest, Image, Mount, RemoveImageRequest};
use infranetes_sdk::{ContainerProvider, ErrorKind};
use support::{Tar, World, container, ctx, isolated, script};

fn mount(image: &Image, sub_path: &str, options: &[&str]) -> Mount {
    Mount {
        destination: "/model".into(),
        r#type: "image".into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        image: Some(image.clone()),
        sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// Two layers, the upper of which hides something; a program; links that lead out, if they are followed from outside.
fn layers() -> Vec<Vec<u8>> {
    let (mut lower, mut upper) = (Tar::new(), Tar::new());
    lower.dir("weights", 0o755).file("weights/a", 0o644, b"one").file("old", 0o644, b"old");
    upper.file("weights/b", 0o600, b"two").file(".wh.old", 0o644, b"");
    upper.file("program", 0o755, b"#!/bin/sh\necho ran").symlink("link", "/weights");
    upper.symlink("out", "/../../../../etc");
    vec![lower.finish(), upper.finish()]
}

#[test]
fn an_image_is_mounted_read_only_with_all_of_its_layers() {
    isolated("an_image_is_mounted_read_only_with_all_of_its_layers", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let model = world.import(&layers()).await;
        let request = |body: &str, sub_path: &str| {
            let mut request = script("c1", &image, body);
            request.mounts = vec![mount(&model, sub_path, &["ro"])];
            request
        };
        let cases = [
            (
                "cd /model; find . -type f | sort | tr '\\n' ' '; cat weights/a",
                "",
                "./program ./weights/a ./weights/b one",
            ),
            ("touch /model/x 2>/dev/null; echo $?", "", "1"),
            ("/model/program", "", "ran"),
            ("cat /model/b", "weights", "two"),
            ("cat /model/a", "link", "one"),
            ("cat /model", "weights/a", "one"),
        ];
        for (body, sub_path, expected) in cases {
            let (status, stdout, stderr) = world.output(request(body, sub_path)).await;
            assert_eq!(stdout.trim(), expected, "{body} {sub_path}: {status:?} {stderr}");
        }
        // One layer alone is no overlay yet.
        let single = world.import(&layers()[..1]).await;
        let mut one = script("c1", &image, "cat /model/old");
        one.mounts = vec![mount(&single, "", &[])];
        let (status, stdout, stderr) = world.output(one).await;
        assert_eq!(stdout, "old", "{status:?} {stderr}");
        world.assert_clean();
    });
}

#[test]
fn what_cannot_be_mounted_of_an_image_is_refused_and_leaves_nothing() {
    isolated("what_cannot_be_mounted_of_an_image_is_refused_and_leaves_nothing", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let model = world.import(&layers()).await;
        let absent = support::image(&[b"not here".to_vec()]);
        let bind =
            Mount { r#type: "bind".into(), source: "/tmp".into(), ..mount(&model, "weights", &[]) };
        let cases = [
            (mount(&model, "nothing", &[]), ErrorKind::NotFound, "nothing"),
            (mount(&model, "weights/a/b", &[]), ErrorKind::NotFound, "weights/a/b"),
            (mount(&model, "out/passwd", &[]), ErrorKind::NotFound, "out/passwd"),
            (mount(&model, "../x", &[]), ErrorKind::Invalid, "no path within an image"),
            (mount(&model, "/weights", &[]), ErrorKind::Invalid, "no path within an image"),
            (mount(&model, "", &["rw"]), ErrorKind::Invalid, "read-only"),
            (mount(&absent, "", &[]), ErrorKind::NotFound, "not in this machine"),
            (Mount { image: None, ..mount(&model, "", &[]) }, ErrorKind::Invalid, "no image"),
            (bind, ErrorKind::Unsupported, "bind"),
        ];
        for (mount, kind, says) in cases {
            let mut request: CreateContainerRequest = script("c1", &image, "true");
            request.mounts = vec![mount];
            let error = world.provider.create(ctx(), request).await.unwrap_err();
            assert!(error.kind == kind && error.message.contains(says), "{says}: {error:?}");
            world.assert_clean();
        }
    });
}

#[test]
fn an_image_that_is_mounted_is_not_removed() {
    isolated("an_image_that_is_mounted_is_not_removed", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let model = world.import(&layers()).await;
        let mut request = script("c1", &image, "true");
        request.mounts = vec![mount(&model, "", &[])];
        world.provider.create(ctx(), request).await.unwrap();
        let remove = RemoveImageRequest { image_id: model.id.clone() };
        let error = world.provider.remove_image(ctx(), remove.clone()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}");
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.provider.remove_image(ctx(), remove).await.unwrap();
        world.assert_clean();
    });
}
