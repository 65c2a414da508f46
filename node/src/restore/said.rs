//! What a program or a guest says: bounded, fit for a terminal, and searched for what is waited for.

/// Bytes that are kept.
const KEPT: usize = 4096;
/// Bytes that are looked at together.
const PIECE: usize = 1024;
/// Bytes of a text that can be waited for, at most.
pub const MAX_WANTED: usize = 512;

/// Where in a terminal's escape sequence we are (ECMA-48, 5.3 to 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    Escape,
    /// Of parameters, up to a final byte.
    Control,
    /// Of any text, up to BEL or an escape.
    String,
}

/// The last words, without what would move a terminal's cursor; and which of the wanted texts were among all of them.
#[derive(Debug)]
pub(super) struct Said {
    state: State,
    kept: Vec<u8>,
    wanted: Vec<(Vec<u8>, bool)>,
}

impl Said {
    /// Of wanted texts only the first [`MAX_WANTED`] bytes are looked for.
    pub(super) fn wanting(wanted: &[&str]) -> Self {
        let wanted = wanted.iter().map(|text| {
            let bytes = text.as_bytes();
            (bytes[..bytes.len().min(MAX_WANTED)].to_vec(), false)
        });
        Self { state: State::Text, kept: Vec::new(), wanted: wanted.collect() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE) {
            // A text may begin in what was there before.
            let from = self.kept.len().saturating_sub(MAX_WANTED - 1);
            piece.iter().for_each(|byte| self.take(*byte));
            for (text, found) in &mut self.wanted {
                *found |= self.kept[from..].windows(text.len().max(1)).any(|part| part == text);
            }
            if self.kept.len() > KEPT + PIECE {
                self.kept.drain(..self.kept.len() - KEPT);
            }
        }
    }

    fn take(&mut self, byte: u8) {
        const BEL: u8 = 7;
        const ESC: u8 = 0x1b;
        self.state = match (self.state, byte) {
            (_, ESC) => State::Escape,
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            // Intermediate bytes; the next one ends it.
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Control, 0x20..=0x3f) => State::Control,
            (State::String, byte) if byte != BEL && byte != b'\n' => State::String,
            (State::Text, b'\n' | b'\t' | 0x20..=0x7e | 0x80..) => {
                self.kept.push(byte);
                State::Text
            }
            _ => State::Text,
        };
    }

    /// Whether the wanted text of this number was said.
    pub(super) fn has(&self, wanted: usize) -> bool {
        self.wanted.get(wanted).is_some_and(|(_, found)| *found)
    }

    /// The last lines that are not empty, `most` of them.
    pub(super) fn lines(&self, most: usize) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.kept);
        // Some of the controls above ASCII move the cursor too.
        let clean = |line: &str| line.replace(|c: char| c.is_control() && c != '\t', "");
        let lines = text.lines().map(|line| clean(line).trim().to_owned());
        let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(most)..].to_vec()
    }

    /// The last lines as one text of so many characters at most.
    pub(super) fn text(&self, most: usize) -> String {
        let said = self.lines(usize::MAX).join("; ");
        let from = said.char_indices().rev().nth(most.saturating_sub(1)).map_or(0, |(at, _)| at);
        said[from..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_go_and_what_they_coloured_is_found() {
        let mut said = Said::wanting(&["Reached target", "never"]);
        said.push(b"\x1b[0;32m  OK  \x1b[0m] Rea\x1b[1mched tar\x1b]0;title\x07get\r\n\x1b(B\x9b2J\xc2\x9b2Jx\x00\n\n");
        assert!(said.has(0) && !said.has(1) && !said.has(2));
        let lines = said.lines(9);
        assert!(lines[0].starts_with("OK") && lines[0].ends_with("Reached target"), "{lines:?}");
        assert!(!lines.concat().contains(char::is_control), "{lines:?}");
        assert_eq!(said.lines(1).len(), 1);
        assert!(said.text(3).chars().count() <= 3);
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_bounded_and_a_text_is_found_however_it_comes(
            before in prop::collection::vec(any::<u8>(), 0..9000),
            after in prop::collection::vec(any::<u8>(), 0..9000),
            cuts in prop::collection::vec(1usize..3000, 1..20),
        ) {
            let wanted = "LOGIN-READY";
            // What comes before may have begun an escape; a line's end is the end of any.
            let all = [&before[..], b"a\n\x07a\n", wanted.as_bytes(), &after].concat();
            let mut said = Said::wanting(&[wanted]);
            let mut rest = &all[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                said.push(now);
                rest = later;
                prop_assert!(said.kept.len() <= KEPT + 2 * PIECE);
            }
            prop_assert!(said.has(0));
            prop_assert!(!said.lines(5).concat().contains(|c: char| c.is_control() && c != '\t'));
        }
    }
}
