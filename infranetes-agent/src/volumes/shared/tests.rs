use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::volumes::staging::Entry;

/// A shared volume, and something beside it that no entry may lead to.
struct World {
    dir: tempfile::TempDir,
    shared: Shared,
    stagings: std::cell::Cell<u32>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("volume")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/file"), "of another").unwrap();
        let shared = Shared::new(dir.path().join("volume"));
        Self { dir, shared, stagings: std::cell::Cell::new(0) }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.dir.path().join("volume").join(below)
    }

    /// Scans once nothing is fresh any more.
    fn scan(&self) -> Scan {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let scan = self.shared.scan(Limits { entries: 100, bytes: 1 << 20 }).unwrap();
            if !scan.revision.is_empty() || std::time::Instant::now() > deadline {
                return scan;
            }
        }
    }

    /// What is changed or gone, in words.
    fn changes(&self) -> Vec<String> {
        let words = |found: Found| {
            let gone = if found.now.is_none() { "-" } else { "" };
            let token = String::from_utf8_lossy(&found.token).into_owned();
            found.changed.then(|| format!("{gone}{} {token}", found.path.display()))
        };
        self.scan().found.into_iter().filter_map(words).collect()
    }

    fn stamp(&self, path: &str) -> Vec<u8> {
        let found = self.scan().found.into_iter().find(|found| found.path == Path::new(path));
        found.and_then(|found| found.now).map(|now| now.stamp).unwrap_or_default()
    }

    fn putting(&self) -> Putting {
        self.stagings.set(self.stagings.get() + 1);
        self.shared.begin(self.dir.path().join(format!("staging.{}", self.stagings.get()))).unwrap()
    }

    /// Puts one entry; true when it was taken.
    fn put(&self, path: &str, kind: EntryKind, content: &str, expected: Vec<u8>) -> bool {
        let mut putting = self.putting();
        putting.put(put(path, kind.clone(), expected)).unwrap();
        if kind == EntryKind::File {
            putting.data(content.as_bytes()).unwrap();
        }
        putting.end().unwrap() == 0
    }

    fn remove(&self, path: &str, expected: Vec<u8>) -> bool {
        let mut putting = self.putting();
        putting.remove(Path::new(path), &expected).unwrap();
        putting.end().unwrap() == 0
    }

    fn agree_on_all(&self) {
        let mut putting = self.putting();
        for found in self.scan().found {
            let stamp = found.now.map(|now| now.stamp).unwrap_or_default();
            putting.agree(&found.path, stamp, b"t".to_vec()).unwrap();
        }
        putting.end().unwrap();
    }
}

fn put(path: &str, kind: EntryKind, expected: Vec<u8>) -> Put {
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let modified = (1_000_000_000, 5);
    let entry = Entry { path: path.into(), kind, mode: 0o750, uid, gid, modified };
    Put { entry, expected, token: b"node".to_vec() }
}

#[test]
fn a_scan_tells_what_changed_since_both_sides_agreed() {
    let world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    fs::write(world.at("d/kept"), "1").unwrap();
    fs::write(world.at("d/goes"), "1").unwrap();
    symlink("/nowhere", world.at("link")).unwrap();
    assert_eq!(world.changes(), [" ", "d ", "d/goes ", "d/kept ", "link "]);
    world.agree_on_all();
    assert!(world.changes().is_empty());
    let before = world.scan().revision;
    fs::remove_file(world.at("d/goes")).unwrap();
    fs::write(world.at("d/new"), "1").unwrap();
    fs::set_permissions(world.at("d"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(world.at("d/kept"), "2").unwrap();
    assert_eq!(world.changes(), ["d t", "-d/goes t", "d/kept t", "d/new "]);
    assert_ne!(world.scan().revision, before);
    world.agree_on_all();
    assert!(world.changes().is_empty());
    assert!(world.scan().found.iter().all(|found| found.now.is_some()));
}

#[test]
fn what_was_read_while_it_was_fresh_is_told_once_more() {
    let world = World::new();
    fs::write(world.at("file"), "1").unwrap();
    let (now, _) = world.shared.open(Path::new("file")).unwrap().unwrap();
    let mut putting = world.putting();
    putting.agree(Path::new("file"), now.stamp, b"t".to_vec()).unwrap();
    putting.end().unwrap();
    let expected = if now.fresh { vec![" ", "file t"] } else { vec![" "] };
    assert_eq!(world.changes(), expected);
}

#[test]
fn what_the_node_puts_is_there_unless_a_container_was_first() {
    let world = World::new();
    use EntryKind::{Directory, File, Symlink};
    assert!(world.put("d", Directory, "", Vec::new()));
    assert!(world.put("d/file", File, "of the node", Vec::new()));
    assert!(world.put("d/link", Symlink("../..".into()), "", Vec::new()));
    assert_eq!(fs::read_to_string(world.at("d/file")).unwrap(), "of the node");
    assert_eq!(fs::metadata(world.at("d/file")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(world.changes(), [" "], "only the root was not agreed on");
    // Each stamp is that of before a container changed something.
    let stamps = ["d", "d/file", "d/link"].map(|path| world.stamp(path));
    fs::write(world.at("d/file"), "of the container").unwrap();
    fs::write(world.at("other"), "of the container").unwrap();
    assert!(!world.put("d/file", File, "late", stamps[1].clone()));
    assert!(!world.put("other", File, "late", Vec::new()));
    assert!(!world.put("nowhere/file", File, "late", Vec::new()));
    assert!(!world.remove("d/file", stamps[1].clone()));
    assert!(!world.remove("d", stamps[0].clone()), "it is not empty");
    assert_eq!(fs::read_to_string(world.at("d/file")).unwrap(), "of the container");
    // With what is there now, all of it goes through, and kinds may change.
    assert!(world.put("d/link", Directory, "", stamps[2].clone()));
    assert!(world.put("d/file", File, "later", world.stamp("d/file")));
    assert!(world.remove("d/link", world.stamp("d/link")));
    assert!(world.put("d/file", Symlink("x".into()), "", world.stamp("d/file")));
    assert!(world.remove("d/file", world.stamp("d/file")));
    assert!(world.put("d", File, "a file", world.stamp("d")));
    assert!(world.remove("gone", Vec::new()));
    assert_eq!(fs::read_to_string(world.at("d")).unwrap(), "a file");
}

#[test]
fn no_entry_leads_out_of_the_volume() {
    let world = World::new();
    symlink("../outside", world.at("d")).unwrap();
    symlink("../outside/file", world.at("file")).unwrap();
    assert!(world.shared.open(Path::new("d/file")).unwrap().is_none());
    let (now, file) = world.shared.open(Path::new("file")).unwrap().unwrap();
    assert!(file.is_none() && matches!(now.kind, Some(EntryKind::Symlink(_))));
    assert!(!world.put("d/file", EntryKind::File, "evil", Vec::new()));
    assert!(!world.put("d/new", EntryKind::File, "evil", Vec::new()));
    assert!(world.remove("d/file", Vec::new()), "there is nothing of that name in the volume");
    for path in ["../outside/file", "/etc/passwd", "d/../../x"] {
        let mut putting = world.putting();
        assert!(putting.put(put(path, EntryKind::File, Vec::new())).is_err(), "{path}");
        assert!(putting.remove(Path::new(path), &[]).is_err(), "{path}");
    }
    // A file that takes the place of a link is a file, and the link's target what it was.
    assert!(world.put("file", EntryKind::File, "own", world.stamp("file")));
    let outside = world.dir.path().join("outside/file");
    assert_eq!(fs::read_to_string(outside).unwrap(), "of another");
    assert_eq!(fs::read_dir(world.dir.path().join("outside")).unwrap().count(), 1);
}

#[test]
fn a_put_that_breaks_off_leaves_nothing() {
    let world = World::new();
    let mut putting = world.putting();
    putting.put(put("whole", EntryKind::File, Vec::new())).unwrap();
    putting.data(b"whole").unwrap();
    putting.put(put("half", EntryKind::File, Vec::new())).unwrap();
    putting.data(b"ha").unwrap();
    drop(putting);
    assert_eq!(fs::read_to_string(world.at("whole")).unwrap(), "whole");
    assert!(!world.at("half").exists());
    assert_eq!(fs::read_dir(world.dir.path()).unwrap().count(), 2, "the staging is left");
}

#[test]
fn a_file_is_read_as_it_was_opened() {
    let world = World::new();
    fs::write(world.at("file"), "opened").unwrap();
    let (now, file) = world.shared.open(Path::new("file")).unwrap().unwrap();
    fs::remove_file(world.at("file")).unwrap();
    let mut content = String::new();
    file.unwrap().read_to_string(&mut content).unwrap();
    assert_eq!((content.as_str(), now.size), ("opened", 6));
    assert!(world.shared.open(Path::new("file")).unwrap().is_none());
    let pipe = std::process::Command::new("mkfifo").arg(world.at("pipe")).status().unwrap();
    assert!(pipe.success());
    let (now, file) = world.shared.open(Path::new("pipe")).unwrap().unwrap();
    assert!(now.kind.is_none() && file.is_none());
}

#[test]
fn more_than_the_node_takes_is_told() {
    let world = World::new();
    for number in 0..20 {
        fs::write(world.at(&number.to_string()), "1234567890").unwrap();
    }
    let cases = [(21, 200, ""), (20, 200, "20 entries"), (21, 199, "199 bytes")];
    for (entries, bytes, refusal) in cases {
        let said = world.shared.scan(Limits { entries, bytes }).err().map(|e| e.to_string());
        let said = said.unwrap_or_default();
        assert!(said.contains(refusal) && said.is_empty() == refusal.is_empty(), "{said}");
    }
}
