//! What is read on the node and streamed into a machine: it begins, has parts, and is committed when all of them were read.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::future::ready;
use futures::stream::{BoxStream, once};
use futures::{Stream, StreamExt};
use tonic::{Response, Status};

use super::failure::failed;
use crate::mounts::FilesError;
use crate::session::SessionError;

/// The messages.
///
/// A type of its own: the compiler cannot prove that a call with a boxed stream in it is `Send`.
pub(super) struct Upload<M>(BoxStream<'static, M>);

impl<M> Stream for Upload<M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        self.0.poll_next_unpin(cx)
    }
}

/// Whether the node itself failed to read what it sends.
pub(super) struct Reading(Arc<Mutex<Option<FilesError>>>);

impl Reading {
    /// What came of it, by the agent's answer. Our own reader's failure is the reason for whatever the agent says of a stream that
    /// ended early.
    pub(super) fn end<T>(self, answer: Result<Response<T>, Status>) -> Result<T, SessionError> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(SessionError::Files(error)),
            None => answer.map(Response::into_inner).map_err(failed),
        }
    }
}

/// Makes messages of parts. An error ends the stream before its commit.
pub(super) fn upload<P: 'static, M: Send + 'static>(
    begin: M,
    parts: BoxStream<'static, Result<P, FilesError>>,
    commit: M,
    message: fn(P) -> M,
) -> (Upload<M>, Reading) {
    let broken = Arc::new(Mutex::new(None));
    let reading = Reading(Arc::clone(&broken));
    let (first, last) = (once(ready(Ok(begin))), once(ready(Ok(commit))));
    let parts = parts.map(move |part| part.map(message));
    let all = first.chain(parts).chain(last).scan(broken, |broken, message| {
        ready(match message {
            Ok(message) => Some(message),
            Err(error) => {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        })
    });
    (Upload(Box::pin(all)), reading)
}
