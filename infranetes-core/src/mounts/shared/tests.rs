use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tokio::sync::mpsc;

use super::*;
use crate::mounts::{DiskFiles, Limits, NodeFiles};
use crate::session::MachineEntry;

/// An entry in a few words: "d" a directory, "l" a link, "f" a file, "c" covered, "s" special, and its stamp.
fn entry(words: &str) -> SharedEntry {
    let kind = match &words[..1] {
        "d" => SharedKind::Plain(EntryKind::Directory),
        "l" => SharedKind::Plain(EntryKind::Symlink("x".into())),
        "c" => SharedKind::Covered,
        "s" => SharedKind::Special,
        _ => SharedKind::Plain(EntryKind::File),
    };
    let mode = if words.ends_with('!') { 0o700 } else { 0o755 };
    let stamp = words.as_bytes().to_vec();
    SharedEntry { kind, mode, uid: 0, gid: 0, modified: (0, 0), size: 0, stamp, fresh: false }
}

/// What is to be done, in words. Of each path: what the node has, what the machine has, what the node had when both agreed, and
/// whether the machine's changed since. "-" is nothing.
fn steps(sides: &[(&str, &str, &str, &str, bool)], writable: &[&str]) -> Vec<String> {
    let some = |words: &str| (words != "-").then(|| entry(words));
    let (mut node, mut machine) = (BTreeMap::new(), BTreeMap::new());
    for (path, here, there, agreed, changed) in sides {
        if let Some(here) = some(here) {
            node.insert(PathBuf::from(path), here);
        }
        let token = (*agreed != "-").then(|| agreed.as_bytes().to_vec());
        if token.is_some() || *there != "-" {
            let entry = MachineEntry { now: some(there), token, changed: *changed };
            machine.insert(PathBuf::from(path), entry);
        }
    }
    let writable: Vec<PathBuf> = writable.iter().map(PathBuf::from).collect();
    let plan = plan(&node, &machine, &writable);
    let mut words = Vec::new();
    for step in plan.to_node {
        words.push(match step {
            ToNode::Put { path, .. } => format!("take {}", path.display()),
            ToNode::Remove { path, .. } => format!("remove {}", path.display()),
        });
    }
    for step in plan.to_machine {
        words.push(match step {
            ToMachine::Put { path, .. } => format!("bring {}", path.display()),
            ToMachine::Remove { path, .. } => format!("remove there {}", path.display()),
            ToMachine::Agree { path, stamp, .. } if stamp.is_empty() => {
                format!("forget {}", path.display())
            }
            ToMachine::Agree { path, .. } => format!("agree {}", path.display()),
        });
    }
    words.extend(plan.conflicts.iter().map(|path| format!("conflict {}", path.display())));
    words.extend(plan.refused.iter().map(|path| format!("refused {}", path.display())));
    words
}

#[test]
fn each_side_gets_what_the_other_changed() {
    // node, machine, the node's when both agreed, whether the machine's changed -> what is done
    let cases: [(&str, &str, &str, bool, &[&str]); 21] = [
        ("f1", "f", "f1", false, &[]),
        ("f2", "f", "f1", false, &["bring x"]),
        ("f1", "-", "-", false, &["bring x"]),
        ("-", "f", "f1", false, &["remove there x"]),
        ("f1", "f", "f1", true, &["take x"]),
        ("-", "f", "-", true, &["take x"]),
        ("f1", "-", "f1", true, &["remove x"]),
        ("-", "-", "f1", true, &["forget x"]),
        // Both changed it.
        ("f2", "f", "f1", true, &["take x", "conflict x"]),
        ("f1", "f", "-", true, &["take x", "conflict x"]),
        ("f2", "-", "f1", true, &["bring x"]),
        ("-", "f", "f1", true, &["take x"]),
        ("d2", "d", "d1", true, &["agree x"]),
        ("d2", "d!", "d1", true, &["take x"]),
        ("l2", "l", "-", true, &["agree x"]),
        ("f1", "d", "f1", true, &["take x"]),
        // What does not travel.
        ("-", "s", "-", true, &["refused x"]),
        ("f1", "s", "f1", true, &["refused x"]),
        ("s1", "f", "-", true, &["refused x"]),
        ("s1", "-", "-", false, &[]),
        ("c1", "-", "-", false, &["bring x"]),
    ];
    for (node, machine, agreed, changed, expected) in cases {
        let made = steps(&[("x", node, machine, agreed, changed)], &[""]);
        assert_eq!(made, expected, "{node} {machine} {agreed} {changed}");
    }
}

#[test]
fn where_the_machine_may_not_write_it_gets_what_the_node_has() {
    let sides = [
        ("in", "d1", "d", "d1", false),
        ("in/file", "f1", "f", "f1", true),
        ("own", "-", "f", "-", true),
        ("there", "f1", "-", "f1", true),
        ("was", "f1", "f", "f1", true),
    ];
    let read_only = ["bring in/file", "bring there", "bring was", "remove there own"];
    assert_eq!(steps(&sides, &[]), read_only);
    let below = ["take in/file", "bring there", "bring was", "remove there own"];
    assert_eq!(steps(&sides, &["in"]), below);
}

#[test]
fn the_order_leaves_nothing_missing_and_no_directory_goes_that_is_needed() {
    // A rename: the new name comes before the old one goes.
    let rename = [("a", "f1", "-", "f1", true), ("b", "-", "f", "-", true)];
    assert_eq!(steps(&rename, &[""]), ["take b", "remove a"]);
    // A tree that goes, the innermost first, on either side.
    let gone = [
        ("d", "d1", "-", "d1", true),
        ("d/e", "d1", "-", "d1", true),
        ("d/e/f", "f1", "-", "f1", true),
    ];
    assert_eq!(steps(&gone, &[""]), ["remove d/e/f", "remove d/e", "remove d"]);
    let gone = [("d", "-", "d", "d1", false), ("d/f", "-", "f", "f1", false)];
    assert_eq!(steps(&gone, &[""]), ["remove there d/f", "remove there d"]);
    // A directory that becomes a file makes room first.
    let room = [
        ("d", "d1", "f", "d1", true),
        ("d/f", "f1", "-", "f1", true),
        ("e", "f1", "-", "f1", true),
    ];
    assert_eq!(steps(&room, &[""]), ["remove d/f", "take d", "remove e"]);
    let room = [("d", "f2", "d", "d1", false), ("d/f", "-", "f", "f1", false)];
    assert_eq!(steps(&room, &[""]), ["remove there d/f", "bring d"]);
    // One side removes a directory in which the other made something.
    let kept = [("d", "-", "d", "d1", false), ("d/new", "-", "f", "-", true)];
    assert_eq!(steps(&kept, &[""]), ["take d", "take d/new"]);
    let kept = [("d", "d1", "-", "d1", true), ("d/new", "f1", "-", "-", false)];
    assert_eq!(steps(&kept, &[""]), ["bring d", "bring d/new"]);
}

#[test]
fn nothing_travels_below_what_is_mounted_on_the_node_or_does_not_travel_itself() {
    let sides = [
        ("m", "c1", "d", "d1", false),
        ("m/own", "-", "f", "-", true),
        ("m/was", "-", "f", "f1", false),
        ("m2", "f1", "-", "-", false),
        ("s", "s1", "d", "-", true),
        ("s/f", "-", "f", "-", true),
    ];
    assert_eq!(steps(&sides, &[""]), ["bring m2", "refused s"]);
}

/// A shared directory of the node, and something beside it that nobody may reach.
struct World {
    dir: tempfile::TempDir,
    files: DiskFiles,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/file"), "of another").unwrap();
        Self { dir, files: DiskFiles::default() }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.dir.path().join("shared").join(below)
    }

    fn path(&self) -> SharedPath {
        let dir = self.dir.path().canonicalize().unwrap().join("shared");
        let inode = fs::metadata(&dir).unwrap().ino();
        SharedPath { path: NodePath::resolved(&dir), inode, mounted: Mounted::Then(Vec::new()) }
    }

    async fn scan(&self) -> SharedTree {
        self.files.scan_shared(&self.path(), Limits::default()).await.unwrap()
    }

    async fn stamp(&self, path: &str) -> Option<Vec<u8>> {
        self.scan().await.entries.get(Path::new(path)).map(|entry| entry.stamp.clone())
    }

    async fn take(&self, incoming: Vec<Incoming>) -> Vec<String> {
        let (sender, receiver) = mpsc::channel(100);
        for one in incoming {
            assert!(sender.try_send(one).is_ok());
        }
        drop(sender);
        let taken = self.files.take_shared(&self.path(), receiver).await.unwrap();
        let words = |taken: Taken| match taken.result {
            Ok(_) => format!("{} taken", taken.path.display()),
            Err(error) => format!("{} {:?}", taken.path.display(), error.kind()),
        };
        taken.into_iter().map(words).collect()
    }

    async fn put(&self, path: &str, words: &str, expected: Option<Vec<u8>>) -> String {
        self.take(put(path, words, 0o7777, expected)).await.join(", ")
    }

    async fn remove(&self, path: &str, expected: Option<Vec<u8>>) -> String {
        let expected = expected.unwrap_or_default();
        self.take(vec![Incoming::Remove { path: path.into(), expected }]).await.join(", ")
    }
}

fn put(path: &str, words: &str, mode: u32, expected: Option<Vec<u8>>) -> Vec<Incoming> {
    let (uid, gid) =
        (fs::metadata("/proc/self").unwrap().uid(), fs::metadata("/proc/self").unwrap().gid());
    let entry = SharedEntry { mode, uid, gid, modified: (1_000_000_000, 5), ..entry(words) };
    let is_file = entry.kind == SharedKind::Plain(EntryKind::File);
    let mut all = vec![Incoming::Put { path: path.into(), entry, expected }];
    if is_file {
        all.extend([
            Incoming::Data(Bytes::from_static(b"of the ")),
            Incoming::Data(Bytes::from_static(b"machine")),
        ]);
        all.push(Incoming::End);
    }
    all
}

#[tokio::test]
async fn what_a_machine_brings_is_there_as_a_whole_and_without_special_bits() {
    let world = World::new();
    assert_eq!(world.put("d", "d", None).await, "d taken");
    assert_eq!(world.put("d/file", "f", None).await, "d/file taken");
    assert_eq!(world.put("d/link", "l", None).await, "d/link taken");
    assert_eq!(fs::read_to_string(world.at("d/file")).unwrap(), "of the machine");
    assert_eq!(fs::read_link(world.at("d/link")).unwrap(), Path::new("x"));
    let file = fs::metadata(world.at("d/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime(), file.mtime_nsec()), (0o777, 1_000_000_000, 5));
    assert_eq!(fs::metadata(world.at("d")).unwrap().mode() & 0o7777, 0o777);
    assert_eq!(fs::read_dir(world.at("d")).unwrap().count(), 2, "something is left");
    // A directory keeps the bits that it has on the node.
    fs::set_permissions(world.at("d"), fs::Permissions::from_mode(0o2755)).unwrap();
    let stamp = world.stamp("d").await;
    assert_eq!(world.put("d", "d", stamp).await, "d taken");
    assert_eq!(fs::metadata(world.at("d")).unwrap().mode() & 0o7777, 0o2777);
    // What breaks off leaves what was there.
    let stamp = world.stamp("d/file").await;
    let mut half = put("d/file", "f", 0o644, stamp);
    half.pop();
    assert!(world.take(half).await.is_empty());
    assert_eq!(fs::read_to_string(world.at("d/file")).unwrap(), "of the machine");
    assert_eq!(fs::read_dir(world.at("d")).unwrap().count(), 2, "something is left");
}

#[tokio::test]
async fn what_the_node_changed_meanwhile_stays() {
    let world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    fs::write(world.at("d/file"), "1").unwrap();
    fs::write(world.at("d/unseen"), "1").unwrap();
    let (directory, file) = (world.stamp("d").await, world.stamp("d/file").await);
    fs::write(world.at("d/file"), "of the node").unwrap();
    let cases = [
        world.put("d/file", "f", file.clone()).await,
        world.put("d/file", "l", file.clone()).await,
        world.put("d/file", "f", None).await,
        world.put("d", "f", directory.clone()).await,
        world.remove("d/file", file).await,
        world.remove("d", directory).await,
        world.remove("d/unseen", Some(b"guessed".to_vec())).await,
    ];
    assert!(cases.iter().all(|said| said.ends_with(" Unavailable")), "{cases:?}");
    assert_eq!(fs::read_to_string(world.at("d/file")).unwrap(), "of the node");
    assert_eq!(fs::read_to_string(world.at("d/unseen")).unwrap(), "1");
    assert_eq!(fs::read_dir(world.at("d")).unwrap().count(), 2, "something is left");
    // As it is now, all of it goes, and what is gone already is no error.
    for path in ["d/file", "d/unseen", "d"] {
        let stamp = world.stamp(path).await;
        assert_eq!(world.remove(path, stamp).await, format!("{path} taken"));
    }
    assert_eq!(world.remove("d/file", None).await, "d/file taken");
}

#[tokio::test]
async fn no_link_leads_a_machine_out_of_the_directory() {
    let world = World::new();
    symlink("../outside", world.at("d")).unwrap();
    symlink("../outside/file", world.at("file")).unwrap();
    for path in ["d/file", "d/new", "d/deep/new"] {
        assert_eq!(world.put(path, "f", None).await, format!("{path} Invalid"));
        assert_eq!(world.put(path, "d", None).await, format!("{path} Invalid"));
        assert_eq!(world.remove(path, None).await, format!("{path} Invalid"));
        assert!(world.files.open_shared(&world.path(), Path::new(path)).await.unwrap().is_none());
    }
    for path in ["../outside/file", "../outside", "/etc/hostname", ".."] {
        let said = world.put(path, "f", None).await;
        assert!(!said.ends_with(" taken"), "{path}: {said}");
        assert!(!world.remove(path, None).await.ends_with(" taken"), "{path}");
    }
    // A file takes the place of a link, and not of what it leads to.
    let stamp = world.stamp("file").await;
    assert_eq!(world.put("file", "f", stamp).await, "file taken");
    assert!(fs::symlink_metadata(world.at("file")).unwrap().is_file());
    assert_eq!(fs::read_to_string(world.dir.path().join("outside/file")).unwrap(), "of another");
    assert_eq!(fs::read_dir(world.dir.path().join("outside")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_swapped_for_a_link_again_and_again_lets_nothing_out() {
    let world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (inside, aside) = (world.at("d"), world.at("aside"));
    let outside = world.dir.path().join("outside");
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::rename(&inside, &aside).unwrap();
                    symlink(&outside, &inside).unwrap();
                    fs::remove_file(&inside).unwrap();
                    fs::rename(&aside, &inside).unwrap();
                }
            });
            // The two may meet seldom on a machine that is busy.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            let (mut tries, mut taken) = (0, 0);
            while tries < 300 || (taken < 20 && std::time::Instant::now() < deadline) {
                let path = format!("d/{tries}");
                let said = runtime.block_on(world.put(&path, "f", None));
                runtime.block_on(world.remove("d/file", None));
                tries += 1;
                taken += u32::from(said.ends_with(" taken"));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "a machine wrote elsewhere");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "of another");
    assert!(fs::read_dir(world.at("d")).unwrap().count() > 0, "nothing was written at all");
}

#[tokio::test]
async fn a_scan_tells_every_change_and_knows_what_does_not_travel() {
    let world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    fs::write(world.at("d/file"), "1").unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(world.at("pipe")).status().unwrap();
    assert!(pipe.success());
    // A file on its way is no entry, and stays while it is young.
    let young = format!("{TEMPORARY}{}", "0".repeat(32));
    fs::write(world.at(&young), "half").unwrap();
    let before = world.scan().await;
    let names: Vec<&str> = before.entries.keys().filter_map(|path| path.to_str()).collect();
    assert_eq!(names, ["", "d", "d/file", "pipe"]);
    assert_eq!(before.entries[Path::new("pipe")].kind, SharedKind::Special);
    assert!(world.at(&young).exists());
    fs::write(world.at("d/file"), "longer").unwrap();
    let after = world.scan().await;
    let changed =
        |path: &str| before.entries[Path::new(path)].stamp != after.entries[Path::new(path)].stamp;
    assert!(changed("d/file") && !changed("d") && !changed("pipe"));
    // Another directory of the name is not the one that was mounted.
    let path = world.path();
    fs::rename(world.at(""), world.dir.path().join("moved")).unwrap();
    fs::create_dir(world.at("")).unwrap();
    let another = world.files.scan_shared(&path, Limits::default()).await;
    assert!(matches!(another, Err(FilesError::Another(_))), "{another:?}");
}

#[tokio::test]
async fn more_than_may_be_shared_is_told_by_its_limit() {
    let world = World::new();
    for number in 0..20 {
        fs::write(world.at(&number.to_string()), "1234567890").unwrap();
    }
    let cases = [(21, 200, ""), (20, 200, "shared_entries"), (21, 199, "shared_mib")];
    for (entries, bytes, refusal) in cases {
        let scan = world.files.scan_shared(&world.path(), Limits { bytes, entries }).await;
        let said = scan.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains(refusal) && said.is_empty() == refusal.is_empty(), "{said}");
    }
}
