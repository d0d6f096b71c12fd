//! Answers in pieces: long lists in messages of a bounded size, and events without end.

use futures::StreamExt;
use prost::Message;
use tonic::Status;

use super::Cri;
use super::dispatch::Items;
use crate::api::v1;
use crate::convert;

impl Cri {
    /// Every change from now on. A reader that falls behind gets an error.
    pub(super) fn events(&self) -> Result<Items<v1::ContainerEventResponse>, Status> {
        let events = self.engine().events().map_err(convert::from_engine)?;
        let cri = self.clone();
        Ok(Box::pin(events.map(move |event| {
            let event = event.map_err(convert::from_engine)?;
            Ok(convert::event(&event, |id| cri.images().status(id)))
        })))
    }
}

/// A list in pieces, in its order. An empty list has none.
pub(super) fn pieces<T, R>(list: Vec<T>, wrap: fn(Vec<T>) -> R) -> Items<R>
where
    T: Message + Send + 'static,
    R: Send + 'static,
{
    let mut list = list.into_iter().peekable();
    let pieces = std::iter::from_fn(move || {
        let mut piece = vec![list.next()?];
        let mut bytes = piece[0].encoded_len();
        while let Some(next) = list.next_if(|next| {
            bytes += next.encoded_len();
            bytes <= PIECE_BYTES
        }) {
            piece.push(next);
            if piece.len() == PIECE_ITEMS {
                break;
            }
        }
        Some(Ok(wrap(piece)))
    });
    Box::pin(futures::stream::iter(pieces))
}

/// Well below what any client takes; one item may be larger.
const PIECE_BYTES: usize = 512 * 1024;
const PIECE_ITEMS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    async fn sizes(list: &[usize]) -> Vec<usize> {
        let item = |bytes: &usize| v1::PodIp { ip: "x".repeat(*bytes) };
        let stream = pieces(list.iter().map(item).collect(), |piece: Vec<v1::PodIp>| piece.len());
        let all = stream.collect::<Vec<_>>().await;
        all.into_iter().map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn a_piece_has_few_items_and_few_bytes() {
        assert_eq!(sizes(&[]).await, [0; 0]);
        assert_eq!(sizes(&[10; 3]).await, [3]);
        assert_eq!(sizes(&[10; 1001]).await, [500, 500, 1]);
        assert_eq!(sizes(&[200_000; 5]).await, [2, 2, 1]);
        assert_eq!(sizes(&[1 << 20, 1, 1 << 20]).await, [1, 1, 1]);
    }
}
