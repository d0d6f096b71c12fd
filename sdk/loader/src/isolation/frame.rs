//! What goes over the socket between a host and a helper: frames, as bytes.
//!
//! ```text
//!  length: u32 | kind: u8 | id: u64 | fields; all but the last begin with their length: u32       little endian
//! ```
//!
//! Both ends are the same build of the same program, so nothing here has to last. Reading never trusts: a length is checked
//! before anything is allocated, and a frame that is cut, too long or unknown is an error that ends the connection.

/// One message between the two ends. Ids are the caller's: each end counts its own calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Tells something.
    Notify { method: String, body: Vec<u8> },
    /// Asks something.
    Call { id: u64, method: String, header: Vec<u8>, body: Vec<u8> },
    /// Opens a stream; where there is `input`, its items follow.
    Open { id: u64, method: String, header: Vec<u8>, body: Vec<u8>, input: bool },
    /// The caller is not interested any more.
    Cancel { id: u64 },
    /// Answers a call.
    Reply { id: u64, reply: Payload },
    /// Answers an open.
    Opened { id: u64, refused: Option<Vec<u8>> },
    /// An item of a stream; an error is the last one.
    Item { lane: Lane, id: u64, item: Payload },
    /// A stream's end.
    End { lane: Lane, id: u64 },
    /// The reader took items: as many more may come.
    Credit { lane: Lane, id: u64, items: u32 },
    /// The reader is not interested any more.
    Close { lane: Lane, id: u64 },
}

/// An encoded message, or an encoded `Status`.
pub(crate) type Payload = Result<Vec<u8>, Vec<u8>>;

/// Which of the two streams of an open call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// From who was called to who calls.
    Output,
    /// From who calls to who was called.
    Input,
}

/// Bytes that are no frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// It ends too early.
    #[error("a frame is cut off")]
    Short,
    /// Something follows it.
    #[error("a frame has {0} bytes too many")]
    Trailing(usize),
    /// Nobody sends that.
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    /// A method that is no text.
    #[error("the name of a method is not UTF-8")]
    Text,
    /// Longer than any frame may be.
    #[error("a frame says that it has {0} bytes")]
    TooLong(u32),
}

impl Frame {
    /// The frame with its length in front.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(vec![0; 4]);
        match self {
            Frame::Notify { method, body } => out.head(0, 0).field(method.as_bytes()).rest(body),
            Frame::Call { id, method, header, body } => {
                out.head(1, *id).field(method.as_bytes()).field(header).rest(body)
            }
            Frame::Open { id, method, header, body, input } => {
                let kind = if *input { 3 } else { 2 };
                out.head(kind, *id).field(method.as_bytes()).field(header).rest(body)
            }
            Frame::Cancel { id } => out.head(4, *id),
            Frame::Reply { id, reply } => out.payload(5, *id, reply),
            Frame::Opened { id, refused: None } => out.head(7, *id),
            Frame::Opened { id, refused: Some(status) } => out.head(8, *id).rest(status),
            Frame::Item { lane, id, item } => out.payload(9 + lane.offset(), *id, item),
            Frame::End { lane, id } => out.head(13 + lane.offset(), *id),
            Frame::Credit { lane, id, items } => {
                out.head(17 + lane.offset(), *id).rest(&items.to_le_bytes())
            }
            Frame::Close { lane, id } => out.head(21 + lane.offset(), *id),
        };
        let mut bytes = out.0;
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    /// Reads what follows the length.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
        let mut from = Reader(bytes);
        let (kind, id) = (from.byte()?, from.number()?);
        let frame = match kind {
            0 => Frame::Notify { method: from.text()?, body: from.rest() },
            1 => Frame::Call {
                id,
                method: from.text()?,
                header: from.field()?.to_vec(),
                body: from.rest(),
            },
            2 | 3 => Frame::Open {
                id,
                method: from.text()?,
                header: from.field()?.to_vec(),
                body: from.rest(),
                input: kind == 3,
            },
            4 => Frame::Cancel { id },
            5 => Frame::Reply { id, reply: Ok(from.rest()) },
            6 => Frame::Reply { id, reply: Err(from.rest()) },
            7 => Frame::Opened { id, refused: None },
            8 => Frame::Opened { id, refused: Some(from.rest()) },
            9 | 11 => Frame::Item { lane: Lane::of(kind - 9), id, item: Ok(from.rest()) },
            10 | 12 => Frame::Item { lane: Lane::of(kind - 10), id, item: Err(from.rest()) },
            13 | 15 => Frame::End { lane: Lane::of(kind - 13), id },
            17 | 19 => Frame::Credit { lane: Lane::of(kind - 17), id, items: from.word()? },
            21 | 23 => Frame::Close { lane: Lane::of(kind - 21), id },
            kind => return Err(FrameError::Kind(kind)),
        };
        match from.0.len() {
            0 => Ok(frame),
            more => Err(FrameError::Trailing(more)),
        }
    }
}

/// How many bytes follow, or why that cannot be.
pub(crate) fn length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    match u32::from_le_bytes(prefix) {
        length if length as usize > FRAME_BYTES_MAX => Err(FrameError::TooLong(length)),
        length => Ok(length as usize),
    }
}

impl Lane {
    /// Kinds of frames come in pairs, one above the other.
    fn offset(self) -> u8 {
        match self {
            Lane::Output => 0,
            Lane::Input => 2,
        }
    }

    fn of(offset: u8) -> Lane {
        if offset == 0 { Lane::Output } else { Lane::Input }
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn head(&mut self, kind: u8, id: u64) -> &mut Self {
        self.0.push(kind);
        self.rest(&id.to_le_bytes())
    }

    fn payload(&mut self, kind: u8, id: u64, payload: &Payload) -> &mut Self {
        match payload {
            Ok(body) => self.head(kind, id).rest(body),
            Err(status) => self.head(kind + 1, id).rest(status),
        }
    }

    fn field(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.rest(&length.to_le_bytes()).rest(bytes)
    }

    fn rest(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, bytes: usize) -> Result<&'b [u8], FrameError> {
        let (taken, left) = self.0.split_at_checked(bytes).ok_or(FrameError::Short)?;
        self.0 = left;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.take(1)?[0])
    }

    fn word(&mut self) -> Result<u32, FrameError> {
        let bytes = self.take(4)?.try_into().map_err(|_| FrameError::Short)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn number(&mut self) -> Result<u64, FrameError> {
        let bytes = self.take(8)?.try_into().map_err(|_| FrameError::Short)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn field(&mut self) -> Result<&'b [u8], FrameError> {
        let length = self.word()?;
        self.take(length as usize)
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let bytes = self.field()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| FrameError::Text)
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }
}

/// What the fields of a frame may have together: a message, and room for its method and header.
pub(crate) const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 64 * 1024;
/// One message in a frame; as large as what the SDK takes from a plugin in this process.
pub(crate) const MESSAGE_BYTES_MAX: usize = infranetes_sdk::bridge::MESSAGE_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutation::{Numbers, rounds};

    fn all() -> Vec<Frame> {
        let (id, method) = (u64::MAX - 1, "pod/get".to_owned());
        let (header, body) = (vec![1, 2], vec![3; 300]);
        let mut frames = vec![
            Frame::Notify { method: method.clone(), body: body.clone() },
            Frame::Call { id, method: method.clone(), header: header.clone(), body: body.clone() },
            Frame::Cancel { id },
            Frame::Reply { id, reply: Ok(body.clone()) },
            Frame::Reply { id, reply: Err(body.clone()) },
            Frame::Opened { id, refused: None },
            Frame::Opened { id, refused: Some(Vec::new()) },
        ];
        for input in [true, false] {
            let (method, header, body) = (method.clone(), header.clone(), body.clone());
            frames.push(Frame::Open { id, method, header, body, input });
        }
        for lane in [Lane::Output, Lane::Input] {
            frames.push(Frame::Item { lane, id, item: Ok(body.clone()) });
            frames.push(Frame::Item { lane, id, item: Err(Vec::new()) });
            frames.push(Frame::End { lane, id });
            frames.push(Frame::Credit { lane, id, items: 7 });
            frames.push(Frame::Close { lane, id });
        }
        frames
    }

    #[test]
    fn every_frame_comes_back_as_it_was() {
        for frame in all() {
            let bytes = frame.encode();
            let prefix = bytes[..4].try_into().expect("four bytes");
            assert_eq!(length(prefix), Ok(bytes.len() - 4));
            assert_eq!(Frame::decode(&bytes[4..]), Ok(frame));
        }
    }

    #[test]
    fn what_is_cut_or_too_long_is_refused() {
        let call = Frame::Credit { lane: Lane::Input, id: 1, items: 2 }.encode();
        for end in 4..call.len() {
            assert_eq!(Frame::decode(&call[4..end]), Err(FrameError::Short), "{end}");
        }
        let longer = [&call[4..], &[0]].concat();
        assert_eq!(Frame::decode(&longer), Err(FrameError::Trailing(1)));
        assert_eq!(Frame::decode(&[200; 9]), Err(FrameError::Kind(200)));
        let limit = u32::try_from(FRAME_BYTES_MAX).expect("fits") + 1;
        assert_eq!(length(limit.to_le_bytes()), Err(FrameError::TooLong(limit)));
    }

    #[test]
    fn a_field_that_claims_more_than_there_is_allocates_nothing() {
        let mut call = Frame::Call { id: 1, method: "m".into(), header: vec![], body: vec![] };
        if let Frame::Call { method, .. } = &mut call {
            method.push('x');
        }
        let mut bytes = call.encode()[4..].to_vec();
        bytes[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Frame::decode(&bytes), Err(FrameError::Short));
    }

    #[test]
    fn any_bytes_are_a_frame_or_an_error_and_a_frame_is_one_for_the_other_side() {
        let (mut numbers, good, mut read) = (Numbers::new(), all(), 0);
        for _ in 0..rounds(50_000) {
            let whole = good[numbers.below(good.len())].encode();
            let bytes = numbers.mutate(&whole[4..]);
            let Ok(frame) = Frame::decode(&bytes) else { continue };
            read += 1;
            assert_eq!(Frame::decode(&frame.encode()[4..]), Ok(frame));
        }
        assert!(read > 0, "no bytes were a frame");
    }
}
