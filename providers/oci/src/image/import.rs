//! Takes layers in: a stream of bytes becomes a verified directory, or nothing.

use std::io::{self, Read};
use std::sync::Arc;

use futures::StreamExt;
use infranetes_sdk::v1::{ImportChunk, ImportProgress, Layer, import_chunk::Part};
use infranetes_sdk::{BoxStream, ProviderError, Result, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::compression::{self, Decoder};
use super::digest::{Digest, Digesting};
use super::store::{ImageStore, digest};
use super::unpack::{self, UnpackError, remove_tree};
use crate::error::io_error;

/// Runs an import; each layer is answered once it is here in whole.
pub(crate) fn import(
    store: Arc<ImageStore>,
    mut input: BoxStream<ImportChunk>,
) -> BoxStream<ImportProgress> {
    let (output, progress) = stream::channel(8);
    tokio::spawn(async move {
        if let Err(error) = run(&store, &mut input, &output).await {
            let _ = output.send(Err(error)).await;
        }
    });
    progress
}

type Output = mpsc::Sender<Result<ImportProgress>>;

async fn run(
    store: &Arc<ImageStore>,
    input: &mut BoxStream<ImportChunk>,
    output: &Output,
) -> Result<()> {
    let mut current: Option<Incoming> = None;
    loop {
        // A reader that went away ends the import: the unfinished layer is dropped.
        let chunk = tokio::select! {
            () = output.closed() => return Ok(()),
            chunk = input.next() => chunk,
        };
        match chunk.transpose()?.map(|chunk| chunk.part) {
            Some(Some(Part::Data(data))) => {
                let layer = current.as_mut().ok_or_else(|| {
                    ProviderError::invalid("bytes came before the layer that they belong to")
                })?;
                if layer.feed(data).await.is_err() {
                    // Only a failed unpacking stops reading; its error says why.
                    return Err(layer.failure().await);
                }
            }
            Some(Some(Part::Layer(layer))) => {
                finish(current.take(), output).await?;
                current = Some(Incoming::start(store, layer)?);
            }
            Some(None) => return Err(ProviderError::invalid("an import message is empty")),
            None => return finish(current.take(), output).await,
        }
    }
}

async fn finish(layer: Option<Incoming>, output: &Output) -> Result<()> {
    let Some(layer) = layer else { return Ok(()) };
    let digest = layer.layer.digest.clone();
    layer.finish().await?;
    let _ = output.send(Ok(ImportProgress { digest, done: true })).await;
    Ok(())
}

/// A layer on its way in. Dropped before [`Incoming::finish`], it leaves nothing.
struct Incoming {
    layer: Layer,
    pipe: mpsc::Sender<Piece>,
    unpacking: Option<JoinHandle<Result<()>>>,
}

enum Piece {
    Data(Vec<u8>),
    /// Tells the end from a cut.
    End,
}

impl Incoming {
    fn start(store: &Arc<ImageStore>, layer: Layer) -> Result<Self> {
        let (pipe, pieces) = mpsc::channel(PIECES);
        let wanted = Wanted {
            digest: digest(&layer.digest)?,
            diff_id: digest(&layer.diff_id)?,
            length: (layer.size_bytes > 0).then_some(layer.size_bytes),
        };
        if !compression::is_known(&layer.media_type) {
            return Err(ProviderError::unsupported(format!(
                "layers of type {:?} are not supported",
                layer.media_type
            )));
        }
        let store = store.clone();
        let unpacking = tokio::spawn(async move {
            let turn = store.turn(wanted.diff_id).lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let input = PieceReader { pieces, current: Vec::new(), position: 0, ended: false };
                take_in(&store, &wanted, input)
            })
            .await
            .map_err(|error| ProviderError::internal("an import broke off").with_source(error))?
        });
        Ok(Self { layer, pipe, unpacking: Some(unpacking) })
    }

    async fn feed(&mut self, data: Vec<u8>) -> Result<(), ()> {
        self.pipe.send(Piece::Data(data)).await.map_err(|_| ())
    }

    async fn failure(&mut self) -> ProviderError {
        match self.join().await {
            Err(error) => error,
            Ok(()) => {
                ProviderError::invalid(format!("layer {} goes on after its end", self.layer.digest))
            }
        }
    }

    async fn finish(mut self) -> Result<()> {
        let _ = self.pipe.send(Piece::End).await;
        self.join().await
    }

    async fn join(&mut self) -> Result<()> {
        let Some(unpacking) = self.unpacking.take() else { return Ok(()) };
        unpacking
            .await
            .map_err(|error| ProviderError::internal("an import broke off").with_source(error))?
    }
}

/// What a layer has to turn out to be.
struct Wanted {
    digest: Digest,
    diff_id: Digest,
    length: Option<u64>,
}

fn take_in(store: &ImageStore, wanted: &Wanted, input: PieceReader) -> Result<()> {
    if store.has(&wanted.diff_id) {
        let mut input = input;
        io::copy(&mut input, &mut io::sink()).map_err(io_error("a layer was cut off"))?;
        return Ok(());
    }
    let (staging, dir) = store.staging(&wanted.diff_id)?;
    let taken = unpack_verified(store, wanted, input, &dir)
        .and_then(|size| store.admit(wanted.diff_id, &staging, &dir, size));
    if taken.is_err() {
        let _ = remove_tree(&staging);
    }
    taken
}

fn unpack_verified(
    store: &ImageStore,
    wanted: &Wanted,
    input: PieceReader,
    dir: &std::os::fd::OwnedFd,
) -> Result<unpack::Size> {
    let length = wanted.length.unwrap_or(u64::MAX);
    // One byte more shows that there is more.
    let mut blob = Digesting::new(input.take(length.saturating_add(1)));
    let mut content =
        Digesting::new(Decoder::new(&mut blob).map_err(io_error("a layer was cut off"))?);
    let unpacked =
        unpack::unpack(&mut content, std::os::fd::AsFd::as_fd(dir), store.form(), store.limits());
    let (diff_id, _) = content.finish();
    let size = unpacked.map_err(|error| refuse(wanted, error))?;
    io::copy(&mut blob, &mut io::sink()).map_err(io_error("a layer was cut off"))?;
    let (digest, read) = blob.finish();
    if wanted.length.is_some_and(|length| length != read) {
        return Err(mismatch(wanted, "length", length, read));
    }
    if digest != wanted.digest {
        return Err(mismatch(wanted, "digest", wanted.digest, digest));
    }
    if diff_id != wanted.diff_id {
        return Err(mismatch(wanted, "diff_id", wanted.diff_id, diff_id));
    }
    Ok(size)
}

fn mismatch(
    wanted: &Wanted,
    what: &str,
    right: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> ProviderError {
    let digest = wanted.digest;
    ProviderError::invalid(format!("layer {digest} has the {what} {found}; it should be {right}"))
}

fn refuse(wanted: &Wanted, error: UnpackError) -> ProviderError {
    let message = format!("cannot unpack layer {}", wanted.digest);
    match &error {
        UnpackError::Io { source, .. } => crate::error::from_io(message, source.kind()),
        _ => ProviderError::invalid(message),
    }
    .with_source(error)
}

/// Reads what the stream brought, on a thread that may wait.
struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.current.len() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => (self.current, self.position) = (data, 0),
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let left = &self.current[self.position..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.position += count;
        Ok(count)
    }
}

/// With pieces of 256 KiB, one MiB is on its way.
const PIECES: usize = 4;
