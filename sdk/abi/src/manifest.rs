//! What a plugin says about itself in its `.infranetes` section, readable before any of its code runs.
//!
//! Text, so that `readelf -p .infranetes x.so` shows it: the line [`MAGIC`], then `key=value` lines, then a NUL. Readers
//! skip keys that they do not know.

/// The section's name.
pub const SECTION: &str = ".infranetes";

/// The first line.
pub const MAGIC: &str = "infranetes provider\n";

/// Exported headers are named so, followed by the crate's name. The number is the ABI's major.
pub const SYMBOL_PREFIX: &str = "INFRANETES_PROVIDER_V1_";

/// Bytes that `parts` take when concatenated.
pub const fn length(parts: &[&str]) -> usize {
    let mut total = 0;
    let mut part = 0;
    while part < parts.len() {
        total += parts[part].len();
        part += 1;
    }
    total
}

/// The bytes of `parts`, one after the other.
pub const fn concat<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    let mut part = 0;
    while part < parts.len() {
        let from = parts[part].as_bytes();
        let mut byte = 0;
        while byte < from.len() {
            bytes[at] = from[byte];
            at += 1;
            byte += 1;
        }
        part += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_at_compile_time() {
        const PARTS: &[&str] = &["abi=", "1", "", "\n\0"];
        static BYTES: [u8; length(PARTS)] = concat(PARTS);
        assert_eq!(&BYTES, b"abi=1\n\0");
    }
}
