//! Frames as they travel: SPDY draft 3.1, section 2.2 and 2.6.
//!
//! ```text
//!  control: |1| version 15 | type 16 | flags 8 | length 24 | payload …
//!  data:    |0| stream id 31         | flags 8 | length 24 | payload …
//! ```

use super::SpdyError;
use super::headers::{Deflater, Headers, Inflater};

/// The first eight bytes of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, fin: bool, length: usize },
}

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    /// Nothing of it matters here.
    Settings,
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// Of a type that SPDY does not have: to be ignored.
    Unknown,
}

impl Head {
    pub(super) const BYTES: usize = 8;

    pub(super) fn parse(bytes: [u8; Self::BYTES]) -> Result<Self, SpdyError> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let first = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        if first & CONTROL == 0 {
            if first == 0 {
                return Err(SpdyError::Protocol("data for stream 0"));
            }
            return Ok(Self::Data { stream: first, fin: flags & FIN != 0, length });
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Protocol("a frame of another version than 3"));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

impl Control {
    /// Reads the payload of a control frame. Blocks of headers have to be read in the order in which they came.
    pub(super) fn parse(
        kind: u16,
        flags: u8,
        payload: &[u8],
        inflater: &mut Inflater,
    ) -> Result<Self, SpdyError> {
        let mut rest = Payload(payload);
        let fin = flags & FIN != 0;
        let control = match kind {
            SYN_STREAM => {
                let stream = rest.stream()?;
                let _associated = rest.word()?;
                let _priority_and_slot = rest.take(2)?;
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                let headers = inflater.read(rest.all())?;
                Self::SynStream { stream, fin, unidirectional, headers }
            }
            SYN_REPLY => {
                let stream = rest.stream()?;
                Self::SynReply { stream, fin, headers: inflater.read(rest.all())? }
            }
            HEADERS => {
                let stream = rest.stream()?;
                inflater.read(rest.all())?;
                Self::Headers { stream, fin }
            }
            RST_STREAM => Self::Reset { stream: rest.stream()?, status: rest.word()? },
            PING => Self::Ping(rest.word()?),
            GOAWAY => Self::GoAway { last: rest.word()? & STREAM, status: rest.word()? },
            WINDOW_UPDATE => {
                Self::WindowUpdate { stream: rest.word()? & STREAM, delta: rest.word()? & STREAM }
            }
            SETTINGS => {
                rest.all();
                Self::Settings
            }
            _ => {
                rest.all();
                Self::Unknown
            }
        };
        if rest.0.is_empty() {
            Ok(control)
        } else {
            Err(SpdyError::Protocol("a frame that is longer than its content"))
        }
    }

    /// The whole frame. Blocks of headers have to be sent in the order in which they were made.
    pub(super) fn encode(&self, deflater: &mut Deflater) -> Result<Vec<u8>, SpdyError> {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        match self {
            Self::SynStream { stream, fin, unidirectional, headers } => {
                let flags = flag(*fin, FIN) | flag(*unidirectional, UNIDIRECTIONAL);
                let mut payload = stream.to_be_bytes().to_vec();
                payload.extend([0; 6]);
                payload.extend(deflater.write(headers)?);
                frame(SYN_STREAM, flags, &payload)
            }
            Self::SynReply { stream, fin, headers } => {
                let mut payload = stream.to_be_bytes().to_vec();
                payload.extend(deflater.write(headers)?);
                frame(SYN_REPLY, flag(*fin, FIN), &payload)
            }
            Self::Headers { stream, fin } => {
                let mut payload = stream.to_be_bytes().to_vec();
                payload.extend(deflater.write(&Headers::default())?);
                frame(HEADERS, flag(*fin, FIN), &payload)
            }
            Self::Reset { stream, status } => frame(RST_STREAM, 0, &words([*stream, *status])),
            Self::Ping(id) => frame(PING, 0, &id.to_be_bytes()),
            Self::GoAway { last, status } => frame(GOAWAY, 0, &words([*last, *status])),
            Self::WindowUpdate { stream, delta } => {
                frame(WINDOW_UPDATE, 0, &words([*stream, *delta]))
            }
            Self::Settings => frame(SETTINGS, 0, &0_u32.to_be_bytes()),
            Self::Unknown => Err(SpdyError::Protocol("a frame that has no form")),
        }
    }
}

/// A frame of data; at most [`DATA_MAX`] bytes of it.
pub(super) fn data(stream: u32, fin: bool, data: &[u8]) -> Result<Vec<u8>, SpdyError> {
    let mut bytes = Vec::with_capacity(Head::BYTES + data.len());
    bytes.extend((stream & STREAM).to_be_bytes());
    bytes.push(if fin { FIN } else { 0 });
    bytes.extend(length(data.len())?);
    bytes.extend(data);
    Ok(bytes)
}

fn frame(kind: u16, flags: u8, payload: &[u8]) -> Result<Vec<u8>, SpdyError> {
    let mut bytes = Vec::with_capacity(Head::BYTES + payload.len());
    bytes.extend((VERSION | 0x8000).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.push(flags);
    bytes.extend(length(payload.len())?);
    bytes.extend(payload);
    Ok(bytes)
}

fn length(bytes: usize) -> Result<[u8; 3], SpdyError> {
    match u32::try_from(bytes).map(u32::to_be_bytes) {
        Ok([0, rest @ ..]) => Ok(rest),
        _ => Err(SpdyError::Protocol("a frame that is too long to be sent")),
    }
}

fn words(words: [u32; 2]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// What is left of a payload.
struct Payload<'b>(&'b [u8]);

impl<'b> Payload<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], SpdyError> {
        let split = self.0.split_at_checked(count);
        let (taken, rest) = split.ok_or(SpdyError::Protocol("a frame that is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, SpdyError> {
        Ok(self.take(4)?.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
    }

    fn stream(&mut self) -> Result<u32, SpdyError> {
        match self.word()? & STREAM {
            0 => Err(SpdyError::Protocol("a frame for stream 0")),
            stream => Ok(stream),
        }
    }

    fn all(&mut self) -> &'b [u8] {
        std::mem::take(&mut self.0)
    }
}

const CONTROL: u32 = 1 << 31;
const STREAM: u32 = CONTROL - 1;
const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> Headers {
        [("streamType", "data"), ("port", "80"), ("requestID", "0")].into_iter().collect()
    }

    fn read(bytes: &[u8], inflater: &mut Inflater) -> Result<Control, SpdyError> {
        let head = bytes[..Head::BYTES].try_into().unwrap();
        match Head::parse(head)? {
            Head::Control { kind, flags, length } => {
                assert_eq!(length, bytes.len() - Head::BYTES);
                Control::parse(kind, flags, &bytes[Head::BYTES..], inflater)
            }
            Head::Data { .. } => Err(SpdyError::Protocol("data")),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new(1 << 16));
        for control in [
            Control::SynStream { stream: 1, fin: false, unidirectional: false, headers: headers() },
            Control::SynStream { stream: 3, fin: true, unidirectional: true, headers: headers() },
            Control::SynReply { stream: 1, fin: false, headers: Headers::default() },
            Control::Headers { stream: 5, fin: true },
            Control::Reset { stream: 5, status: 8 },
            Control::Ping(7),
            Control::GoAway { last: 9, status: 1 },
            Control::WindowUpdate { stream: 0, delta: 65536 },
            Control::Settings,
        ] {
            let bytes = control.encode(&mut deflater).unwrap();
            assert_eq!(read(&bytes, &mut inflater).unwrap(), control);
        }
        let bytes = data(5, true, b"abc").unwrap();
        let head = Head::parse(bytes[..8].try_into().unwrap()).unwrap();
        assert_eq!(head, Head::Data { stream: 5, fin: true, length: 3 });
        assert!(data(5, true, &vec![0; 1 << 24]).is_err());
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let mut deflater = Deflater::new().unwrap();
        let ping = Control::Ping(1).encode(&mut deflater).unwrap();
        assert_eq!(ping, [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        let reset = Control::Reset { stream: 3, status: 5 }.encode(&mut deflater).unwrap();
        assert_eq!(reset, [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]);
        assert_eq!(data(1, true, b"x").unwrap(), [0, 0, 0, 1, 1, 0, 0, 1, b'x']);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut inflater = Inflater::new(1 << 16);
        for (what, bytes) in [
            ("version 2", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
            ("short ping", vec![0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0]),
            ("long ping", vec![0x80, 3, 0, 6, 0, 0, 0, 5, 0, 0, 0, 1, 0]),
            ("stream 0", vec![0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5]),
            ("no headers", vec![0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            ("data of stream 0", vec![0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert!(read(&bytes, &mut inflater).is_err(), "{what}");
        }
        let unknown = [0x80, 3, 0, 10, 0, 0, 0, 2, 0, 0];
        assert_eq!(read(&unknown, &mut inflater).unwrap(), Control::Unknown);
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_reader_panic(
            kind in 0_u16..12,
            flags in any::<u8>(),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Control::parse(kind, flags, &payload, &mut Inflater::new(1 << 12));
        }

        #[test]
        fn no_damage_to_a_good_frame_makes_the_reader_panic(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new(1 << 12));
            for stream in [1, 3, 5] {
                let good = Control::SynStream { stream, fin: false, unidirectional: false, headers: headers() };
                let mut bytes = good.encode(&mut deflater).unwrap().split_off(Head::BYTES);
                for (at, byte) in &damage {
                    let at = at.index(bytes.len());
                    bytes[at] ^= byte;
                }
                bytes.truncate(cut.index(bytes.len()) + 1);
                let _ = Control::parse(SYN_STREAM, 0, &bytes, &mut inflater);
            }
        }
    }
}
