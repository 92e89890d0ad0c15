//! Lines out of records. A long line is written as several records (`P`, and `F` for its end), between which the other
//! stream may have written: readers are given it as one line, with one time, and those that count or leave out lines do so
//! with whole ones.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::{Line, LogQuery, Stream};

/// What one stream has written while the other is in the middle of a line waits for the end of that, up to this many bytes.
const WAITING: usize = 64 * 1024;

/// One record, taken apart.
pub(super) struct Record<'a> {
    time: &'a str,
    stream: Stream,
    /// It was followed by a line end.
    pub(super) ends: bool,
    pub(super) text: &'a [u8],
}

pub(super) fn parse(record: &[u8]) -> Option<Record<'_>> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let ends = parts.next()?.first() == Some(&b'F');
    Some(Record {
        time,
        stream,
        ends,
        text: parts.next().unwrap_or_default(),
    })
}

fn with_end(mut bytes: Vec<u8>, ends: bool) -> Vec<u8> {
    if ends {
        bytes.push(b'\n');
    }
    bytes
}

/// A part of a line, as it is given to the reader.
struct Piece {
    stream: Stream,
    ends: bool,
    bytes: Vec<u8>,
}

/// Where a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Its next record begins a line.
    Between,
    /// Within a line that the reader is given.
    Given,
    /// Within a line that the reader is not given.
    LeftOut,
}

/// Takes records, in the order in which they were written, and gives lines, piece by piece.
pub(super) struct Lines<'a> {
    query: &'a LogQuery,
    places: [Place; 2],
    /// So many lines are left out before the first that is given.
    before: u64,
    /// Whose line was begun and has not ended.
    open: Option<Stream>,
    /// What the other stream has written since.
    waiting: VecDeque<Piece>,
    waiting_bytes: usize,
    /// It was waiting when the log's end was reached before.
    waited: bool,
    ready: VecDeque<Line>,
}

impl<'a> Lines<'a> {
    /// All lines that are not too old.
    pub(super) fn all(query: &'a LogQuery) -> Self {
        Self::after(query, 0)
    }

    /// Gives none of them, but counts them for [`Self::last`]: whoever wants the last lines has them read twice, since keeping
    /// them meanwhile would take as much memory as the whole log, and more.
    pub(super) fn counting(query: &'a LogQuery) -> Self {
        Self::after(query, u64::MAX)
    }

    /// The last of those that were counted, as many as are wanted.
    pub(super) fn last(self) -> Self {
        let counted = u64::MAX - self.before;
        let wanted = self.query.tail.map_or(u64::MAX, |tail| tail as u64);
        Self::after(self.query, counted.saturating_sub(wanted))
    }

    fn after(query: &'a LogQuery, before: u64) -> Self {
        Self {
            query,
            places: [Place::Between; 2],
            before,
            open: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waited: false,
            ready: VecDeque::new(),
        }
    }

    /// Takes a record, without its newline. What is no record is left out.
    pub(super) fn take(&mut self, record: &[u8]) {
        let Some(record) = parse(record) else {
            return;
        };
        let place = &mut self.places[record.stream as usize];
        let begins = *place == Place::Between;
        if begins {
            *place = if is_too_old(record.time, self.query.since) {
                Place::LeftOut
            } else if self.before > 0 {
                self.before -= 1;
                Place::LeftOut
            } else {
                Place::Given
            };
        }
        let given = *place == Place::Given;
        if record.ends {
            *place = Place::Between;
        }
        if !given {
            return;
        }
        let mut bytes = Vec::with_capacity(record.time.len() + record.text.len() + 2);
        if begins && self.query.timestamps {
            bytes.extend_from_slice(record.time.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(record.text);
        self.give(Piece {
            stream: record.stream,
            ends: record.ends,
            bytes: with_end(bytes, record.ends),
        });
    }

    /// Gives a piece once no line of the other stream would be broken by it.
    fn give(&mut self, piece: Piece) {
        if self.open.is_some_and(|open| open != piece.stream) {
            self.waiting_bytes += piece.bytes.len();
            self.waiting.push_back(piece);
            if self.waiting_bytes > WAITING {
                self.flush();
            }
            return;
        }
        let ends = piece.ends;
        self.put(piece);
        if ends {
            self.flush();
        }
    }

    fn put(&mut self, piece: Piece) {
        self.open = (!piece.ends).then_some(piece.stream);
        self.ready.push_back(Line {
            stream: piece.stream,
            bytes: piece.bytes,
        });
    }

    /// Gives what waits, whatever it is in the middle of.
    pub(super) fn flush(&mut self) {
        (self.waiting_bytes, self.waited) = (0, false);
        for piece in std::mem::take(&mut self.waiting) {
            self.put(piece);
        }
    }

    /// The end of the log was reached, for now. A line that has not gone on since the last time may take hours to end.
    pub(super) fn idle(&mut self) {
        if self.waited {
            self.flush();
        }
        self.waited = !self.waiting.is_empty();
    }

    /// The next piece for the reader.
    pub(super) fn pop(&mut self) -> Option<Line> {
        self.ready.pop_front()
    }
}

fn is_too_old(time: &str, since: Option<Timestamp>) -> bool {
    since.is_some_and(|since| time.parse::<Timestamp>().is_ok_and(|time| time < since))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records of one second each, and what a reader is given of them.
    fn given(query: &LogQuery, records: &[&str]) -> String {
        let stamp = |(second, record): (usize, &&str)| {
            format!("2026-01-01T00:00:{second:02}.000000000Z {record}").into_bytes()
        };
        let records: Vec<Vec<u8>> = records.iter().enumerate().map(stamp).collect();
        let mut counting = Lines::counting(query);
        for record in &records {
            counting.take(record);
            assert_eq!(counting.pop(), None, "nothing is kept of what is counted");
        }
        let mut lines = counting.last();
        let mut text = Vec::new();
        for record in &records {
            lines.take(record);
            while let Some(line) = lines.pop() {
                text.extend(line.bytes);
            }
        }
        lines.flush();
        while let Some(line) = lines.pop() {
            text.extend(line.bytes);
        }
        String::from_utf8(text).expect("text")
    }

    const MIXED: [&str; 7] = [
        "stdout F one",
        "stdout P tw",
        "stderr F oops",
        "stdout P o, ",
        "stdout F and more",
        "stderr P thr",
        "stderr F ee",
    ];

    #[test]
    fn a_line_has_one_time_and_nothing_of_the_other_stream_in_it() {
        let stamped = LogQuery {
            timestamps: true,
            ..LogQuery::default()
        };
        let expected = "2026-01-01T00:00:00.000000000Z one\n\
             2026-01-01T00:00:01.000000000Z two, and more\n\
             2026-01-01T00:00:02.000000000Z oops\n\
             2026-01-01T00:00:05.000000000Z three\n";
        assert_eq!(given(&stamped, &MIXED), expected);
    }

    #[test]
    fn the_last_lines_are_whole_ones() {
        for (tail, expected) in [
            (0, ""),
            (1, "three\n"),
            (2, "oops\nthree\n"),
            (3, "two, and more\noops\nthree\n"),
            (9, "one\ntwo, and more\noops\nthree\n"),
        ] {
            let query = LogQuery {
                tail: Some(tail),
                ..LogQuery::default()
            };
            assert_eq!(given(&query, &MIXED), expected, "{tail}");
        }
    }

    #[test]
    fn a_line_is_as_old_as_its_beginning() {
        for (second, expected) in [
            ("01", "two, and more\noops\nthree\n"),
            ("02", "oops\nthree\n"),
            ("06", ""),
        ] {
            let query = LogQuery {
                since: Some(
                    format!("2026-01-01T00:00:{second}Z")
                        .parse()
                        .expect("a time"),
                ),
                ..LogQuery::default()
            };
            assert_eq!(given(&query, &MIXED), expected, "{second}");
        }
    }

    #[test]
    fn what_has_no_end_is_given_as_it_is() {
        let query = LogQuery::default();
        assert_eq!(given(&query, &["stdout F one", "stdout P tw"]), "one\ntw");
        assert_eq!(given(&query, &["stdout P tw", "stderr F x"]), "twx\n");
        let last = LogQuery {
            tail: Some(1),
            ..LogQuery::default()
        };
        assert_eq!(given(&last, &["stdout F one", "stdout P tw"]), "tw");
    }

    #[test]
    fn a_line_that_does_not_end_keeps_nobody_waiting_for_ever() {
        let query = LogQuery::default();
        let mut lines = Lines::all(&query);
        let mut take = |record: &str| {
            lines.take(format!("2026-01-01T00:00:00Z {record}").as_bytes());
            std::iter::from_fn(|| lines.pop()).count()
        };
        assert_eq!(take("stdout P endless"), 1);
        let long = format!("stderr F {}", "x".repeat(WAITING / 2));
        assert_eq!(take(&long), 0);
        assert_eq!(take(&long), 2);

        let mut lines = Lines::all(&query);
        lines.take(b"2026-01-01T00:00:00Z stdout P endless");
        lines.take(b"2026-01-01T00:00:00Z stderr F said");
        lines.idle();
        assert_eq!(std::iter::from_fn(|| lines.pop()).count(), 1);
        lines.idle();
        assert_eq!(lines.pop().map(|line| line.bytes), Some(b"said\n".into()));
    }

    #[test]
    fn the_rest_of_a_line_that_was_not_given_is_not_given_either() {
        let query = LogQuery {
            tail: Some(0),
            ..LogQuery::default()
        };
        let mut counting = Lines::counting(&query);
        counting.take(b"2026-01-01T00:00:00Z stdout P begun");
        let mut lines = counting.last();
        lines.take(b"2026-01-01T00:00:00Z stdout P begun");
        lines.take(b"2026-01-01T00:00:01Z stdout F and ended");
        assert_eq!(lines.pop(), None);
        lines.take(b"2026-01-01T00:00:02Z stdout F next");
        assert_eq!(lines.pop().map(|line| line.bytes), Some(b"next\n".into()));
    }
}
