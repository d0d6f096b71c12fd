//! Quantities as people write them: "500m" of CPU, "512Mi" of memory, "90s".

use std::time::Duration;

/// Thousandths of a CPU: "2", "1.5", "500m".
pub(super) fn cpu_millis(text: &str) -> Result<u64, String> {
    let problem =
        || format!("{text:?} is no amount of CPU; write it like \"2\", \"1.5\" or \"500m\"");
    if let Some(millis) = text.strip_suffix('m') {
        return digits(millis).ok_or_else(problem);
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole = digits(whole).ok_or_else(problem)?;
    if part.is_empty() || part.len() > 3 {
        return Err(problem());
    }
    let part = digits(&format!("{part:0<3}")).ok_or_else(problem)?;
    whole.checked_mul(1000).and_then(|millis| millis.checked_add(part)).ok_or_else(problem)
}

/// Bytes of memory: "512Mi", "1Gi", "2G", "1073741824".
pub(super) fn memory_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = UNITS.iter().find(|(unit, _)| *unit == &text[number.len()..]);
    digits(number)
        .zip(unit)
        .and_then(|(number, (_, factor))| number.checked_mul(*factor))
        .ok_or_else(|| {
            format!("{text:?} is no amount of memory; write it like \"512Mi\", \"1Gi\" or \"2G\"")
        })
}

/// A time: "500ms", "90s", "5m", "24h".
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match &text[number.len()..] {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    digits(number)
        .zip(millis)
        .and_then(|(number, millis)| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!("{text:?} is no time; write it like \"500ms\", \"90s\", \"5m\" or \"24h\"")
        })
}

/// Digits alone: `parse` would also take a sign.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, millis) in [("2", 2000), ("500m", 500), ("1.5", 1500), ("0.25", 250), ("0", 0)] {
            assert_eq!(cpu_millis(text), Ok(millis), "{text}");
        }
        for (text, bytes) in
            [("512Mi", 512 << 20), ("1Gi", 1 << 30), ("2G", 2_000_000_000), ("7", 7)]
        {
            assert_eq!(memory_bytes(text), Ok(bytes), "{text}");
        }
        for (text, millis) in
            [("500ms", 500), ("90s", 90_000), ("5m", 300_000), ("24h", 86_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_an_example() {
        for text in ["", "-1", "+1", "1,5", "1.2345", "2 cores", "m", "1.", "99999999999999999999"]
        {
            assert!(cpu_millis(text).is_err_and(|e| e.contains("500m")), "{text}");
        }
        for text in ["", "-1Mi", "512MB", "1.5Gi", "Mi", "99999999999Ti", "1 Gi"] {
            assert!(memory_bytes(text).is_err_and(|e| e.contains("512Mi")), "{text}");
        }
        for text in ["", "5", "-5s", "1d", "s", "1.5s", "18446744073709551615h"] {
            assert!(duration(text).is_err_and(|e| e.contains("90s")), "{text}");
        }
    }
}
