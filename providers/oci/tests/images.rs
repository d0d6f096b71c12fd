//! Layers: what honest ones become, and what malicious ones do not reach.

mod support;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use infranetes_sdk::v1::{Image, RemoveImageRequest, UsageRequest};
use infranetes_sdk::{ContainerProvider, ErrorKind};
use support::{Tar, World, busybox_layer, container, ctx, gzip, image, import, isolated, script};
use tar::EntryType;

/// Where the only layer of an image was unpacked.
fn unpacked(world: &World, image: &Image) -> PathBuf {
    let short = &image.layers[0].diff_id["sha256:".len()..][..24];
    world.dir.path().join("root/layers").join(short)
}

#[test]
fn a_layer_is_unpacked_with_all_that_it_says() {
    isolated("a_layer_is_unpacked_with_all_that_it_says", async || {
        let world = World::new().await;
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
        let mut tar = Tar::new();
        tar.dir("bin/", 0o755).file("bin/su", 0o4755, b"x").hard_link("bin/su2", "bin/su");
        tar.symlink("bin/ln", "/etc/shadow").entry(EntryType::Char, "null", "", 0o666, b"");
        tar.entry(EntryType::Fifo, "fifo", "", 0o600, b"").dir("sticky", 0o1777);
        tar.pax("path", &long).file("short", 0o640, b"long");
        tar.pax("SCHILY.xattr.user.note", "hi").pax("mtime", "1234.5").file("noted", 0o600, b"");
        let image = world.import(&[gzip(&tar.finish())]).await;
        let root = unpacked(&world, &image);
        let meta = |path: &str| std::fs::symlink_metadata(root.join(path)).unwrap();
        assert_eq!(meta("bin/su").mode() & 0o7777, 0o4755);
        assert_eq!(meta("bin/su").ino(), meta("bin/su2").ino());
        assert_eq!(std::fs::read_link(root.join("bin/ln")).unwrap(), PathBuf::from("/etc/shadow"));
        assert!(meta("null").file_type().is_char_device() && meta("fifo").file_type().is_fifo());
        assert_eq!((meta("null").rdev(), meta("null").mode() & 0o777), (0x103, 0o666));
        assert_eq!(meta("sticky").permissions().mode() & 0o7777, 0o1777);
        assert_eq!(std::fs::read(root.join(&long)).unwrap(), b"long");
        assert_eq!((meta("bin/su").mtime(), meta("bin").mtime()), (1_000_000_000, 1_000_000_000));
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(root.join("noted"), "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"hi");
        assert_eq!((meta("noted").mtime(), meta("noted").mtime_nsec()), (1234, 500_000_000));
    });
}

#[test]
fn upper_layers_hide_and_replace_what_is_below() {
    isolated("upper_layers_hide_and_replace_what_is_below", async || {
        let world = World::new().await;
        let mut middle = Tar::new();
        for path in ["a/gone", "a/kept", "b/below", "file", "turns/into/a", "c/below"] {
            middle.file(path, 0o644, b"middle");
        }
        let mut top = Tar::new();
        top.file("a/.wh.gone", 0o644, b"").file("b/.wh..wh..opq", 0o644, b"");
        top.file("b/above", 0o644, b"top").file(".wh.file", 0o644, b"");
        top.file("turns", 0o644, b"a file").file(".wh.c", 0o644, b"").dir("c", 0o755);
        top.file("c/above", 0o644, b"top").file("a/.wh..wh.plnk", 0o644, b"");
        let layers = [busybox_layer(), middle.finish(), gzip(&top.finish())];
        let image = world.import(&layers).await;
        let list = "find a b c turns file 2>/dev/null | sort | tr '\\n' ' '";
        let (status, stdout, stderr) = world.output(script("c1", &image, list)).await;
        assert_eq!(stdout, "a a/kept b b/above c c/above turns ", "{status:?} {stderr}");
        world.assert_clean();
    });
}

#[test]
fn no_layer_reaches_out_of_its_directory() {
    isolated("no_layer_reaches_out_of_its_directory", async || {
        let world = World::new().await;
        let outside = world.dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), b"untouched").unwrap();
        let target = outside.to_str().unwrap();
        let up = format!("{}{}", "../".repeat(12), target.trim_start_matches('/'));
        type Write<'a> = &'a dyn Fn(&mut Tar);
        let archives: [(&str, Write<'_>); 14] = [
            ("climbs", &|tar| _ = tar.file("../../outside/file", 0o644, b"evil")),
            ("climbs inside", &|tar| _ = tar.file("a/../../../outside/file", 0o644, b"evil")),
            ("is absolute", &|tar| _ = tar.file(&format!("{target}/file"), 0o644, b"evil")),
            ("link, then through it", &|tar| {
                tar.symlink("l", target).file("l/file", 0o644, b"evil");
            }),
            ("relative link, then through it", &|tar| {
                tar.symlink("l", &up).file("l/file", 0o644, b"evil");
            }),
            ("link over a directory", &|tar| {
                tar.dir("d", 0o755).symlink("d", target).file("d/file", 0o644, b"evil");
            }),
            ("link as the file itself", &|tar| {
                let file = format!("{target}/file");
                tar.symlink("f", &file).file("f", 0o644, b"evil");
            }),
            ("mode through a link", &|tar| {
                tar.symlink("f", target).dir("f", 0o777);
            }),
            ("hard link out", &|tar| {
                tar.hard_link("h", &format!("{target}/file")).file("h", 0o644, b"evil");
            }),
            ("hard link through a link", &|tar| {
                tar.symlink("l", target).hard_link("h", "l/file").file("h", 0o644, b"evil");
            }),
            ("hard link climbs", &|tar| _ = tar.hard_link("h", &up)),
            ("whiteout of the parent", &|tar| _ = tar.file(".wh...", 0o644, b"")),
            ("whiteout through a link", &|tar| {
                tar.symlink("l", target).file("l/.wh.file", 0o644, b"");
            }),
            ("opaque through a link", &|tar| {
                tar.symlink("l", target).file("l/.wh..wh..opq", 0o644, b"");
            }),
        ];
        for (what, write) in archives {
            let mut tar = Tar::new();
            write(&mut tar);
            let layers = [tar.finish()];
            // Refused or kept inside: both are fine.
            let _ = import(&world.provider, &image(&layers), &layers).await;
            assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"untouched", "{what}");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{what}");
            assert_eq!(std::fs::metadata(outside.join("file")).unwrap().nlink(), 1, "{what}");
            assert_eq!(std::fs::metadata(&outside).unwrap().mode() & 0o777, 0o755, "{what}");
            let mut value = [0; 8];
            rustix::fs::getxattr(&outside, "trusted.overlay.opaque", &mut value[..]).unwrap_err();
        }
    });
}

#[test]
fn a_layer_that_is_damaged_or_steers_overlayfs_is_refused_and_leaves_nothing() {
    let name = "a_layer_that_is_damaged_or_steers_overlayfs_is_refused_and_leaves_nothing";
    isolated(name, async || {
        let world = World::with(|config| config.layer_max_mib = 4).await;
        let good = busybox_layer();
        let mut flipped = good.clone();
        flipped[148] ^= 1;
        let mut steering = Tar::new();
        steering.pax("SCHILY.xattr.trusted.overlay.redirect", "/etc").dir("d", 0o755);
        let mut large = Tar::new();
        large.file("zeros", 0o644, &vec![0; 5 << 20]);
        let mut sparse = Tar::new();
        sparse.entry(EntryType::GNUSparse, "s", "", 0o644, b"");
        let cases = [
            ("a wrong checksum", flipped),
            ("overlay attributes", steering.finish()),
            ("more than is allowed", gzip(&large.finish())),
            ("a sparse file", sparse.finish()),
            ("noise", vec![7; 4096]),
            ("a cut archive", good[..good.len() / 2].to_vec()),
            ("cut gzip", {
                let packed = gzip(&good);
                packed[..packed.len() / 2].to_vec()
            }),
        ];
        for (what, bytes) in cases {
            let is_cut_gzip = what == "cut gzip";
            let mut image = image(&[if is_cut_gzip { gzip(&good) } else { bytes.clone() }]);
            if is_cut_gzip {
                image.layers[0].digest = support::digest(&bytes);
                image.layers[0].size_bytes = bytes.len() as u64;
            }
            let error = import(&world.provider, &image, &[bytes]).await.expect_err(what);
            assert_eq!(error.kind, ErrorKind::Invalid, "{what}: {error:?}");
            let left = std::fs::read_dir(world.dir.path().join("root/layers")).unwrap().count();
            assert_eq!(left, 0, "{what}");
        }
    });
}

#[test]
fn a_layer_has_to_be_what_it_was_announced_as() {
    isolated("a_layer_has_to_be_what_it_was_announced_as", async || {
        let world = World::new().await;
        let layers = [gzip(&Tar::new().file("a", 0o644, b"a").finish())];
        let right = image(&layers);
        let wrong = |change: &dyn Fn(&mut infranetes_sdk::v1::Layer)| {
            let mut image = right.clone();
            change(&mut image.layers[0]);
            image
        };
        let other = support::digest(b"other");
        for image in [
            wrong(&|layer| layer.digest.clone_from(&other)),
            wrong(&|layer| layer.diff_id.clone_from(&other)),
            wrong(&|layer| layer.size_bytes += 1),
            wrong(&|layer| layer.size_bytes -= 1),
            wrong(&|layer| layer.digest = "md5:00".into()),
        ] {
            let error = import(&world.provider, &image, &layers).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
        }
        let unknown = wrong(&|layer| layer.media_type = "application/vnd.example+encrypted".into());
        let error = import(&world.provider, &unknown, &layers).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        import(&world.provider, &right, &layers).await.unwrap();
    });
}

#[test]
fn images_stay_over_a_restart_and_go_with_their_layers() {
    isolated("images_stay_over_a_restart_and_go_with_their_layers", async || {
        let mut world = World::new().await;
        let shared = busybox_layer();
        let one = world.import(std::slice::from_ref(&shared)).await;
        let own = Tar::new().file("own", 0o644, b"own").finish();
        let two = world.import(&[shared, own]).await;
        // What a cut import would leave.
        std::fs::create_dir(world.dir.path().join("root/layers/0123.part")).unwrap();
        world.provider = support::open(world.dir.path(), &world.parent, |_| {}).await;
        let list = world.provider.list_images(ctx(), Default::default()).await.unwrap().image_ids;
        assert_eq!(list.len(), 2);
        let count = || std::fs::read_dir(world.dir.path().join("root/layers")).unwrap().count();
        assert_eq!(count(), 4, "two layers and their records");
        world.provider.create(ctx(), script("c1", &two, "true")).await.unwrap();
        let remove = |image: &Image| RemoveImageRequest { image_id: image.id.clone() };
        let error = world.provider.remove_image(ctx(), remove(&two)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        for _ in 0..2 {
            world.provider.remove_image(ctx(), remove(&two)).await.unwrap();
        }
        assert_eq!(count(), 2, "the shared layer stays");
        world.provider.remove_image(ctx(), remove(&one)).await.unwrap();
        assert_eq!(count(), 0);
        let usage = world.provider.usage(ctx(), UsageRequest {}).await.unwrap();
        assert_eq!((usage.used_bytes, usage.inodes_used), (0, 0));
        assert!(usage.available_bytes > 0);
    });
}

#[test]
fn an_image_may_have_128_layers() {
    isolated("an_image_may_have_128_layers", async || {
        let world = World::new().await;
        let mut layers = vec![busybox_layer()];
        for number in 1..128 {
            let content = number.to_string();
            layers
                .push(Tar::new().file(&format!("n/{number}"), 0o644, content.as_bytes()).finish());
        }
        let image = world.import(&layers).await;
        let (status, stdout, stderr) = world.output(script("c1", &image, "ls /n | wc -l")).await;
        assert_eq!(stdout.trim(), "127", "{status:?} {stderr}");
        world.assert_clean();
    });
}
