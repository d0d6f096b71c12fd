use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::mounts::{Entry, EntryKind};

/// A root with a pod's directory in it, and something beside it that nobody may reach.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/pod")).unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/file"), "secret of another").unwrap();
        Self { dir }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.dir.path().join("root/pod").join(below)
    }

    fn node_path(&self, below: &str) -> NodePath {
        NodePath { root: self.dir.path().join("root"), below: Path::new("pod").join(below) }
    }

    async fn read(&self, below: &str, limits: Limits) -> Result<Vec<(Entry, String)>> {
        collect(DiskFiles::default().read(self.node_path(below), limits, true)).await
    }

    async fn revision(&self, below: &str) -> String {
        let paths = vec![self.node_path(below)];
        let mut revisions = DiskFiles::default().revisions(paths, Limits::default()).await;
        revisions.remove(0).unwrap()
    }
}

async fn collect(mut parts: Parts) -> Result<Vec<(Entry, String)>> {
    let mut entries: Vec<(Entry, String)> = Vec::new();
    while let Some(part) = parts.next().await {
        match part? {
            Part::Entry(entry) => entries.push((entry, String::new())),
            Part::Data(data) => {
                assert!(data.len() <= 256 * 1024);
                entries.last_mut().unwrap().1.push_str(&String::from_utf8_lossy(&data));
            }
        }
    }
    Ok(entries)
}

#[tokio::test]
async fn a_tree_is_read_with_modes_and_links_that_nobody_follows() {
    let world = World::new();
    fs::create_dir_all(world.at("v/d")).unwrap();
    fs::write(world.at("v/d/file"), "x".repeat(300_000)).unwrap();
    fs::set_permissions(world.at("v/d/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("../../../outside", world.at("v/out")).unwrap();
    symlink("/nowhere", world.at("v/gone")).unwrap();
    let entries = world.read("v", Limits::default()).await.unwrap();
    let words: Vec<String> = entries
        .iter()
        .map(|(entry, text)| {
            let kind = match &entry.kind {
                EntryKind::Directory => "dir".to_owned(),
                EntryKind::File => format!("{:o} {}", entry.mode, text.len()),
                EntryKind::Symlink(target) => format!("-> {}", target.display()),
            };
            format!("{} {kind}", entry.path.display())
        })
        .collect();
    let expected =
        [" dir", "d dir", "d/file 4751 300000", "gone -> /nowhere", "out -> ../../../outside"];
    assert_eq!(words, expected);
    let file = world.read("v/d/file", Limits::default()).await.unwrap();
    assert_eq!((file.len(), file[0].1.len()), (1, 300_000));
    assert!(file[0].0.path.as_os_str().is_empty());
}

#[tokio::test]
async fn no_path_leads_out_through_a_link() {
    let world = World::new();
    symlink("../../outside", world.at("v")).unwrap();
    symlink("/etc/passwd", world.at("f")).unwrap();
    fs::create_dir(world.at("d")).unwrap();
    symlink("../../../outside/file", world.at("d/f")).unwrap();
    let files = DiskFiles::default();
    for below in ["v", "v/file", "f", "d/f", "../../outside", "d/../../../outside/file"] {
        let path = world.node_path(below);
        assert!(files.look(&path).await.is_err(), "{below}");
        assert!(world.read(below, Limits::default()).await.is_err(), "{below}");
        assert!(files.write(&path, b"evil".to_vec()).await.is_err(), "{below}");
    }
    let outside = world.dir.path().join("outside/file");
    assert_eq!(fs::read_to_string(outside).unwrap(), "secret of another");
}

#[tokio::test]
async fn a_swap_for_a_link_in_the_middle_of_a_walk_shows_nothing_of_what_it_leads_to() {
    let world = World::new();
    for number in 0..20 {
        fs::create_dir_all(world.at(&format!("v/d{number}"))).unwrap();
        fs::write(world.at(&format!("v/d{number}/file")), "own").unwrap();
    }
    let stop = AtomicBool::new(false);
    let (inside, aside) = (world.at("v/d10"), world.at("aside"));
    let outside = world.dir.path().join("outside");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&inside, &aside).unwrap();
                symlink(&outside, &inside).unwrap();
                fs::remove_file(&inside).unwrap();
                fs::rename(&aside, &inside).unwrap();
            }
        });
        for _ in 0..300 {
            let mut seen = Vec::new();
            // Something that goes in the middle is an error, and fine.
            let _ = walk::read(&world.node_path("v"), Limits::default(), &mut |part| {
                if let Part::Data(data) = part {
                    seen.push(data);
                }
                true
            });
            assert!(seen.iter().all(|data| &data[..] == b"own"), "what is outside was read");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[tokio::test]
async fn what_is_too_much_or_no_file_is_refused_by_name() {
    let world = World::new();
    fs::create_dir_all(world.at("many")).unwrap();
    for number in 0..20 {
        fs::write(world.at(&format!("many/{number}")), "1234567890").unwrap();
    }
    fs::create_dir_all(world.at("pipe")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(world.at("pipe/p")).status().unwrap();
    assert!(pipe.success());
    let deep = (0..100).fold(world.at("deep"), |path, _| path.join("d"));
    fs::create_dir_all(deep).unwrap();
    fs::File::create(world.at("sparse")).unwrap().set_len(1 << 40).unwrap();
    let few = |entries| Limits { entries, ..Limits::default() };
    let small = |bytes| Limits { bytes, ..Limits::default() };
    let cases = [
        ("many", few(21), ""),
        ("many", few(20), "copy_entries"),
        ("many", small(200), ""),
        ("many", small(199), "copy_mib"),
        ("pipe", Limits::default(), "pipe/p is a FIFO"),
        ("pipe/p", Limits::default(), "a FIFO"),
        ("deep", Limits::default(), "nested deeper"),
        ("sparse", Limits::default(), "copy_mib"),
        ("nothing", Limits::default(), "not on this node"),
    ];
    for (below, limits, refusal) in cases {
        let read = world.read(below, limits).await;
        let said = read.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains(refusal) && said.is_empty() == refusal.is_empty(), "{below}: {said}");
    }
}

#[tokio::test]
async fn a_tree_that_changes_while_it_is_read_is_not_whole() {
    let world = World::new();
    fs::create_dir(world.at("v")).unwrap();
    for number in 0..40 {
        fs::write(world.at(&format!("v/{number:02}")), vec![b'x'; 400_000]).unwrap();
    }
    let limits = Limits::default();
    for whole in [true, false] {
        let mut parts = DiskFiles::default().read(world.node_path("v"), limits, whole);
        // Nothing is read before it is asked for, so that the change falls into the middle.
        parts.next().await.unwrap().unwrap();
        fs::write(world.at("v/39"), format!("changed {whole}")).unwrap();
        let rest = collect(parts).await;
        assert_eq!(matches!(rest, Err(FilesError::Changed(_))), whole, "{:?}", rest.err());
    }
}

#[tokio::test]
async fn every_change_gives_another_revision() {
    let world = World::new();
    fs::create_dir_all(world.at("kept/..1")).unwrap();
    fs::write(world.at("kept/..1/key"), "1").unwrap();
    symlink("..1", world.at("kept/..data")).unwrap();
    fs::create_dir_all(world.at("plain/d")).unwrap();
    fs::write(world.at("plain/d/file"), "1").unwrap();
    type Change<'a> = (&'a str, &'a dyn Fn());
    let swap = || {
        fs::create_dir(world.at("kept/..2")).unwrap();
        symlink("..2", world.at("kept/new")).unwrap();
        fs::rename(world.at("kept/new"), world.at("kept/..data")).unwrap();
    };
    let changes: [Change<'_>; 5] = [
        ("kept", &swap),
        ("kept", &|| symlink("..data/key", world.at("kept/key")).unwrap()),
        ("plain", &|| fs::write(world.at("plain/d/file"), "2").unwrap()),
        ("plain", &|| fs::remove_file(world.at("plain/d/file")).unwrap()),
        ("plain", &|| {
            fs::set_permissions(world.at("plain/d"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
    ];
    for (number, (below, change)) in changes.into_iter().enumerate() {
        // Longer than a step of the file system's clock: within one, a name says that it is not settled.
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        let before = world.revision(below).await;
        assert!(!before.ends_with('~') && world.revision(below).await == before, "{number}");
        change();
        let after = world.revision(below).await;
        assert!(after.ends_with('~') && !walk::same(&before, &after), "{number}");
    }
}

#[tokio::test]
async fn only_a_regular_file_with_one_name_is_written() {
    let world = World::new();
    let files = DiskFiles::default();
    fs::write(world.at("file"), "something longer").unwrap();
    files.write(&world.node_path("file"), b"short".to_vec()).await.unwrap();
    assert_eq!(fs::read_to_string(world.at("file")).unwrap(), "short");
    fs::hard_link(world.at("file"), world.at("second")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(world.at("pipe")).status().unwrap();
    assert!(pipe.success());
    fs::create_dir(world.at("dir")).unwrap();
    for below in ["file", "second", "pipe", "dir", "nothing"] {
        let refused = files.write(&world.node_path(below), b"evil".to_vec()).await;
        assert!(refused.is_err(), "{below}");
    }
    assert_eq!(fs::read_to_string(world.at("file")).unwrap(), "short");
    assert!(!world.at("nothing").exists());
}

#[tokio::test]
async fn a_path_is_resolved_as_far_as_it_is_there() {
    let world = World::new();
    let files = DiskFiles::default();
    let base = world.dir.path().canonicalize().unwrap();
    symlink("../../outside", world.at("link")).unwrap();
    symlink("nowhere", world.at("dangling")).unwrap();
    symlink("loop", world.at("loop")).unwrap();
    let cases = [
        ("link/file", Some("outside/file")),
        ("link/new/deep", Some("outside/new/deep")),
        ("new", Some("root/pod/new")),
        ("dangling", None),
        ("dangling/x", None),
        ("loop", None),
    ];
    for (below, expected) in cases {
        let resolved = files.resolve(&world.at(below)).await.ok();
        assert_eq!(resolved, expected.map(|path| base.join(path)), "{below}");
    }
}
