//! Blocks of headers: names and values with their lengths, compressed by zlib with SPDY's dictionary (draft 3.1, section
//! 2.6.10). One compression stream for each direction, over all blocks of a connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::DICTIONARY;

/// Names and values. Names are lower case on the wire, and compared without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.split('\0').next().unwrap_or_default())
    }

    fn encode(&self) -> Vec<u8> {
        let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend(length(text));
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    fn parse(mut bytes: &[u8]) -> Result<Self, SpdyError> {
        let rest = &mut bytes;
        let count = word(rest)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            if headers.len() == HEADERS_MAX {
                return Err(SpdyError::Limit("headers in a block"));
            }
            let name = text(rest)?;
            if name.is_empty() {
                return Err(SpdyError::Protocol("a header without a name"));
            }
            headers.push((name.to_ascii_lowercase(), text(rest)?));
        }
        if rest.is_empty() {
            Ok(Self(headers))
        } else {
            Err(SpdyError::Protocol("a block of headers with something after them"))
        }
    }
}

impl<'h> FromIterator<(&'h str, &'h str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'h str, &'h str)>>(pairs: I) -> Self {
        let pair = |(name, value): (&str, &str)| (name.to_ascii_lowercase(), value.to_owned());
        Self(pairs.into_iter().map(pair).collect())
    }
}

fn word(rest: &mut &[u8]) -> Result<u32, SpdyError> {
    let (word, after) = rest.split_first_chunk().ok_or(CUT_OFF)?;
    *rest = after;
    Ok(u32::from_be_bytes(*word))
}

fn text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = word(rest)? as usize;
    let (text, after) = rest.split_at_checked(length).ok_or(CUT_OFF)?;
    *rest = after;
    let text = str::from_utf8(text).map_err(|_| SpdyError::Protocol("a header that is no text"))?;
    Ok(text.to_owned())
}

/// Reads the blocks of one direction.
pub(super) struct Inflater {
    stream: Decompress,
    limit: usize,
}

impl Inflater {
    /// A reader of blocks that have at most so many bytes when they are decompressed.
    pub(super) fn new(limit: usize) -> Self {
        Self { stream: Decompress::new(true), limit }
    }

    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        Headers::parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let (read, written) = (self.stream.total_in(), self.stream.total_out());
            let status = match self.stream.decompress(block, &mut buffer, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.stream.set_dictionary(DICTIONARY).map_err(|_| DAMAGED)?;
                    Status::Ok
                }
                status => status.map_err(|_| DAMAGED)?,
            };
            let count = |before: u64, now: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            let (read, written) =
                (count(read, self.stream.total_in()), count(written, self.stream.total_out()));
            block = block.get(read..).ok_or(DAMAGED)?;
            bytes.extend_from_slice(&buffer[..written]);
            if bytes.len() > self.limit {
                return Err(SpdyError::Limit("bytes in a block of headers"));
            }
            match status {
                // Nobody ends the stream before the connection.
                Status::StreamEnd => return Err(DAMAGED),
                _ if block.is_empty() && written < buffer.len() => return Ok(bytes),
                Status::BufError if read == 0 && written == 0 => return Err(DAMAGED),
                _ => {}
            }
        }
    }
}

/// Writes the blocks of one direction.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Result<Self, SpdyError> {
        let mut stream = Compress::new(Compression::default(), true);
        stream.set_dictionary(DICTIONARY).map_err(|_| DAMAGED)?;
        Ok(Self(stream))
    }

    pub(super) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let block = headers.encode();
        let mut bytes = Vec::with_capacity(block.len() + 64);
        let begin = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - begin).unwrap_or(block.len());
            self.0
                .compress_vec(&block[done..], &mut bytes, FlushCompress::Sync)
                .map_err(|_| DAMAGED)?;
            let all_read = self.0.total_in() - begin == block.len() as u64;
            // Room that is left says that all is out.
            if all_read && bytes.len() < bytes.capacity() {
                return Ok(bytes);
            }
            bytes.reserve(bytes.capacity().max(64));
        }
    }
}

const DAMAGED: SpdyError = SpdyError::Protocol("a block of headers that is damaged");
const CUT_OFF: SpdyError = SpdyError::Protocol("a block of headers that is cut off");
const HEADERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn some(count: usize) -> Headers {
        let pairs: Vec<_> =
            (0..count).map(|n| (format!("name{n}"), format!("value {n}"))).collect();
        pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn blocks_of_one_connection_are_one_compression_stream() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new(1 << 16));
        for count in [0, 1, 3, HEADERS_MAX, 3] {
            let block = deflater.write(&some(count)).unwrap();
            assert_eq!(inflater.read(&block).unwrap(), some(count));
        }
        let again = deflater.write(&some(HEADERS_MAX)).unwrap();
        assert!(again.len() < 100, "what was said before costs little: {}", again.len());
    }

    #[test]
    fn a_block_that_somebody_else_made_is_read() {
        let headers = Inflater::new(1 << 16).read(FOREIGN).unwrap();
        assert_eq!(headers.get("StreamType"), Some("stdin"));
        assert_eq!(headers.get("x"), None);
    }

    /// {"streamtype": "stdin"}, made by Python's zlib.
    const FOREIGN: &[u8] = &[
        0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x46, 0x70, 0x3a, 0x2b, 0x29, 0x4a,
        0x4d, 0xcc, 0x85, 0x16, 0x25, 0xac, 0xc5, 0x25, 0xc0, 0x3c, 0x01, 0x00, 0x00, 0x00, 0xff,
        0xff,
    ];

    #[test]
    fn a_bomb_is_refused_when_it_is_too_large_and_not_later() {
        let bomb: Headers = [("a", "x".repeat(8 << 20).as_str())].into_iter().collect();
        let block = Deflater::new().unwrap().write(&bomb).unwrap();
        assert!(block.len() < 32 << 10, "{}", block.len());
        let refused = Inflater::new(64 << 10).read(&block);
        assert!(matches!(refused, Err(SpdyError::Limit(_))), "{refused:?}");
        let many = Deflater::new().unwrap().write(&some(HEADERS_MAX + 1)).unwrap();
        assert!(matches!(Inflater::new(64 << 10).read(&many), Err(SpdyError::Limit(_))));
        // A count that the block does not hold is no reason to make room for it.
        assert!(Headers::parse(&[0xff; 4]).is_err());
        assert!(Headers::parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
