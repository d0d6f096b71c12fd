//! Reads tar archives, entry by entry, with bounded memory.
//!
//! Knows what image layers are made of: ustar, GNU long names, and PAX headers (path, linkpath, size, ids, time, xattrs).
//! Sparse files and other formats are refused by name. Judges no path: that is the unpacker's duty.

use std::io::{self, Read};

/// One member of an archive; its content is read from the [`Archive`] before the next entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands in the archive.
    pub(crate) path: Vec<u8>,
    /// Target of a link; empty for the rest.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    #[error("the archive holds an entry of type {0:?}, which images do not use")]
    Unsupported(char),
    #[error("the archive holds a sparse file")]
    Sparse,
    #[error("a header of the archive has {size} bytes; at most {HEADER_MAX} are read")]
    HeaderTooLarge { size: u64 },
}

/// An archive that is being read.
pub(crate) struct Archive<R> {
    input: R,
    /// Of the current entry: content not read yet, and padding after it.
    content: u64,
    padding: u64,
    global: Extensions,
}

/// What PAX and GNU headers say about the entry that follows them.
#[derive(Debug, Clone, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

type Block = [u8; BLOCK];

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, content: 0, padding: 0, global: Extensions::default() }
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = self.global.clone();
        loop {
            self.skip_rest()?;
            let Some(block) = self.read_header()? else { return Ok(None) };
            let size = number(&block[124..136])?;
            match block[156] {
                b'L' => extensions.path = Some(self.read_long_name(size)?),
                b'K' => extensions.link = Some(self.read_long_name(size)?),
                b'x' => parse_pax(&self.read_small(size)?, &mut extensions)?,
                b'g' => {
                    let records = self.read_small(size)?;
                    parse_pax(&records, &mut self.global)?;
                    parse_pax(&records, &mut extensions)?;
                }
                _ => return self.entry(&block, size, extensions).map(Some),
            }
        }
    }

    /// Hands the underlying reader back; whatever follows the archive is still in it.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn entry(&mut self, block: &Block, size: u64, ext: Extensions) -> Result<Entry, TarError> {
        let kind = kind(block[156])?;
        let path = match ext.path {
            Some(path) => path,
            None => ustar_path(block),
        };
        // Old archives mark a directory by the slash alone.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        let size = if kind == Kind::File { ext.size.unwrap_or(size) } else { 0 };
        self.content = size;
        self.padding = padding(size);
        Ok(Entry {
            path,
            link: ext.link.unwrap_or_else(|| text(&block[157..257])),
            kind,
            mode: id(number(&block[100..108])?)? & 0o7777,
            uid: ext.uid.map_or_else(|| id(number(&block[108..116])?), Ok)?,
            gid: ext.gid.map_or_else(|| id(number(&block[116..124])?), Ok)?,
            mtime_s: ext
                .mtime
                .map_or_else(|| time(&block[136..148]), |(seconds, _)| Ok(seconds))?,
            mtime_ns: ext.mtime.map_or(0, |(_, nanos)| nanos),
            size,
            device: device(block, kind)?,
            xattrs: ext.xattrs,
        })
    }

    fn read_header(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = [0; BLOCK];
        if !self.fill(&mut block)? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let stored: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
        if number(&block[148..156])? != sum - stored + 8 * u64::from(b' ') {
            return Err(TarError::Damaged("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    /// Fills the block; `false` when the input ended before its first byte.
    fn fill(&mut self, block: &mut Block) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]).map_err(TarError::Read)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(TarError::Damaged("it ends in the middle of a header")),
                count => filled += count,
            }
        }
        Ok(true)
    }

    fn read_long_name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        Ok(text(&self.read_small(size)?))
    }

    fn read_small(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > HEADER_MAX {
            return Err(TarError::HeaderTooLarge { size });
        }
        self.content = size;
        self.padding = padding(size);
        let mut bytes = Vec::with_capacity(size as usize);
        self.read_to_end(&mut bytes).map_err(TarError::Read)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        io::copy(self, &mut io::sink()).map_err(TarError::Read)?;
        let mut padding = (&mut self.input).take(std::mem::take(&mut self.padding));
        io::copy(&mut padding, &mut io::sink()).map_err(TarError::Read)?;
        Ok(())
    }
}

/// Reads the content of the current entry; an archive that ends inside of it is an error.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= count as u64;
        Ok(count)
    }
}

fn kind(flag: u8) -> Result<Kind, TarError> {
    Ok(match flag {
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(TarError::Sparse),
        other => return Err(TarError::Unsupported(char::from(other))),
    })
}

fn ustar_path(block: &Block) -> Vec<u8> {
    let name = text(&block[..100]);
    // GNU archives keep other things where ustar has its prefix.
    let is_ustar = &block[257..263] == b"ustar\0";
    let prefix = if is_ustar { text(&block[345..500]) } else { Vec::new() };
    if prefix.is_empty() { name } else { [prefix, vec![b'/'], name].concat() }
}

fn device(block: &Block, kind: Kind) -> Result<(u32, u32), TarError> {
    match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            Ok((id(number(&block[329..337])?)?, id(number(&block[337..345])?)?))
        }
        _ => Ok((0, 0)),
    }
}

fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// A number in octal, or in base 256 when its first bit says so.
fn number(field: &[u8]) -> Result<u64, TarError> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        if negative || high.iter().skip(1).any(|byte| *byte != 0) {
            return Err(TarError::Damaged("a number is out of range"));
        }
        // A field of eight bytes still carries the marker in its first one.
        let value = low.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        return Ok(if high.is_empty() { value & (u64::MAX >> 1) } else { value });
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let digits = digits.take_while(|byte| !matches!(**byte, 0 | b' '));
    digits.copied().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' if value >> 61 == 0 => Ok(value << 3 | u64::from(byte - b'0')),
        _ => Err(TarError::Damaged("a number is not octal")),
    })
}

fn time(field: &[u8]) -> Result<i64, TarError> {
    // Times before 1970 come in base 256; which second before it hardly matters.
    if field[0] & 0xc0 == 0xc0 {
        return Ok(0);
    }
    i64::try_from(number(field)?).map_err(|_| TarError::Damaged("a time is out of range"))
}

fn id(value: u64) -> Result<u32, TarError> {
    u32::try_from(value).map_err(|_| TarError::Damaged("an id is out of range"))
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// Records of the form "LENGTH KEY=VALUE\n".
fn parse_pax(mut records: &[u8], into: &mut Extensions) -> Result<(), TarError> {
    const DAMAGED: TarError = TarError::Damaged("a PAX header is malformed");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or(DAMAGED)?;
        let length: usize = parse(&records[..space])?;
        let record = records.get(space + 1..length).ok_or(DAMAGED)?;
        let record = record.strip_suffix(b"\n").ok_or(DAMAGED)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(DAMAGED)?;
        apply_pax(&record[..equals], &record[equals + 1..], into)?;
        records = &records[length..];
    }
    Ok(())
}

fn apply_pax(key: &[u8], value: &[u8], into: &mut Extensions) -> Result<(), TarError> {
    match key {
        b"path" => into.path = Some(value.to_vec()),
        b"linkpath" => into.link = Some(value.to_vec()),
        b"size" => into.size = Some(parse(value)?),
        b"uid" => into.uid = Some(parse(value)?),
        b"gid" => into.gid = Some(parse(value)?),
        b"mtime" => into.mtime = Some(pax_time(value)?),
        _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::Sparse),
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                into.xattrs.retain(|(known, _)| known != name);
                into.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

fn pax_time(value: &[u8]) -> Result<(i64, u32), TarError> {
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds: i64 = parse(parts.next().unwrap_or_default())?;
    let digits = parts.next().unwrap_or_default();
    let nanos: Vec<u8> = digits.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
    Ok((seconds.max(0), if seconds < 0 { 0 } else { parse(&nanos)? }))
}

fn parse<T: std::str::FromStr>(digits: &[u8]) -> Result<T, TarError> {
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| text.parse().ok()).ok_or(TarError::Damaged("a PAX number is malformed"))
}

const BLOCK: usize = 512;

/// Paths have at most 4 KiB, xattrs at most 64 KiB each.
const HEADER_MAX: u64 = 1 << 20;
