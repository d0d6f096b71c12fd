//! Sizes of a terminal: JSON objects one after another, `{"Width":80,"Height":24}`, cut into pieces anywhere.

use infranetes_core::session::duplex::TerminalSize;
use serde::Deserialize;

/// Puts pieces together.
#[derive(Default)]
pub(super) struct Sizes {
    unread: Vec<u8>,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

impl Sizes {
    /// Takes a piece; the last whole size in it counts. What is no size is forgotten: a terminal of the wrong size is no reason
    /// to end a session.
    pub(super) fn take(&mut self, piece: &[u8]) -> Option<TerminalSize> {
        self.unread.extend_from_slice(piece);
        let mut objects = serde_json::Deserializer::from_slice(&self.unread).into_iter::<Size>();
        let mut last = None;
        let mut is_whole = true;
        let mut read = 0;
        for object in objects.by_ref() {
            match object {
                Ok(size) => last = Some(TerminalSize { columns: size.width, rows: size.height }),
                Err(error) => is_whole = !error.is_eof(),
            }
            if !is_whole {
                break;
            }
        }
        if is_whole {
            read = self.unread.len();
        } else if last.is_some() {
            read = objects.byte_offset();
        }
        self.unread.drain(..read.min(self.unread.len()));
        if self.unread.len() > UNREAD_MAX {
            self.unread.clear();
        }
        last
    }
}

const UNREAD_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces_and_nonsense_is_forgotten() {
        let mut sizes = Sizes::default();
        let size = |columns, rows| Some(TerminalSize { columns, rows });
        assert_eq!(sizes.take(b"{\"Width\":80,\"Height\":24}\n"), size(80, 24));
        assert_eq!(sizes.take(b"{\"Width\":81,"), None);
        assert_eq!(sizes.take(b"\"Height\":25}{\"Width\":8"), size(81, 25));
        assert_eq!(sizes.take(b"2,\"Height\":26}"), size(82, 26));
        assert_eq!(sizes.take(b"nonsense"), None);
        assert_eq!(sizes.take(b"{\"Width\":70000,\"Height\":1}"), None);
        assert_eq!(sizes.take(b"{\"Width\":83,\"Height\":27}"), size(83, 27));
        assert_eq!(sizes.take(&[b' '; 5000]), None);
        assert_eq!(sizes.take(&[b'{'; 5000]), None);
        assert_eq!(sizes.take(b"{\"Width\":84,\"Height\":28}"), size(84, 28));
    }
}
