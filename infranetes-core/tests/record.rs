//! The store on disk: durable, shared commits, and honest about damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use infranetes_core::record::{Change, Entry, RecordError, RecordStore, RedbStore, Table};

fn put(table: Table, key: &str, value: &[u8]) -> Change {
    Change::Put(Entry { table, key: key.to_owned(), value: value.to_vec() })
}

fn delete(table: Table, key: &str) -> Change {
    Change::Delete { table, key: key.to_owned() }
}

fn rows(entries: &[Entry]) -> Vec<(Table, String, Vec<u8>)> {
    entries.iter().map(|e| (e.table, e.key.clone(), e.value.clone())).collect()
}

async fn filled(directory: &Path) -> (PathBuf, Vec<(Table, String, Vec<u8>)>) {
    let path = directory.join("state.redb");
    let store = RedbStore::open(&path).await.expect("a new store");
    for number in 0..40 {
        let value = format!("value {number} ").repeat(30);
        store
            .commit(vec![
                put(Table::Sandboxes, &format!("s{number}"), value.as_bytes()),
                put(Table::Containers, &format!("c{number}"), b"c"),
            ])
            .await
            .expect("a commit");
    }
    store.commit(vec![delete(Table::Containers, "c3")]).await.expect("a commit");
    let content = rows(&store.load().await.expect("a load"));
    assert_eq!(content.len(), 79);
    close(store).await;
    (path, content)
}

/// The thread lets go of the file a moment after the last clone is dropped.
async fn close(store: RedbStore) {
    drop(store);
}

async fn reopened(path: &Path) -> Result<RedbStore, RecordError> {
    for _ in 0..500 {
        match RedbStore::open(path).await {
            Err(RecordError::InUse { .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            answer => return answer,
        }
    }
    panic!("the store was not closed within five seconds");
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart_and_for_its_owner_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, content) = filled(directory.path()).await;
    let store = reopened(&path).await.expect("the store again");
    assert_eq!(rows(&store.load().await.expect("a load")), content);
    for file in fs::read_dir(directory.path()).expect("the directory") {
        let file = file.expect("a file");
        let mode = file.metadata().expect("its mode").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn a_copy_taken_while_it_is_open_holds_all_commits() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.redb");
    let store = RedbStore::open(&path).await.expect("a store");
    for number in 0..20u8 {
        store.commit(vec![put(Table::Node, "n", &[number])]).await.expect("a commit");
        // What a kill at this moment would leave.
        let copy = directory.path().join(format!("copy-{number}.redb"));
        fs::copy(&path, &copy).expect("a copy");
        let found = RedbStore::open(&copy).await.expect("the copy").load().await.expect("a load");
        assert_eq!(rows(&found), [(Table::Node, "n".to_owned(), vec![number])]);
    }
}

#[tokio::test]
async fn a_second_store_over_the_same_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.redb");
    let _first = RedbStore::open(&path).await.expect("a store");
    let second = RedbStore::open(&path).await.err().expect("a refusal");
    assert!(matches!(second, RecordError::InUse { .. }), "{second:?}");
}

#[tokio::test]
async fn many_writers_share_commits() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.redb");
    let store = RedbStore::open(&path).await.expect("a store");
    let writers = (0..500).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            store.commit(vec![put(Table::Sandboxes, &format!("{number}"), b"x")]).await
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer").expect("a commit");
    }
    assert_eq!(store.load().await.expect("a load").len(), 500);
}

#[tokio::test]
async fn a_damaged_file_is_refused_as_it_is_or_holds_everything() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, content) = filled(directory.path()).await;
    drop(reopened(&path).await);
    let whole = fs::read(&path).expect("the file");
    let mut damages: Vec<(String, Vec<u8>)> = vec![
        ("empty".to_owned(), Vec::new()),
        ("text".to_owned(), b"this is no record\n".repeat(100)),
    ];
    for part in 1..8 {
        let length = whole.len() * part / 8;
        damages.push((format!("cut to {length}"), whole[..length].to_vec()));
    }
    let mut bits = 0x5EED_u64;
    for _ in 0..100 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Half of them where something is sure to be written.
        let range = if bits & 1 == 0 { whole.len() } else { whole.len() / 16 };
        let place = (bits >> 20) as usize % range;
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << ((bits >> 8) & 7);
        damages.push((format!("bit at {place}"), bytes));
    }
    let mut refused = 0;
    for (number, (what, bytes)) in damages.into_iter().enumerate() {
        let copy = directory.path().join(format!("{number}-damaged.redb"));
        fs::write(&copy, &bytes).expect("a damaged file");
        match reopened(&copy).await {
            Ok(store) => {
                assert_eq!(rows(&store.load().await.expect("a load")), content, "{what}");
            }
            Err(RecordError::Damaged { path, .. }) => {
                refused += 1;
                assert!(path.ends_with("damaged.redb"), "{path}");
                assert!(fs::read(&copy).expect("the file") == bytes, "{what}: it was changed");
            }
            Err(other) => panic!("{what}: {other:?}"),
        }
    }
    assert!(refused > 8, "only {refused} damages were noticed");
}
