//! Connections against a peer of this module, and against peers that send what they like.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::frame::{Control, Head, data};
use super::headers::{Deflater, Inflater};
use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn pair() -> (Connection, Connection) {
    let (near, far) = tokio::io::duplex(64 << 10);
    (
        Connection::start(near, Role::Client, Limits::default()),
        Connection::start(far, Role::Server, Limits::default()),
    )
}

fn named(name: &str) -> Headers {
    [("streamType", name)].into_iter().collect()
}

async fn open(client: &Connection, server: &mut Connection, name: &str) -> (Stream, Stream) {
    let (near, far) = tokio::join!(client.open(named(name)), async {
        let offer = server.accept().await.unwrap();
        assert_eq!(offer.headers.get("streamtype"), Some(name));
        offer.accept().await.unwrap()
    });
    (near.unwrap(), far)
}

async fn all(mut reader: Reader) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = timeout(LIMIT, reader.next()).await.unwrap().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[tokio::test]
async fn both_halves_of_many_streams_carry_bytes_and_end_by_themselves() {
    let (client, mut server) = pair();
    let mut works = Vec::new();
    for number in 0..20_u8 {
        let (mut near, mut far) = open(&client, &mut server, "data").await;
        works.push(tokio::spawn(async move {
            let sent = vec![number; 100_000 + usize::from(number)];
            near.writer.send(Bytes::from(sent.clone())).await.unwrap();
            near.writer.finish().await.unwrap();
            assert_eq!(all(far.reader).await, sent);
            // One half is over, the other is not.
            far.writer.send(Bytes::from_static(b"answer")).await.unwrap();
            far.writer.finish().await.unwrap();
            assert_eq!(all(near.reader).await, b"answer");
        }));
    }
    for work in works {
        timeout(LIMIT, work).await.unwrap().unwrap();
    }
    let ended = client.ended();
    timeout(LIMIT, async { tokio::join!(server.close(), async { drop(client) }) }).await.unwrap();
    assert!(!ended.is_cancelled(), "only the server closed in order");
}

#[tokio::test]
async fn a_refused_or_dropped_stream_is_reset_and_the_others_go_on() {
    let (client, mut server) = pair();
    let (refused, ()) = tokio::join!(client.open(named("no")), async {
        server.accept().await.unwrap().refuse().await;
    });
    assert!(matches!(refused, Err(SpdyError::Reset)));
    let (mut near, far) = open(&client, &mut server, "data").await;
    drop(far);
    assert!(matches!(timeout(LIMIT, near.reader.next()).await.unwrap(), Err(SpdyError::Reset)));
    let gone = near.writer.gone();
    timeout(LIMIT, gone.cancelled()).await.unwrap();
    assert!(near.writer.send(Bytes::from_static(b"x")).await.is_err());
    let (near, far) = open(&client, &mut server, "data").await;
    far.writer.finish().await.unwrap();
    assert_eq!(all(near.reader).await, b"");
}

#[tokio::test]
async fn an_end_in_order_delivers_everything_first_and_a_cut_does_not() {
    let (client, mut server) = pair();
    let (mut near, mut far) = open(&client, &mut server, "data").await;
    let closing = tokio::spawn(async move {
        far.writer.send(Bytes::from(vec![7; 1 << 20])).await.unwrap();
        far.writer.finish().await.unwrap();
        server.close().await;
    });
    let mut count = 0;
    while let Some(piece) = timeout(LIMIT, near.reader.next()).await.unwrap().unwrap() {
        count += piece.len();
    }
    assert_eq!(count, 1 << 20);
    drop((near, client));
    timeout(LIMIT, closing).await.unwrap().unwrap();

    let (client, mut server) = pair();
    let (near, mut far) = open(&client, &mut server, "data").await;
    drop((near, client));
    assert!(timeout(LIMIT, far.reader.next()).await.unwrap().is_err());
    assert!(timeout(LIMIT, server.accept()).await.unwrap().is_none());
    assert!(server.failure().is_none(), "to close is no failure");
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_a_peer_that_has_not_taken_what_was_sent() {
    // What a peer does at the end -> how long the end waits for it.
    let cases =
        [("nothing", 65..70), ("takes it after 40 s", 45..50), ("closes after 40 s", 40..42)];
    for (what, expected) in cases {
        let (near, far) = tokio::io::duplex(64 << 10);
        let server = Connection::start(far, Role::Server, Limits::default());
        let mut peer = near;
        let closing = tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            server.close().await;
            begun.elapsed().as_secs()
        });
        if what != "nothing" {
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        if what.starts_with("takes") {
            // Every ping is answered, to the end.
            let mut ping = [0; 12];
            while peer.read_exact(&mut ping).await.is_ok() && peer.write_all(&ping).await.is_ok() {}
        }
        let kept = (!what.starts_with("closes")).then_some(peer);
        let took = closing.await.unwrap();
        assert!(expected.contains(&took), "{what}: {took} s");
        drop(kept);
    }
}

#[tokio::test]
async fn what_nobody_takes_holds_the_peer_back() {
    let (near, far) = tokio::io::duplex(1 << 10);
    let client = Connection::start(near, Role::Client, Limits::default());
    let limits = Limits { unread_bytes: 128 << 10, ..Limits::default() };
    let mut server = Connection::start(far, Role::Server, limits);
    let (mut near, mut far) = open(&client, &mut server, "data").await;
    let mut sent = 0;
    while timeout(Duration::from_millis(300), near.writer.send(Bytes::from(vec![0; 32 << 10])))
        .await
        .is_ok()
    {
        sent += 32 << 10;
        assert!(sent < 1 << 20, "nothing holds it back");
    }
    assert!(sent >= 128 << 10);
    // Room again.
    assert!(far.reader.next().await.unwrap().is_some());
    let (rest, _) = tokio::join!(
        timeout(LIMIT, near.writer.send(Bytes::from_static(b"end"))),
        timeout(LIMIT, async { while far.reader.next().await.unwrap().unwrap() != "end" {} })
    );
    rest.unwrap().unwrap();
}

/// A peer of which only the bytes are known.
struct Raw {
    io: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
    server: Connection,
}

impl Raw {
    fn new(limits: Limits) -> Self {
        let (io, far) = tokio::io::duplex(1 << 20);
        let server = Connection::start(far, Role::Server, limits);
        let (deflater, inflater) = (Deflater::new().unwrap(), Inflater::new(1 << 20));
        Self { io, deflater, inflater, server }
    }

    async fn control(&mut self, control: Control) {
        let bytes = control.encode(&mut self.deflater).unwrap();
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn syn(&mut self, stream: u32) {
        let headers = named("data");
        self.control(Control::SynStream { stream, fin: false, unidirectional: false, headers })
            .await;
    }

    /// The next frame that is no data; `None` at the end.
    async fn answer(&mut self) -> Option<Control> {
        let mut head = [0; Head::BYTES];
        timeout(LIMIT, self.io.read_exact(&mut head)).await.unwrap().ok()?;
        let Head::Control { kind, flags, length } = Head::parse(head).unwrap() else {
            panic!("data was sent");
        };
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(Control::parse(kind, flags, &payload, &mut self.inflater).unwrap())
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_rules_gets_goaway_and_the_end() {
    let mut bomb = Deflater::new().unwrap();
    let huge = "x".repeat(1 << 20);
    let headers: Headers = [("a", huge.as_str())].into_iter().collect();
    let syn =
        |stream, headers| Control::SynStream { stream, fin: false, unidirectional: false, headers };
    let bomb = syn(1, headers).encode(&mut bomb).unwrap();
    let mut twice = Deflater::new().unwrap();
    let twice = [1, 1].map(|id| syn(id, named("data")).encode(&mut twice).unwrap()).concat();
    let cases: [(&str, Vec<u8>); 7] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("another version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("a long control frame", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("a header bomb", bomb),
        ("a stream twice", twice),
        ("an even stream", syn(2, named("data")).encode(&mut Deflater::new().unwrap()).unwrap()),
        ("no zlib", [&[0x80, 3, 0, 1, 0, 0, 0, 20][..], &[1; 20]].concat()),
    ];
    for (what, bytes) in cases {
        let mut raw = Raw::new(Limits::default());
        raw.io.write_all(&bytes).await.unwrap();
        let mut goaway = false;
        // "GET " reads as data of a stream that nobody knows, so the case ends when its peer does.
        if what == "HTTP" {
            raw.io.shutdown().await.unwrap();
            goaway = true;
        }
        while let Some(answer) = raw.answer().await {
            goaway |= matches!(answer, Control::GoAway { status: 1, .. });
        }
        assert!(goaway, "{what}");
        while raw.server.accept().await.is_some() {}
        assert!(raw.server.failure().is_some(), "{what}");
    }
}

#[tokio::test]
async fn streams_past_the_limit_are_refused_and_places_come_back() {
    let mut raw = Raw::new(Limits { streams: 3, ..Limits::default() });
    let mut open = Vec::new();
    for stream in [1, 3, 5, 7, 9] {
        raw.syn(stream).await;
        if stream <= 5 {
            open.push(raw.server.accept().await.unwrap().accept().await.unwrap());
            assert!(matches!(raw.answer().await, Some(Control::SynReply { .. })));
        } else {
            assert_eq!(raw.answer().await, Some(Control::Reset { stream, status: 3 }));
        }
    }
    raw.control(Control::Reset { stream: 1, status: 5 }).await;
    raw.syn(11).await;
    open.push(raw.server.accept().await.unwrap().accept().await.unwrap());
    assert!(matches!(raw.answer().await, Some(Control::SynReply { stream: 11, .. })));
    // Opened and reset again and again, with nobody who accepts: neither memory nor the connection suffers.
    for stream in (13..1013).step_by(2) {
        raw.syn(stream).await;
        raw.control(Control::Reset { stream, status: 5 }).await;
    }
    raw.control(Control::Ping(1)).await;
    loop {
        match raw.answer().await.unwrap() {
            Control::Ping(1) => break,
            Control::Reset { status: 3, .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_and_in_the_end_dropped() {
    let mut raw = Raw::new(Limits { idle: Duration::from_secs(60), ..Limits::default() });
    let mut pings = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(100), raw.answer()).await.unwrap() {
            Some(Control::Ping(id)) => {
                assert_eq!(id % 2, 0);
                pings += 1;
                raw.control(Control::Ping(id)).await;
            }
            Some(Control::GoAway { status: 0, .. }) => {}
            other => {
                assert_eq!(other, None);
                break;
            }
        }
    }
    assert!((2..=7).contains(&pings), "{pings}");
    assert!(matches!(raw.server.failure(), Some(SpdyError::Idle(_))));
}

#[tokio::test]
async fn windows_of_a_peer_that_keeps_to_them_are_opened_as_input_is_taken() {
    let mut raw = Raw::new(Limits::default());
    raw.syn(1).await;
    let mut stream = raw.server.accept().await.unwrap().accept().await.unwrap();
    assert!(matches!(raw.answer().await, Some(Control::SynReply { .. })));
    raw.io.write_all(&data(1, false, &[0; 64 << 10]).unwrap()).await.unwrap();
    let mut taken = 0;
    while taken < 64 << 10 {
        taken += stream.reader.next().await.unwrap().unwrap().len();
    }
    let mut opened = [0; 2];
    while opened.iter().any(|sum| *sum < 32 << 10) {
        match raw.answer().await.unwrap() {
            Control::WindowUpdate { stream, delta } => opened[stream as usize] += delta,
            other => panic!("{other:?}"),
        }
    }
    assert!(opened.iter().all(|sum| *sum <= 64 << 10), "{opened:?}");
}

fn control() -> impl Strategy<Value = Control> {
    let id = 0_u32..12;
    let fin = any::<bool>();
    prop_oneof![
        (id.clone(), fin, fin).prop_map(|(stream, fin, unidirectional)| Control::SynStream {
            stream,
            fin,
            unidirectional,
            headers: named("data"),
        }),
        (id.clone(), fin).prop_map(|(stream, fin)| {
            Control::SynReply { stream, fin, headers: Headers::default() }
        }),
        (id.clone(), fin).prop_map(|(stream, fin)| Control::Headers { stream, fin }),
        id.clone().prop_map(|stream| Control::Reset { stream, status: 5 }),
        any::<u32>().prop_map(Control::Ping),
        id.clone().prop_map(|last| Control::GoAway { last, status: 0 }),
        (id, any::<u32>()).prop_map(|(stream, delta)| Control::WindowUpdate { stream, delta }),
        Just(Control::Settings),
    ]
}

fn frames() -> impl Strategy<Value = Vec<(Option<Control>, Vec<u8>)>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..40);
    proptest::collection::vec((proptest::option::of(control()), bytes), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any frames in any order, with damage: the connection ends, nothing hangs, nothing panics.
    #[test]
    fn no_sequence_of_frames_hangs_a_connection(
        frames in frames(),
        damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut deflater = Deflater::new().unwrap();
            let mut bytes = Vec::new();
            for (control, payload) in frames {
                bytes.extend(match control {
                    Some(control) => control.encode(&mut deflater).unwrap(),
                    None => data(u32::from(payload.len() as u8 % 12) + 1, payload.len() % 3 == 0, &payload).unwrap(),
                });
            }
            if let Some((at, byte)) = damage {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
            let (io, far) = tokio::io::duplex(1 << 20);
            let mut server = Connection::start(far, Role::Server, Limits::default());
            let (mut read, mut write) = tokio::io::split(io);
            let peer = async {
                write.write_all(&bytes).await.ok();
                write.shutdown().await.ok();
                let mut answers = Vec::new();
                read.read_to_end(&mut answers).await.ok();
            };
            let serving = async {
                while let Some(offer) = server.accept().await {
                    let Ok(mut stream) = offer.accept().await else { continue };
                    while let Ok(Some(piece)) = stream.reader.next().await {
                        stream.writer.send(piece).await.ok();
                    }
                    stream.writer.finish().await.ok();
                }
                drop(server);
            };
            timeout(LIMIT, async { tokio::join!(peer, serving) }).await.expect("it hangs");
        });
    }
}
