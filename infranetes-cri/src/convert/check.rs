//! What every text, path and map of a request has to be.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::Refusal;

type Result<T> = std::result::Result<T, Refusal>;

/// A message that has to be there.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Refusal::invalid(field, "is missing"))
}

/// A text that has to be there, of at most `most` bytes, without control characters.
pub(super) fn text(field: &str, value: String, most: usize) -> Result<String> {
    if value.is_empty() {
        Err(Refusal::invalid(field, "is missing"))
    } else {
        optional_text(field, value, most)
    }
}

/// A text that may be empty.
pub(super) fn optional_text(field: &str, value: String, most: usize) -> Result<String> {
    if value.len() > most {
        return Err(Refusal::invalid(
            field,
            format!("has {} bytes; at most {most} are possible", value.len()),
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(Refusal::invalid(field, "has a control character"));
    }
    Ok(value)
}

/// At most `most` elements.
pub(super) fn few<T>(field: &str, values: &[T], most: usize) -> Result<()> {
    if values.len() > most {
        return Err(Refusal::invalid(
            field,
            format!("has {} entries; at most {most} are possible", values.len()),
        ));
    }
    Ok(())
}

/// Program arguments: any bytes but NUL, as much as a kernel takes.
pub(super) fn arguments(field: &str, values: Vec<String>) -> Result<Vec<String>> {
    few(field, &values, MAX_ARGUMENTS)?;
    if values.iter().any(|value| value.contains('\0')) {
        return Err(Refusal::invalid(field, "has a NUL character"));
    }
    let bytes: usize = values.iter().map(|value| value.len() + 1).sum();
    if bytes > MAX_ARGUMENT_BYTES {
        return Err(Refusal::invalid(
            field,
            format!("has {bytes} bytes; at most {MAX_ARGUMENT_BYTES} are possible"),
        ));
    }
    Ok(values)
}

/// Labels or annotations: any text, within what a pod can have.
pub(super) fn map(
    field: &str,
    values: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    if values.len() > MAX_MAP_ENTRIES {
        return Err(Refusal::invalid(
            field,
            format!("has {} entries; at most {MAX_MAP_ENTRIES} are possible", values.len()),
        ));
    }
    let bytes: usize = values.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP_BYTES {
        return Err(Refusal::invalid(
            field,
            format!("has {bytes} bytes; at most {MAX_MAP_BYTES} are possible"),
        ));
    }
    Ok(values)
}

/// An absolute path on the node or in a container, without `..`.
pub(super) fn absolute_path(field: &str, value: String) -> Result<PathBuf> {
    let path = path(field, value)?;
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Refusal::invalid(field, "is not an absolute path"))
    }
}

/// A path below a directory, without `..`.
pub(super) fn relative_path(field: &str, value: String) -> Result<PathBuf> {
    let path = path(field, value)?;
    if path.is_absolute() { Err(Refusal::invalid(field, "is an absolute path")) } else { Ok(path) }
}

fn path(field: &str, value: String) -> Result<PathBuf> {
    let value = text(field, value, MAX_PATH)?;
    if Path::new(&value).components().any(|part| part == Component::ParentDir) {
        return Err(Refusal::invalid(field, "has a \"..\""));
    }
    Ok(PathBuf::from(value))
}

/// A number in a range.
pub(super) fn number(field: &str, value: i64, range: std::ops::RangeInclusive<i64>) -> Result<i64> {
    if range.contains(&value) {
        Ok(value)
    } else {
        let (least, most) = (range.start(), range.end());
        Err(Refusal::invalid(field, format!("{value} is not between {least} and {most}")))
    }
}

/// A value of an enum, known to us.
pub(super) fn variant<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T> {
    T::try_from(value).map_err(|_| Refusal::invalid(field, format!("{value} has no meaning")))
}

const MAX_ARGUMENTS: usize = 16 * 1024;
/// What Linux takes for arguments and environment.
const MAX_ARGUMENT_BYTES: usize = 2 << 20;
const MAX_MAP_ENTRIES: usize = 4096;
/// Twice what Kubernetes allows for the annotations of one object.
const MAX_MAP_BYTES: usize = 512 << 10;
const MAX_PATH: usize = 4096;
