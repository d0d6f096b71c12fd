//! Tables, sum and transactions of the store on disk.

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
    sum: Sum,
}

/// A sum over all entries that changes with each of them: the XOR of their hashes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum([u8; 32]);

impl Disk {
    /// Opens a file that is known to be whole.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordError> {
        let (database, sum) = open(path)?;
        Ok(Self { path: path.to_owned(), database: Some(database), sum })
    }

    /// Hands over everything there is.
    pub(crate) fn read(&mut self, take: impl FnMut(Entry)) -> Result<(), RecordError> {
        self.reopen()?;
        let path = &self.path;
        let Some(database) = &self.database else { return Ok(()) };
        caught(path, || read(path, database, take).map(drop))
    }

    /// Writes all changes as one transaction; durable when it returns.
    pub(crate) fn write(&mut self, changes: &[Change]) -> Result<(), RecordError> {
        self.reopen()?;
        let path = &self.path;
        let Some(database) = &self.database else { return Ok(()) };
        let result = caught(path, || {
            transact(database, changes, self.sum).map_err(|error| failed(path, error))
        });
        match result {
            Ok(sum) => {
                self.sum = sum;
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
            let (database, sum) = open(&self.path)?;
            self.database = Some(database);
            self.sum = sum;
        }
        Ok(())
    }
}

impl Sum {
    /// Takes an entry in, or out again.
    fn mix(&mut self, table: Table, key: &str, value: &[u8]) {
        for (total, byte) in self.0.iter_mut().zip(hash(table, key, value)) {
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
    transact(database, &[], Sum::default()).map(drop).map_err(|error| failed(path, error))
}

/// Reads everything, one entry after the other, and compares it with its sum.
pub(crate) fn read(
    path: &Path,
    database: &Database,
    mut take: impl FnMut(Entry),
) -> Result<Sum, RecordError> {
    let mut sum = Sum::default();
    let gathered = gather(database, |entry| {
        sum.mix(entry.table, &entry.key, &entry.value);
        take(entry);
    });
    let (format, total) = gathered.map_err(|error| failed(path, error))?;
    if format > FORMAT {
        let path = path.display().to_string();
        return Err(RecordError::TooNew { path, found: format, known: FORMAT });
    }
    if total != sum {
        return Err(damaged(path, "the sum over its entries does not fit"));
    }
    Ok(sum)
}

/// Does with a copy what will be done with the file: reads all of it, and writes.
pub(crate) fn rehearse(path: &Path, database: &Database) -> Result<(), RecordError> {
    let sum = read(path, database, drop)?;
    transact(database, &[], sum).map(drop).map_err(|error| failed(path, error))
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

fn open(path: &Path) -> Result<(Database, Sum), RecordError> {
    caught(path, || {
        let database =
            builder().open(path).map_err(|error| failed(path, redb::Error::from(error)))?;
        let sum = read(path, &database, drop)?;
        Ok((database, sum))
    })
}

/// Writes all changes as one, and the sum with them.
fn transact(database: &Database, changes: &[Change], mut sum: Sum) -> Result<Sum, redb::Error> {
    let transaction = database.begin_write()?;
    {
        for table in Table::ALL {
            let mut open = transaction.open_table(definition(table))?;
            for change in changes {
                let (key, new) = match change {
                    Change::Put(entry) if entry.table == table => (&entry.key, Some(&entry.value)),
                    Change::Delete { table: of, key } if *of == table => (key, None),
                    _ => continue,
                };
                let old = match new {
                    Some(new) => open.insert(key.as_str(), new.as_slice())?,
                    None => open.remove(key.as_str())?,
                };
                if let Some(old) = old {
                    sum.mix(table, key, old.value());
                }
                if let Some(new) = new {
                    sum.mix(table, key, new);
                }
            }
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
        meta.insert("sum", sum.0.as_slice())?;
    }
    transaction.commit()?;
    Ok(sum)
}

/// Hands every entry over; what comes out is the format and the sum that the file has.
fn gather(database: &Database, mut take: impl FnMut(Entry)) -> Result<(u32, Sum), redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let format = meta.get("format")?.and_then(|value| value.value().try_into().ok());
    let total = meta.get("sum")?.and_then(|value| value.value().try_into().ok());
    let (Some(format), Some(total)) = (format.map(u32::from_be_bytes), total) else {
        return Err(redb::Error::Corrupted("it has no format or no sum".to_owned()));
    };
    for table in Table::ALL {
        for row in transaction.open_table(definition(table))?.iter()? {
            let (key, value) = row?;
            let (key, value) = (key.value().to_owned(), value.value().to_vec());
            take(Entry { table, key, value });
        }
    }
    Ok((format, Sum(total)))
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
