//! What the store knows while it runs: images, who owns which blob, who holds one, and what all of it takes.
//! Pure bookkeeping: no I/O, and times are handed in.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::digest::{Digest, ImageId};
use super::index::ImageRecord;
use super::reference::Reference;

/// The state of an open store.
#[derive(Debug, Default)]
pub(super) struct State {
    images: BTreeMap<ImageId, ImageRecord>,
    /// Every repo tag and repo digest.
    names: HashMap<String, ImageId>,
    blobs: HashMap<Digest, Blob>,
    /// Pulls and readers that need a blob to stay, whether it is there already or not.
    holds: HashMap<Digest, usize>,
    partials: HashMap<Digest, Partial>,
    bytes: u64,
}

#[derive(Debug)]
struct Blob {
    size: u64,
    owners: usize,
    fate: Fate,
}

/// What becomes of a blob that no image owns.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Left by a pull that did not end: kept for a while, because the pull is probably tried again.
    KeptSince(Instant),
    /// Its image was removed: goes as soon as nobody holds it.
    Doomed,
}

#[derive(Debug)]
struct Partial {
    size: u64,
    since: Instant,
}

/// What a sweep takes away.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sweep {
    pub(super) blobs: Vec<Digest>,
    pub(super) partials: Vec<Digest>,
}

impl State {
    /// The state after opening: what is on disk, and the images whose blobs are all there and whole.
    /// Returns also the images that are not.
    pub(super) fn load(
        records: Vec<ImageRecord>,
        blobs: HashMap<Digest, u64>,
        partials: HashMap<Digest, u64>,
        now: Instant,
    ) -> (State, Vec<ImageRecord>) {
        let mut state = State::default();
        let (whole, damaged): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| {
            record.blobs.iter().all(|(digest, size)| blobs.get(digest) == Some(size))
        });
        // A blob of the wrong size is none: the next pull replaces it.
        let wrong: Vec<&Digest> = damaged
            .iter()
            .flat_map(|record| &record.blobs)
            .filter(|(digest, size)| blobs.get(*digest).is_some_and(|found| found != *size))
            .map(|(digest, _)| digest)
            .collect();
        for (digest, size) in &blobs {
            if !wrong.contains(&digest) {
                state.add_blob(digest.clone(), *size, now);
            }
        }
        for (digest, size) in partials {
            state.set_partial(&digest, size, now);
        }
        for record in whole {
            state.put(record, now);
        }
        (state, damaged)
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &ImageRecord> {
        self.images.values()
    }

    pub(super) fn image(&self, id: &ImageId) -> Option<&ImageRecord> {
        self.images.get(id)
    }

    /// The image that a reference, or an id with or without its algorithm, means.
    pub(super) fn find(&self, reference_or_id: &str) -> Option<&ImageRecord> {
        let id = reference_or_id
            .parse()
            .or_else(|_| format!("sha256:{reference_or_id}").parse())
            .ok()
            .and_then(|id| self.images.get(&id));
        id.or_else(|| {
            let reference: Reference = reference_or_id.parse().ok()?;
            let name = match reference.digest() {
                Some(digest) => reference.repo_digest(digest),
                None => reference.repo_tag()?,
            };
            self.images.get(self.names.get(&name)?)
        })
    }

    /// The records after `record` was pulled: its names are taken from whoever had them, and it keeps those
    /// that it had. `None` if nothing changes.
    pub(super) fn after_pull(&self, record: ImageRecord) -> Option<Vec<ImageRecord>> {
        let mut images = self.images.clone();
        for other in images.values_mut() {
            other.tags.retain(|tag| !record.tags.contains(tag));
            other.digests.retain(|digest| !record.digests.contains(digest));
        }
        let mut record = record;
        if let Some(had) = images.remove(&record.id) {
            merge(&mut record.tags, had.tags);
            merge(&mut record.digests, had.digests);
        }
        images.insert(record.id.clone(), record);
        (images != self.images).then(|| images.into_values().collect())
    }

    /// The records after the image `id` was removed.
    pub(super) fn after_removal(&self, id: &ImageId) -> Vec<ImageRecord> {
        self.images.values().filter(|record| record.id != *id).cloned().collect()
    }

    /// Takes over the records, which are on disk now. The blobs of images that are no more are doomed.
    pub(super) fn publish(&mut self, records: Vec<ImageRecord>, now: Instant) {
        let gone = std::mem::take(&mut self.images);
        self.names.clear();
        for record in records {
            self.put(record, now);
        }
        for digest in gone.into_values().flat_map(|record| record.blobs.into_keys()) {
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.owners -= 1;
                if blob.owners == 0 {
                    blob.fate = Fate::Doomed;
                }
            }
        }
    }

    fn put(&mut self, record: ImageRecord, now: Instant) {
        for (digest, size) in &record.blobs {
            self.add_blob(digest.clone(), *size, now);
            if let Some(blob) = self.blobs.get_mut(digest) {
                blob.owners += 1;
            }
        }
        for name in record.tags.iter().chain(&record.digests) {
            self.names.insert(name.clone(), record.id.clone());
        }
        self.images.insert(record.id.clone(), record);
    }

    /// Notes that a blob is on disk, and its partial file no more.
    pub(super) fn add_blob(&mut self, digest: Digest, size: u64, now: Instant) {
        self.drop_partial(&digest);
        let bytes = &mut self.bytes;
        self.blobs.entry(digest).or_insert_with(|| {
            *bytes += size;
            Blob { size, owners: 0, fate: Fate::KeptSince(now) }
        });
    }

    pub(super) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(|blob| blob.size)
    }

    pub(super) fn drop_blob(&mut self, digest: &Digest) {
        if let Some(blob) = self.blobs.remove(digest) {
            self.bytes -= blob.size;
        }
    }

    pub(super) fn set_partial(&mut self, digest: &Digest, size: u64, now: Instant) {
        self.drop_partial(digest);
        self.bytes += size;
        self.partials.insert(digest.clone(), Partial { size, since: now });
    }

    fn drop_partial(&mut self, digest: &Digest) {
        if let Some(partial) = self.partials.remove(digest) {
            self.bytes -= partial.size;
        }
    }

    pub(super) fn hold(&mut self, digests: &[Digest]) {
        for digest in digests {
            *self.holds.entry(digest.clone()).or_default() += 1;
        }
    }

    /// Ends a hold; says whether there is something to sweep now.
    pub(super) fn release(&mut self, digests: &[Digest], now: Instant) -> bool {
        let mut doomed = false;
        for digest in digests {
            let Some(holds) = self.holds.get_mut(digest) else { continue };
            *holds -= 1;
            if *holds > 0 {
                continue;
            }
            self.holds.remove(digest);
            if let Some(partial) = self.partials.get_mut(digest) {
                partial.since = now;
            }
            match self.blobs.get_mut(digest) {
                Some(Blob { owners: 0, fate: Fate::Doomed, .. }) => doomed = true,
                Some(Blob { fate: fate @ Fate::KeptSince(_), .. }) => *fate = Fate::KeptSince(now),
                _ => {}
            }
        }
        doomed
    }

    /// Takes out of the books what nobody owns or holds and whose time is over. The caller takes the files
    /// away before anybody else looks at the books.
    pub(super) fn sweep(&mut self, now: Instant, keep: Duration) -> Sweep {
        let over = |since: Instant| now.saturating_duration_since(since) >= keep;
        let free = |digest: &Digest| !self.holds.contains_key(digest);
        let blobs = self.blobs.iter().filter(|(digest, blob)| {
            let time = match blob.fate {
                Fate::KeptSince(since) => over(since),
                Fate::Doomed => true,
            };
            blob.owners == 0 && time && free(digest)
        });
        let partials =
            self.partials.iter().filter(|(digest, partial)| over(partial.since) && free(digest));
        let sweep = Sweep {
            blobs: blobs.map(|(digest, _)| digest.clone()).collect(),
            partials: partials.map(|(digest, _)| digest.clone()).collect(),
        };
        sweep.blobs.iter().for_each(|digest| self.drop_blob(digest));
        sweep.partials.iter().for_each(|digest| self.drop_partial(digest));
        sweep
    }

    /// Bytes and number of the blobs and partial files.
    pub(super) fn content(&self) -> (u64, u64) {
        (self.bytes, (self.blobs.len() + self.partials.len()) as u64)
    }
}

fn merge(names: &mut Vec<String>, more: Vec<String>) {
    names.extend(more);
    names.sort();
    names.dedup();
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
