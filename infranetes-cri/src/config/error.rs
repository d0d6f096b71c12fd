//! What can be wrong with a file, said so that an operator finds the place.

use std::path::PathBuf;

/// A configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("{}:{line}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// It has a key that nobody knows.
    #[error("{}:{line}: unknown key {key:?} in {table}; {hint}", file.display())]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The table, as a person would call it.
        table: String,
        /// Which key may be meant.
        hint: String,
    },
    /// A value is not possible.
    #[error("{}{}: {key}: {problem}", file.display(), line_words(*line))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The line, from 1, if the file has the key.
        line: Option<usize>,
        /// Path of the key.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// A value that is not possible, before the file and the line are known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub(super) key: Vec<String>,
    pub(super) problem: String,
}

impl Invalid {
    pub(super) fn new(key: &[&str], problem: impl Into<String>) -> Invalid {
        Invalid {
            key: key.iter().map(|part| (*part).to_owned()).collect(),
            problem: problem.into(),
        }
    }
}

fn line_words(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}
