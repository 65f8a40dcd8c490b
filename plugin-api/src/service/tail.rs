//! What is kept of a process's output.

use super::{CHUNK_MAX, OUTPUT_MAX};

/// The last bytes of a stream.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    bytes: Vec<u8>,
    /// Where in the stream they begin.
    from: u64,
}

impl Tail {
    /// The stream goes on.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let surplus = self.bytes.len().saturating_sub(OUTPUT_MAX);
        self.bytes.drain(..surplus);
        self.from += surplus as u64;
    }

    /// What stands at a place or, if that is gone, from the first that is kept: where it begins, where it ends, the text. A
    /// character that is not whole waits for the rest, unless nothing more comes.
    #[must_use]
    pub fn text(&self, at: u64, whole: bool) -> Option<(u64, u64, String)> {
        let at = at.max(self.from);
        let rest = self.bytes.get((at - self.from) as usize..).filter(|rest| !rest.is_empty())?;
        let chunk = &rest[..rest.len().min(CHUNK_MAX)];
        let cut = match std::str::from_utf8(chunk) {
            Err(error) if error.error_len().is_none() && (!whole || chunk.len() < rest.len()) => {
                error.valid_up_to()
            }
            _ => chunk.len(),
        };
        let text = String::from_utf8_lossy(&chunk[..cut]).into_owned();
        (cut > 0).then_some((at, at + cut as u64, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_bytes_and_says_where_they_are() {
        let mut tail = Tail::default();
        tail.push(b"begin ");
        assert_eq!(tail.text(0, false), Some((0, 6, "begin ".into())));
        assert_eq!(tail.text(6, false), None);
        tail.push(&vec![b'x'; OUTPUT_MAX]);
        let (at, to, text) = tail.text(6, false).expect("some");
        assert_eq!((at, to, text.len()), (6, 6 + CHUNK_MAX as u64, CHUNK_MAX));
        let (at, ..) = tail.text(2, false).expect("some");
        assert_eq!(at, 6, "what went before is gone");
    }

    #[test]
    fn characters_are_not_torn_and_what_is_none_is_replaced() {
        let mut tail = Tail::default();
        tail.push(&[b'a', 0xc3]);
        assert_eq!(tail.text(0, false), Some((0, 1, "a".into())));
        assert_eq!(tail.text(1, false), None, "the rest may come");
        assert_eq!(tail.text(1, true), Some((1, 2, "\u{fffd}".into())), "it does not");
        tail.push(&[0xa4, 0xff, b'b']);
        assert_eq!(tail.text(1, false), Some((1, 5, "\u{e4}\u{fffd}b".into())));
    }
}
