//! Takes the compression off a layer.

use std::io::ErrorKind::{InvalidData, UnexpectedEof};
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// A layer's tar, whatever it is wrapped in.
///
/// The bytes decide: registries are full of layers whose media type names another compression.
pub(crate) enum Decoder<R: Read> {
    Plain(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(Box<Zstd<R>>),
}

/// Zstd frames one after another.
pub(crate) struct Zstd<R: Read> {
    frame: Option<StreamingDecoder<WithMagic<R>, FrameDecoder>>,
    rest: Option<Input<R>>,
}

type Input<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;
type WithMagic<R> = Chain<Cursor<[u8; 4]>, Input<R>>;

/// Whether a layer of this media type is a tar that [`Decoder`] reads.
pub(crate) fn is_known(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        // A tar begins with a name, and none of these begins one that any tool has written.
        let mut start = Vec::with_capacity(4);
        (&mut input).take(4).read_to_end(&mut start)?;
        let (is_gzip, is_zstd) = (start.starts_with(GZIP), start == ZSTD || is_skippable(&start));
        let input = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(input));
        Ok(if is_gzip {
            Self::Gzip(Box::new(MultiGzDecoder::new(input)))
        } else if is_zstd {
            Self::Zstd(Box::new(Zstd { frame: None, rest: Some(input) }))
        } else {
            Self::Plain(input)
        })
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
            Self::Zstd(input) => input.read(buffer),
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.frame.is_none() && !self.next_frame()? {
                return Ok(0);
            }
            let count = self.frame.as_mut().map_or(Ok(0), |frame| frame.read(buffer))?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.rest = self.frame.take().map(|frame| frame.into_inner().into_inner().1);
        }
    }
}

impl<R: Read> Zstd<R> {
    /// Begins the next frame; `false` at the end of the input.
    fn next_frame(&mut self) -> io::Result<bool> {
        let Some(mut input) = self.rest.take() else { return Ok(false) };
        loop {
            if input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            input.read_exact(&mut magic)?;
            if !is_skippable(&magic) {
                let input = Cursor::new(magic).chain(input);
                let frame = StreamingDecoder::new_with_max_window_size(input, WINDOW_MAX)
                    .map_err(|error| io::Error::new(InvalidData, error.to_string()))?;
                self.frame = Some(frame);
                return Ok(true);
            }
            skip(&mut input)?;
        }
    }
}

/// Skips what stands after the magic of a skippable frame.
fn skip(input: &mut impl Read) -> io::Result<()> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length).into();
    let skipped = io::copy(&mut input.take(length), &mut io::sink())?;
    if skipped < length { Err(UnexpectedEof.into()) } else { Ok(()) }
}

fn is_skippable(magic: &[u8]) -> bool {
    magic.len() == 4 && (0x50..=0x5f).contains(&magic[0]) && magic[1..] == [0x2a, 0x4d, 0x18]
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BUFFER: usize = 32 << 10;

/// What `zstd -19` makes has 8 MiB; more is for `--ultra` and `--long`, and a machine has little memory.
const WINDOW_MAX: u64 = 32 << 20;
