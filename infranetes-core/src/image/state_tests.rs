use super::*;

const KEEP: Duration = Duration::from_secs(60);

fn digest(seed: &str) -> Digest {
    Digest::of(seed.as_bytes())
}

/// An image with these layers, of 10 bytes each, besides a manifest and a configuration of its own.
fn record(name: &str, layers: &[&str]) -> ImageRecord {
    let (config, manifest) =
        (digest(&format!("{name} config")), digest(&format!("{name} manifest")));
    let mut blobs: BTreeMap<Digest, u64> = layers.iter().map(|l| (digest(l), 10)).collect();
    blobs.insert(config.clone(), 1);
    blobs.insert(manifest.clone(), 1);
    ImageRecord {
        id: ImageId::new(config),
        digests: vec![format!("r.example/{name}@{manifest}")],
        manifest,
        blobs,
        tags: vec![format!("r.example/{name}:1")],
        user: String::new(),
        annotations: BTreeMap::new(),
    }
}

fn pull(state: &mut State, record: ImageRecord) {
    if let Some(records) = state.after_pull(record) {
        state.publish(records, Instant::now());
    }
}

fn remove(state: &mut State, name: &str) {
    let id = state.find(name).unwrap().id.clone();
    let records = state.after_removal(&id);
    state.publish(records, Instant::now());
}

fn sweep(state: &mut State, keep: Duration) -> Vec<Digest> {
    state.sweep(Instant::now(), keep).blobs
}

#[tokio::test(start_paused = true)]
async fn a_shared_layer_goes_with_its_last_image() {
    let mut state = State::default();
    pull(&mut state, record("a", &["base", "a"]));
    pull(&mut state, record("b", &["base", "b"]));
    assert_eq!(state.content(), (34, 7));
    remove(&mut state, "r.example/a:1");
    let gone = sweep(&mut state, KEEP);
    assert_eq!(gone.len(), 3);
    assert!(!gone.contains(&digest("base")));
    remove(&mut state, "r.example/b:1");
    assert!(sweep(&mut state, KEEP).contains(&digest("base")));
    assert_eq!(state.content(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_held_blob_stays_until_it_is_let_go() {
    let mut state = State::default();
    pull(&mut state, record("a", &["base"]));
    state.hold(&[digest("base")]);
    state.hold(&[digest("base")]);
    remove(&mut state, "r.example/a:1");
    assert!(!sweep(&mut state, KEEP).contains(&digest("base")));
    assert!(!state.release(&[digest("base")], Instant::now()));
    assert!(sweep(&mut state, KEEP).is_empty());
    assert!(state.release(&[digest("base")], Instant::now()), "there is something to sweep");
    assert_eq!(sweep(&mut state, KEEP), [digest("base")]);
}

#[tokio::test(start_paused = true)]
async fn what_an_unfinished_pull_left_is_kept_for_a_while() {
    let mut state = State::default();
    state.add_blob(digest("done"), 10, Instant::now());
    state.set_partial(&digest("half"), 4, Instant::now());
    assert_eq!(state.content(), (14, 2));
    tokio::time::advance(KEEP - Duration::from_secs(1)).await;
    assert!(sweep(&mut state, KEEP).is_empty());
    state.hold(&[digest("half")]);
    tokio::time::advance(KEEP).await;
    let swept = state.sweep(Instant::now(), KEEP);
    assert_eq!((swept.blobs, swept.partials), (vec![digest("done")], vec![]));
    state.release(&[digest("half")], Instant::now());
    tokio::time::advance(KEEP).await;
    assert_eq!(state.sweep(Instant::now(), KEEP).partials, [digest("half")]);
    assert_eq!(state.content(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_name_belongs_to_one_image_and_removal_takes_all_names() {
    let mut state = State::default();
    let old = record("app", &["old"]);
    pull(&mut state, old.clone());
    let mut new = record("app2", &["new"]);
    new.tags = old.tags.clone();
    pull(&mut state, new.clone());
    assert_eq!(state.find("r.example/app:1").unwrap().id, new.id);
    // The old one has no tag any more, and is still found by what does not move.
    assert!(state.image(&old.id).unwrap().tags.is_empty());
    let hex = old.id.to_string().split_once(':').unwrap().1.to_owned();
    for name in [&old.digests[0], &old.id.to_string(), &hex] {
        assert_eq!(state.find(name).unwrap().id, old.id, "{name}");
    }

    let mut elsewhere = new.clone();
    elsewhere.tags = vec!["other.example/app:2".into()];
    pull(&mut state, elsewhere.clone());
    assert_eq!(state.find("other.example/app:2").unwrap().tags.len(), 2);
    assert!(state.after_pull(elsewhere).is_none(), "pulling again changes nothing");
    remove(&mut state, "other.example/app:2");
    assert!(state.find("r.example/app:1").is_none());
    assert!(state.find(&new.digests[0]).is_none());
    assert!(state.find("no such thing!").is_none());
}

#[tokio::test(start_paused = true)]
async fn an_image_whose_blobs_are_not_whole_is_not_there() {
    let (good, short) = (record("good", &["base"]), record("short", &["base", "cut"]));
    let mut blobs: HashMap<Digest, u64> =
        good.blobs.iter().chain(&short.blobs).map(|(d, s)| (d.clone(), *s)).collect();
    blobs.insert(digest("cut"), 9);
    let records = vec![good.clone(), short.clone()];
    let (state, damaged) = State::load(records, blobs, HashMap::new(), Instant::now());
    assert_eq!(damaged, std::slice::from_ref(&short));
    assert!(state.image(&good.id).is_some());
    assert!(state.image(&short.id).is_none());
    assert_eq!(state.blob_size(&digest("cut")), None, "a pull fetches it again");
    assert_eq!(state.blob_size(&short.manifest), Some(1), "a pull need not fetch it again");
}
