//! Tables, sum and transactions of the store on disk.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};
use sha2::{Digest, Sha256};

use crate::record::{Change, Entry, RecordError, Table};

/// An open file with the sum of what is in it.
pub(crate) struct Disk {
    path: PathBuf,
    /// `None` after a failed write: redb wants the file to be opened anew.
    database: Option<Database>,
    sums: Sums,
}

/// A sum over all entries that changes with each of them: the XOR of their hashes.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    entries: BTreeMap<(Table, String), [u8; 32]>,
    total: [u8; 32],
}

impl Disk {
    /// Opens a file that is known to be whole.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordError> {
        let (database, sums) = open(path)?;
        Ok(Self { path: path.to_owned(), database: Some(database), sums })
    }

    /// Everything there is.
    pub(crate) fn read(&mut self) -> Result<Vec<Entry>, RecordError> {
        self.reopen()?;
        let path = &self.path;
        let Some(database) = &self.database else { return Ok(Vec::new()) };
        caught(path, || read(path, database)).map(|(entries, _)| entries)
    }

    /// Writes all changes as one transaction; durable when it returns.
    pub(crate) fn write(&mut self, changes: &[Change]) -> Result<(), RecordError> {
        self.reopen()?;
        let mut sums = self.sums.clone();
        changes.iter().for_each(|change| sums.apply(change));
        let path = &self.path;
        let Some(database) = &self.database else { return Ok(()) };
        let result = caught(path, || {
            transact(database, changes, &sums).map_err(|error| failed(path, error))
        });
        match result {
            Ok(()) => {
                self.sums = sums;
                Ok(())
            }
            Err(error) => {
                // Closing may write, and fail, too.
                let database = self.database.take();
                let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
                Err(error)
            }
        }
    }

    fn reopen(&mut self) -> Result<(), RecordError> {
        if self.database.is_none() {
            let (database, sums) = open(&self.path)?;
            self.database = Some(database);
            self.sums = sums;
        }
        Ok(())
    }
}

impl Sums {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => {
                let hash = hash(entry.table, &entry.key, &entry.value);
                let old = self.entries.insert((entry.table, entry.key.clone()), hash);
                self.mix(old);
                self.mix(Some(hash));
            }
            Change::Delete { table, key } => {
                let old = self.entries.remove(&(*table, key.clone()));
                self.mix(old);
            }
        }
    }

    fn mix(&mut self, hash: Option<[u8; 32]>) {
        for (total, byte) in self.total.iter_mut().zip(hash.unwrap_or_default()) {
            *total ^= byte;
        }
    }
}

/// A builder that does not take a gigabyte for its cache.
pub(crate) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Writes what an empty store consists of.
pub(crate) fn initialise(path: &Path, database: &Database) -> Result<(), RecordError> {
    transact(database, &[], &Sums::default()).map_err(|error| failed(path, error))
}

/// Reads everything, and compares it with its sum.
pub(crate) fn read(path: &Path, database: &Database) -> Result<(Vec<Entry>, Sums), RecordError> {
    let (format, total, entries) = gather(database).map_err(|error| failed(path, error))?;
    if format > FORMAT {
        let path = path.display().to_string();
        return Err(RecordError::TooNew { path, found: format, known: FORMAT });
    }
    let mut sums = Sums::default();
    entries.iter().for_each(|entry| sums.apply(&Change::Put(entry.clone())));
    if total != sums.total {
        return Err(damaged(path, "the sum over its entries does not fit"));
    }
    Ok((entries, sums))
}

/// Does with a copy what will be done with the file: reads all of it, and writes.
pub(crate) fn rehearse(path: &Path, database: &Database) -> Result<(), RecordError> {
    let (_, sums) = read(path, database)?;
    transact(database, &[], &sums).map_err(|error| failed(path, error))
}

/// Turns a panic over a damaged file into an error.
pub(crate) fn caught<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, RecordError>,
) -> Result<T, RecordError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(damaged(path, "its pages contradict each other")))
}

/// A file that cannot be what we wrote.
pub(crate) fn damaged(
    path: &Path,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RecordError {
    RecordError::Damaged { path: path.display().to_string(), cause: cause.into() }
}

/// Reads an error of redb.
pub(crate) fn failed(path: &Path, error: redb::Error) -> RecordError {
    match error {
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            damaged(path, error)
        }
        redb::Error::Io(error) => io_error(error),
        redb::Error::DatabaseAlreadyOpen => RecordError::InUse { path: path.display().to_string() },
        error @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }) => damaged(path, error),
        other => RecordError::Io(other.into()),
    }
}

/// Reads an error of the file system.
pub(crate) fn io_error(error: io::Error) -> RecordError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RecordError::DiskFull(error),
        _ => RecordError::Io(error.into()),
    }
}

fn open(path: &Path) -> Result<(Database, Sums), RecordError> {
    caught(path, || {
        let database =
            builder().open(path).map_err(|error| failed(path, redb::Error::from(error)))?;
        let (_, sums) = read(path, &database)?;
        Ok((database, sums))
    })
}

fn transact(database: &Database, changes: &[Change], sums: &Sums) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        for table in Table::ALL {
            let mut open = transaction.open_table(definition(table))?;
            for change in changes {
                match change {
                    Change::Put(entry) if entry.table == table => {
                        open.insert(entry.key.as_str(), entry.value.as_slice())?;
                    }
                    Change::Delete { table: of, key } if *of == table => {
                        open.remove(key.as_str())?;
                    }
                    _ => {}
                }
            }
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
        meta.insert("sum", sums.total.as_slice())?;
    }
    transaction.commit()?;
    Ok(())
}

fn gather(database: &Database) -> Result<(u32, [u8; 32], Vec<Entry>), redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let format = meta.get("format")?.and_then(|value| value.value().try_into().ok());
    let total = meta.get("sum")?.and_then(|value| value.value().try_into().ok());
    let (Some(format), Some(total)) = (format.map(u32::from_be_bytes), total) else {
        return Err(redb::Error::Corrupted("it has no format or no sum".to_owned()));
    };
    let mut entries = Vec::new();
    for table in Table::ALL {
        for row in transaction.open_table(definition(table))?.iter()? {
            let (key, value) = row?;
            let (key, value) = (key.value().to_owned(), value.value().to_vec());
            entries.push(Entry { table, key, value });
        }
    }
    Ok((format, total, entries))
}

fn definition(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(match table {
        Table::Sandboxes => "sandboxes",
        Table::Containers => "containers",
        Table::Logs => "logs",
        Table::Node => "node",
    })
}

fn hash(table: Table, key: &str, value: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [format!("{table:?}").as_bytes(), key.as_bytes(), value] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// The layout of the file; the records in it have versions of their own.
const FORMAT: u32 = 1;
const CACHE_BYTES: usize = 4 * 1024 * 1024;
