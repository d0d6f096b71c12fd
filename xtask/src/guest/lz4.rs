//! LZ4 in the form in which kernels are compressed: blocks of at most 8 MiB, each with its length before it
//! (lz4: doc/lz4_Frame_format.md, "Legacy frame", and doc/lz4_Block_format.md).

use anyhow::{Context, Result, ensure};

/// Whether these bytes begin such a stream.
pub(super) fn is_legacy_frame(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Decompresses until `size` bytes are there; what follows is not looked at.
pub(super) fn decompress(bytes: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut rest = bytes.strip_prefix(&MAGIC).context("no LZ4 stream")?;
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        let length = usize::try_from(u32::from_le_bytes(*rest.first_chunk().context(ENDED)?))?;
        let block = rest.get(4..).and_then(|rest| rest.get(..length)).context(ENDED)?;
        let start = out.len();
        decompress_block(block, &mut out)?;
        ensure!(out.len() - start <= BLOCK_LIMIT, "an LZ4 block is larger than blocks may be");
        rest = &rest[4 + length..];
    }
    ensure!(out.len() == size, "an LZ4 stream holds {} bytes, not {size}", out.len());
    Ok(out)
}

fn decompress_block(block: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let mut block = Reader(block);
    loop {
        let token = block.byte()?;
        let literals = block.length(token >> 4)?;
        out.extend_from_slice(block.take(literals)?);
        if block.0.is_empty() {
            return Ok(());
        }
        let offset = usize::from(u16::from_le_bytes([block.byte()?, block.byte()?]));
        let length = block.length(token & 15)? + SHORTEST_MATCH;
        ensure!(
            offset > 0 && offset <= out.len() - start,
            "an LZ4 block refers to what is not there"
        );
        // A match may overlap what it makes: then it repeats.
        let from = out.len() - offset;
        if offset >= length {
            out.extend_from_within(from..from + length);
        } else {
            for at in from..from + length {
                out.push(out[at]);
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8> {
        let (&byte, rest) = self.0.split_first().context(ENDED)?;
        self.0 = rest;
        Ok(byte)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context(ENDED)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A length that begins in four bits of the token; 15 means that bytes follow, until one is not 255.
    fn length(&mut self, bits: u8) -> Result<usize> {
        let mut length = usize::from(bits);
        if bits == 15 {
            loop {
                let byte = self.byte()?;
                length += usize::from(byte);
                if byte < u8::MAX {
                    break;
                }
            }
        }
        Ok(length)
    }
}

const MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const BLOCK_LIMIT: usize = 8 << 20;
const SHORTEST_MATCH: usize = 4;
const ENDED: &str = "an LZ4 stream ends too early";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_matches_and_overlaps_come_back() {
        check(&[0x30, b'a', b'b', b'c'], Some(b"abc"));
        // Three literals, then four bytes from three back: the match overlaps itself.
        check(&[0x30, b'a', b'b', b'c', 3, 0, 0x10, b'x'], Some(b"abcabcax"));
        check(&[0x31, b'a', b'b', b'c', 3, 0, 0x10, b'x'], Some(b"abcabcabx"));
        // Fifteen and more: the length goes on in bytes of its own.
        let mut long = vec![0xf0, 2];
        long.extend([b'z'; 17]);
        check(&long, Some(&[b'z'; 17]));
    }

    #[test]
    fn broken_streams_are_refused() {
        check(&[0x30, b'a'], None);
        check(&[0x10, b'a', 9, 0, 0x10, b'x'], None);
        check(&[0x10, b'a', 0, 0, 0x10, b'x'], None);
        check(&[], None);
        assert!(decompress(b"something else", 3).is_err());
        assert!(decompress(&MAGIC, 3).is_err());
        assert!(!is_legacy_frame(b"\x1f\x8b"));
    }

    fn check(block: &[u8], expected: Option<&[u8]>) {
        let mut stream = MAGIC.to_vec();
        stream.extend((block.len() as u32).to_le_bytes());
        stream.extend(block);
        let size = expected.map_or(8, <[u8]>::len);
        assert_eq!(decompress(&stream, size).ok().as_deref(), expected, "{block:?}");
    }
}
