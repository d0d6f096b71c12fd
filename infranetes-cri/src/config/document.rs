//! A TOML text whose keys know their lines.

use std::path::{Path, PathBuf};

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Invalid};

/// A text that is TOML.
pub(super) struct Document<'t> {
    file: PathBuf,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
}

/// The keys that tables of one kind may have. In a path, `*` stands for any key and `[]` for any element of an array.
pub(super) struct Table {
    pub(super) path: &'static str,
    pub(super) keys: &'static [&'static str],
}

impl Table {
    /// The table at `path` is read as `T`.
    pub(super) fn of<T: DeserializeOwned>(path: &'static str) -> Table {
        Table { path, keys: fields_of::<T>() }
    }
}

impl<'t> Document<'t> {
    pub(super) fn parse(file: &Path, text: &'t str) -> Result<Self, ConfigError> {
        let root = DeTable::parse(text).map_err(|error| syntax(file, text, &error))?;
        Ok(Document { file: file.to_owned(), text, root })
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(self.text).map_err(|error| syntax(&self.file, self.text, &error))
    }

    /// Refuses the first key that is in none of the `tables`. Tables whose path is not listed may hold anything.
    pub(super) fn refuse_unknown_keys(&self, tables: &[Table]) -> Result<(), ConfigError> {
        self.check_table(self.root.get_ref(), &mut Vec::new(), tables)
    }

    fn check_table(
        &self,
        table: &DeTable<'t>,
        path: &mut Vec<String>,
        tables: &[Table],
    ) -> Result<(), ConfigError> {
        let known = tables.iter().find(|table| matches(table.path, path)).map(|table| table.keys);
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            if let Some(known) = known.filter(|known| !known.contains(&name)) {
                return Err(ConfigError::UnknownKey {
                    file: self.file.clone(),
                    line: line_at(self.text, key.span().start),
                    key: name.to_owned(),
                    table: table_words(path),
                    hint: hint(name, known),
                });
            }
            path.push(name.to_owned());
            self.check_value(value.get_ref(), path, tables)?;
            path.pop();
        }
        Ok(())
    }

    fn check_value(
        &self,
        value: &DeValue<'t>,
        path: &mut Vec<String>,
        tables: &[Table],
    ) -> Result<(), ConfigError> {
        match value {
            DeValue::Table(table) => self.check_table(table, path, tables),
            DeValue::Array(elements) => {
                path.push("[]".to_owned());
                for element in elements.iter() {
                    self.check_value(element.get_ref(), path, tables)?;
                }
                path.pop();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Adds file and line to a value that is not possible.
    pub(super) fn invalid(&self, invalid: Invalid) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.clone(),
            line: self.line_of(&invalid.key),
            key: key_words(&invalid.key),
            problem: invalid.problem,
        }
    }

    /// The line of a key, or of the innermost table around it that the text names.
    fn line_of(&self, path: &[String]) -> Option<usize> {
        let mut table = self.root.get_ref();
        let mut line = None;
        for part in path {
            let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == part)
            else {
                break;
            };
            line = Some(line_at(self.text, key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        line
    }
}

fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map_or(1, |span| line_at(text, span.start));
    ConfigError::Syntax { file: file.to_owned(), line, problem: error.message().to_owned() }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn matches(pattern: &str, path: &[String]) -> bool {
    let parts: Vec<&str> = pattern.split('.').filter(|part| !part.is_empty()).collect();
    parts.len() == path.len()
        && parts.iter().zip(path).all(|(part, name)| *part == "*" || part == name)
}

fn table_words(path: &[String]) -> String {
    if path.is_empty() { "the top level".to_owned() } else { format!("[{}]", key_words(path)) }
}

/// A path as TOML writes it: keys that are not bare are quoted.
pub(super) fn key_words(path: &[String]) -> String {
    let bare = |key: &str| {
        !key.is_empty()
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let mut words = String::new();
    for key in path {
        match (key.as_str(), words.is_empty()) {
            ("[]", _) => words.push_str("[]"),
            (key, first) => {
                if !first {
                    words.push('.');
                }
                if bare(key) {
                    words.push_str(key);
                } else {
                    words.push_str(&format!("{key:?}"));
                }
            }
        }
    }
    words
}

fn hint(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|key| (distance(name, key), key)).min();
    match nearest {
        Some((distance, key)) if distance <= 1 + name.chars().count() / 3 => {
            format!("did you mean {key:?}?")
        }
        _ => format!("known keys: {}", known.join(", ")),
    }
}

/// How many letters have to be added, left out or replaced to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, target) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *target);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[other.len()]
}

/// The keys that serde reads a struct from: asked from its own `Deserialize`, so that no list has to be kept.
fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // Always an error: the probe has no value to give.
    let _ = T::deserialize(FieldProbe(&mut fields));
    fields
}

struct FieldProbe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldProbe<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("the fields were asked for, not a value"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_hinted_and_a_strange_one_gets_the_list() {
        let known = ["provider", "memory", "cpu"];
        let cases = [
            ("memry", "did you mean \"memory\"?"),
            ("Provider", "did you mean \"provider\"?"),
            ("cpus", "did you mean \"cpu\"?"),
            ("favourite_colour", "known keys: provider, memory, cpu"),
        ];
        for (name, expected) in cases {
            assert_eq!(hint(name, &known), expected, "{name}");
        }
    }

    #[test]
    fn paths_match_tables_with_any_name_and_any_element() {
        let path = |text: &str| -> Vec<String> { text.split('.').map(str::to_owned).collect() };
        assert!(matches("", &[]));
        assert!(matches("handlers.*", &path("handlers.vm")));
        assert!(matches("images.mirrors.[]", &path("images.mirrors.[]")));
        assert!(!matches("handlers.*", &path("handlers.vm.timeouts")));
        assert_eq!(key_words(&path("handlers.vm")), "handlers.vm");
        assert_eq!(
            key_words(&["registries".into(), "docker.io".into()]),
            "registries.\"docker.io\""
        );
    }
}
