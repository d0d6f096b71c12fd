use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

/// Volumes of a machine, and what a node would deliver to it. Needs to mount, as every machine's agent does.
struct World {
    dir: tempfile::TempDir,
    volumes: Volumes,
}

impl World {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can mount");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::prepare(dir.path().join("volumes")).unwrap();
        Some(Self { dir, volumes })
    }

    fn put(&self, id: &str, kind: Kind, entries: &[(&str, What)]) -> Result<(), VolumeError> {
        let begin = Begin { id: id.into(), kind, revision: format!("{}", entries.len()) };
        let mut staging = self.volumes.begin(begin)?;
        for (path, what) in entries {
            let (kind, mode) = match what {
                What::Dir => (EntryKind::Directory, 0o755),
                What::File(_) => (EntryKind::File, 0o640),
                What::Link(target) => (EntryKind::Symlink(target.into()), 0o777),
            };
            let (uid, gid, modified) = (7, 8, (1_000_000_000, 5));
            staging.entry(Entry { path: path.into(), kind, mode, uid, gid, modified })?;
            if let What::File(text) = what {
                staging.data(text.as_bytes())?;
            }
        }
        self.volumes.commit(staging)
    }

    fn mount(&self, container: &str, id: &str, sub_path: &str) -> Result<PathBuf, VolumeError> {
        let mut mounts = [Mount {
            source: id.into(),
            r#type: VOLUME.into(),
            sub_path: sub_path.into(),
            ..Mount::default()
        }];
        self.volumes.mount(container, &mut mounts)?;
        Ok(PathBuf::from(&mounts[0].source))
    }

    fn read(&self, path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.volumes.clear();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left = mounts.contains(self.dir.path().to_str().unwrap());
        assert!(!left || std::thread::panicking(), "a mount is left: {mounts}");
        assert!(!self.dir.path().join("volumes").exists() || std::thread::panicking());
    }
}

#[derive(Clone)]
enum What {
    Dir,
    File(&'static str),
    Link(&'static str),
}
use What::{Dir, File, Link};

/// As the kubelet writes a configmap: readers go through `..data`.
fn config(version: &'static str, key: &'static str) -> Vec<(&'static str, What)> {
    match version {
        "1" => vec![
            ("", Dir),
            ("..1", Dir),
            ("..1/a", File("a1")),
            ("..1/b", File("b1")),
            ("..data", Link("..1")),
            ("a", Link("..data/a")),
            (key, Link("..data/b")),
        ],
        _ => vec![
            ("", Dir),
            ("..2", Dir),
            ("..2/a", File("a2")),
            ("..2/b", File("b2")),
            ("..data", Link("..2")),
            ("a", Link("..data/a")),
            (key, Link("..data/b")),
        ],
    }
}

#[test]
fn a_tree_is_what_was_delivered() {
    let Some(world) = World::new() else { return };
    world.put("v", Kind::Tree, &config("1", "b")).unwrap();
    let path = world.mount("c1", "v", "").unwrap();
    assert_eq!(world.read(&path.join("a")), "a1");
    let seen = std::fs::symlink_metadata(path.join("..1/a")).unwrap();
    assert_eq!((seen.uid(), seen.gid(), seen.mode() & 0o7777), (7, 8, 0o640));
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (1_000_000_000, 5));
    let top = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (top.uid(), top.permissions().mode() & 0o7777, top.mtime()),
        (7, 0o755, 1_000_000_000)
    );
    assert_eq!(world.volumes.list(), [("v".to_owned(), "7".to_owned())]);
    let kind = std::process::Command::new("stat").args(["-f", "-c", "%T"]).arg(&path).output();
    assert_eq!(kind.unwrap().stdout, b"tmpfs\n", "what was delivered may be secret");
}

#[test]
fn a_new_delivery_is_seen_as_a_whole_by_those_who_have_the_directory_open() {
    let Some(world) = World::new() else { return };
    world.put("v", Kind::Tree, &config("1", "b")).unwrap();
    let path = world.mount("c1", "v", "").unwrap();
    // What a container has is the directory itself, not its name.
    let open = std::fs::File::open(&path).unwrap();
    let inside = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Through one opened directory, as a reader does who wants both to fit together.
                let Ok(data) = std::fs::read_link(inside.join("..data")) else {
                    seen.insert("nothing".to_owned());
                    continue;
                };
                let dir = inside.join(data);
                let pair = [dir.join("a"), dir.join("b")].map(std::fs::read_to_string);
                // The old directory may go while it is read, as on a node.
                if let [Ok(a), Ok(b)] = pair {
                    seen.insert(format!("{a} {b}"));
                }
            }
            seen
        });
        for round in 0..200 {
            let version = if round % 2 == 0 { "2" } else { "1" };
            world.put("v", Kind::Tree, &config(version, "b")).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let seen = reader.join().unwrap();
        let whole = ["a1 b1".to_owned(), "a2 b2".to_owned()];
        assert!(!seen.is_empty() && seen.iter().all(|pair| whole.contains(pair)), "{seen:?}");
    });
    world.put("v", Kind::Tree, &config("2", "renamed")).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["..2", "..data", "a", "renamed"]);
}

#[test]
fn any_kind_of_entry_gives_way_to_any_other() {
    let Some(world) = World::new() else { return };
    let kinds = [
        vec![("x", File("file"))],
        vec![("x", Link("nowhere"))],
        vec![("x", Dir), ("x/y", File("deep"))],
        vec![("x", Dir), ("x/z", Dir), ("x/z/y", File("deeper"))],
        vec![],
    ];
    for first in &kinds {
        for second in &kinds {
            for entries in [first, second] {
                let all: Vec<_> = [("", Dir)].into_iter().chain(entries.iter().cloned()).collect();
                world.put("v", Kind::Tree, &all).unwrap();
            }
            let path = world.mount("c1", "v", "").unwrap();
            let mut found: Vec<String> = Vec::new();
            let mut dirs = vec![path.clone()];
            while let Some(dir) = dirs.pop() {
                for entry in std::fs::read_dir(dir).unwrap() {
                    let entry = entry.unwrap().path();
                    found.push(entry.strip_prefix(&path).unwrap().display().to_string());
                    if std::fs::symlink_metadata(&entry).unwrap().is_dir() {
                        dirs.push(entry);
                    }
                }
            }
            let wanted: Vec<_> = second.iter().map(|(path, _)| (*path).to_owned()).collect();
            assert_eq!(found, wanted);
        }
    }
}

#[test]
fn a_file_is_written_in_place_and_its_changes_are_told() {
    let Some(world) = World::new() else { return };
    world.put("f", Kind::File, &[("", File("delivered"))]).unwrap();
    let path = world.mount("c1", "f", "").unwrap();
    let changed = || world.volumes.content("f").unwrap().changed(6).unwrap();
    assert_eq!(changed(), None);
    let mounted = std::fs::metadata(&path).unwrap().ino();
    std::fs::write(&path, "by a container").unwrap();
    assert_eq!(changed(), Some((14, b"tainer".to_vec())));
    world.put("f", Kind::File, &[("", File("new"))]).unwrap();
    assert_eq!((world.read(&path).as_str(), changed()), ("new", None));
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), mounted);
}

#[test]
fn an_empty_directory_is_shared_and_its_parts_stay_in_it() {
    let Some(world) = World::new() else { return };
    for (id, memory_bytes) in [("disk", 0), ("memory", 1 << 20)] {
        let kind = Kind::Empty { memory_bytes };
        world.put(id, kind, &[("", Dir)]).unwrap();
        let path = world.mount("c1", id, "").unwrap();
        std::fs::write(path.join("file"), "kept").unwrap();
        world.put(id, kind, &[("", Dir)]).unwrap();
        assert_eq!(world.read(&path.join("file")), "kept");
        // A part that is missing is made like the volume; what is there is taken as it is.
        let part = world.mount("c2", id, "new/deep").unwrap();
        std::fs::write(part.join("below"), "x").unwrap();
        assert_eq!(world.read(&path.join("new/deep/below")), "x");
        assert_eq!(std::fs::metadata(path.join("new")).unwrap().uid(), 7);
        assert_eq!(world.read(&world.mount("c3", id, "file").unwrap()), "kept");
        // What another container made of the volume leads nowhere else.
        symlink("/etc", path.join("out")).unwrap();
        symlink("../..", path.join("up")).unwrap();
        symlink("new", path.join("in")).unwrap();
        for bad in ["out", "out/passwd", "up", "up/x", "../x", "/etc", "file/x"] {
            let refused = world.mount("c4", id, bad);
            assert!(matches!(refused, Err(VolumeError::NoPart { .. })), "{bad}: {refused:?}");
        }
        let part = world.mount("c4", id, "in/deep").unwrap();
        assert_eq!(world.read(&part.join("below")), "x");
        for container in ["c1", "c2", "c3", "c4"] {
            world.volumes.release(container);
        }
        assert_eq!(world.read(&path.join("file")), "kept", "it lives as long as the machine");
    }
}

#[test]
fn delivered_volumes_go_with_the_last_container_that_mounts_them() {
    let Some(world) = World::new() else { return };
    world.put("v", Kind::Tree, &config("1", "b")).unwrap();
    let path = world.mount("c1", "v", "").unwrap();
    world.mount("c2", "v", "..1/a").unwrap();
    world.volumes.release("c1");
    assert!(path.exists());
    // Delivered for a third, which is on its way.
    world.put("v", Kind::Tree, &config("1", "b")).unwrap();
    world.volumes.release("c2");
    assert!(path.exists());
    world.mount("c3", "v", "").unwrap();
    world.volumes.release("c3");
    assert!(!path.exists() && world.volumes.list().is_empty());
    assert!(matches!(world.mount("c4", "v", ""), Err(VolumeError::None(_))));
}

#[test]
fn what_was_delivered_for_a_container_that_never_came_goes_after_a_while() {
    let Some(world) = World::new() else { return };
    for id in ["used", "alone"] {
        world.put(id, Kind::Tree, &config("1", "b")).unwrap();
    }
    world.put("empty", Kind::Empty { memory_bytes: 0 }, &[("", Dir)]).unwrap();
    let path = world.mount("c1", "used", "").unwrap();
    world.put("used", Kind::Tree, &config("1", "b")).unwrap();
    let ids = || world.volumes.list().into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    let now = Instant::now();
    world.volumes.lock().forget_awaited(now.checked_sub(AWAITED).unwrap());
    assert_eq!(ids(), ["alone", "empty", "used"]);
    world.volumes.lock().forget_awaited(now);
    assert_eq!(ids(), ["empty", "used"]);
    // Nobody is awaited any more.
    world.volumes.release("c1");
    assert!(!path.exists());
    let left = std::fs::read_dir(world.dir.path().join("volumes/ram")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_delivery_that_cannot_be_is_refused_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    type Entries = Vec<(&'static str, What)>;
    let bad: [(&str, Kind, Entries); 10] = [
        ("climbs", Kind::Tree, vec![("", Dir), ("../x", File("x"))]),
        ("is absolute", Kind::Tree, vec![("", Dir), ("/etc/x", File("x"))]),
        ("through a link", Kind::Tree, vec![("", Dir), ("l", Link("/etc")), ("l/x", File("x"))]),
        (
            "through a link inside",
            Kind::Tree,
            vec![("", Dir), ("d", Dir), ("l", Link("d")), ("l/x", Dir)],
        ),
        ("twice", Kind::Tree, vec![("", Dir), ("x", File("1")), ("x", File("2"))]),
        ("no parent", Kind::Tree, vec![("", Dir), ("x/y", File("1"))]),
        ("no root", Kind::Tree, vec![("x", File("1"))]),
        ("a file as a tree", Kind::Tree, vec![("", File("1"))]),
        ("two files", Kind::File, vec![("", File("1")), ("x", File("2"))]),
        ("nothing", Kind::File, vec![]),
    ];
    for (what, kind, entries) in bad {
        assert!(world.put("v", kind, &entries).is_err(), "{what}");
        assert!(world.volumes.list().is_empty(), "{what}");
        let left = std::fs::read_dir(world.dir.path().join("volumes/ram")).unwrap().count();
        assert_eq!(left, 0, "{what}");
    }
    world.put("v", Kind::File, &[("", File("1"))]).unwrap();
    let other = world.put("v", Kind::Tree, &[("", Dir)]);
    assert!(matches!(other, Err(VolumeError::OtherKind(_))), "{other:?}");
    let begun =
        world.volumes.begin(Begin { id: "w".into(), kind: Kind::Tree, revision: "1".into() });
    drop(begun.unwrap());
    assert_eq!(world.volumes.list().len(), 1);
}
