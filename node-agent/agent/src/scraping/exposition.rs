//! Reads what a pod answers in Prometheus' text format (0.0.4, or OpenMetrics'), as it arrives: kept are the series that are wanted,
//! and nothing else is held but the beginning of a line. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The largest answer, in bytes. What an application says of itself has a tenth of it.
const BYTES: usize = 4 << 20;
/// The most lines of one.
const LINES: usize = 100_000;
/// The longest line, in bytes.
const LINE_BYTES: usize = 16 << 10;
/// The most series that are kept of one answer, each of a name and of the wanted labels.
pub(crate) const SERIES: usize = 64;
/// What their labels have together, in bytes.
const LABEL_BYTES: usize = 16 << 10;
/// Of a line that is wrong more is not told.
const TOLD: usize = 64;

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rubbish {
    #[error("the answer is larger than {BYTES} bytes")]
    TooLarge,
    #[error("the answer has more than {LINES} lines")]
    TooManyLines,
    #[error("line {0} is longer than {LINE_BYTES} bytes")]
    LongLine(usize),
    #[error("line {line} is nothing of Prometheus' text format: {text:?}")]
    Unreadable { line: usize, text: String },
    #[error(
        "more than {SERIES} series of the wanted names and labels, or more than {LABEL_BYTES} bytes of these labels"
    )]
    TooManySeries,
}

/// The series of a namespace that are wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Names, each with the labels by which its series are told apart.
    names: HashMap<String, BTreeSet<String>>,
    /// Names of which a type may say that they are counters.
    families: HashSet<String>,
}

/// What the name of a series adds to that of its family.
const SUFFIXES: [&str; 4] = ["_total", "_count", "_sum", "_bucket"];

impl Wanted {
    /// A name with the labels by which its series are told apart; they add up where it is wanted several times.
    pub(crate) fn add(&mut self, name: String, labels: impl IntoIterator<Item = String>) {
        let families = SUFFIXES
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix));
        self.families.extend(families.map(str::to_owned));
        self.families.insert(name.clone());
        self.names.entry(name).or_default().extend(labels);
    }
}

/// What a pod says in one moment of a wanted series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// The wanted ones that it has.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) is_counter: bool,
    /// Finite: the sum of all that differ in other labels.
    pub(crate) value: f64,
}

/// The types that matter: what grows only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Counter,
    Histogram,
    Summary,
    Other,
}

/// An answer that is being read.
pub(crate) struct Reader<'a> {
    wanted: &'a Wanted,
    types: HashMap<&'a str, Type>,
    /// Values by name and labels.
    values: BTreeMap<(&'a str, BTreeMap<&'a str, String>), f64>,
    label_bytes: usize,
    bytes: usize,
    lines: usize,
    /// The beginning of a line of which there is more.
    begun: Vec<u8>,
    /// Whatever follows is no part of it.
    is_over: bool,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(wanted: &'a Wanted) -> Self {
        Self {
            wanted,
            types: HashMap::new(),
            values: BTreeMap::new(),
            label_bytes: 0,
            bytes: 0,
            lines: 0,
            begun: Vec::new(),
            is_over: false,
        }
    }

    /// Takes the next bytes of the answer.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), Rubbish> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > BYTES {
            return Err(Rubbish::TooLarge);
        }
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.begun.is_empty() {
                self.line(line)?;
            } else {
                self.begin(line)?;
                let line = std::mem::take(&mut self.begun);
                self.line(&line)?;
            }
        }
        self.begin(bytes)
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), Rubbish> {
        if self.begun.len() + bytes.len() > LINE_BYTES {
            return Err(Rubbish::LongLine(self.lines + 1));
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }

    /// The wanted series, once the answer has ended.
    pub(crate) fn finish(mut self) -> Result<Vec<Series>, Rubbish> {
        if !self.begun.is_empty() {
            let line = std::mem::take(&mut self.begun);
            self.line(&line)?;
        }
        let values = std::mem::take(&mut self.values).into_iter();
        let values = values.filter(|(_, value)| value.is_finite());
        let series = values.map(|((name, labels), value)| Series {
            name: name.to_owned(),
            labels: labels
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            is_counter: self.is_counter(name),
            value,
        });
        Ok(series.collect())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Rubbish> {
        self.lines += 1;
        if self.lines > LINES {
            return Err(Rubbish::TooManyLines);
        }
        if line.len() > LINE_BYTES {
            return Err(Rubbish::LongLine(self.lines));
        }
        if self.is_over {
            return Ok(());
        }
        let text = line.trim_ascii();
        let read = match text.first() {
            None => Some(()),
            Some(b'#') => {
                self.comment(text);
                Some(())
            }
            Some(_) => self.sample(text)?,
        };
        read.ok_or_else(|| {
            let text = text.get(..TOLD).unwrap_or(text);
            Rubbish::Unreadable {
                line: self.lines,
                text: String::from_utf8_lossy(text).into_owned(),
            }
        })
    }

    /// Types matter, and that OpenMetrics says where it ends.
    fn comment(&mut self, line: &[u8]) {
        let Ok(line) = std::str::from_utf8(line) else {
            return;
        };
        let mut words = line.split_ascii_whitespace().skip(1);
        match (words.next(), words.next(), words.next()) {
            (Some("EOF"), None, None) => self.is_over = true,
            (Some("TYPE"), Some(name), Some(of)) => {
                let of = match of {
                    "counter" => Type::Counter,
                    "histogram" => Type::Histogram,
                    "summary" => Type::Summary,
                    "untyped" | "unknown" => return,
                    _ => Type::Other,
                };
                if let Some(family) = self.wanted.families.get(name) {
                    self.types.insert(family, of);
                }
            }
            _ => {}
        }
    }

    /// `NAME{LABELS} VALUE`, and what may follow. None when it is nothing of the sort.
    fn sample(&mut self, line: &[u8]) -> Result<Option<()>, Rubbish> {
        let end = line.iter().position(|byte| !is_of_a_name(*byte));
        let (name, rest) = line.split_at(end.unwrap_or(line.len()));
        let begins_well = name.first().is_some_and(|byte| !byte.is_ascii_digit());
        let goes_on = matches!(rest.first(), Some(b'{' | b' ' | b'\t'));
        if !begins_well || !goes_on {
            return Ok(None);
        }
        let name = std::str::from_utf8(name).ok();
        let wanted = name.and_then(|name| self.wanted.names.get_key_value(name));
        let Some((name, labels)) = wanted else {
            return Ok(Some(()));
        };
        let sample = std::str::from_utf8(rest).ok();
        let Some((labels, value)) = sample.and_then(|rest| labels_and_value(rest, labels)) else {
            return Ok(None);
        };
        self.add(name, labels, value).map(Some)
    }

    /// What is no number, or has no end, is no value.
    fn add(
        &mut self,
        name: &'a str,
        labels: BTreeMap<&'a str, String>,
        value: f64,
    ) -> Result<(), Rubbish> {
        if !value.is_finite() {
            return Ok(());
        }
        let count = self.values.len();
        match self.values.entry((name, labels)) {
            Entry::Occupied(mut known) => *known.get_mut() += value,
            Entry::Vacant(new) => {
                let labels = new.key().1.iter();
                let bytes = labels.map(|(name, value)| name.len() + value.len());
                self.label_bytes += bytes.sum::<usize>();
                if count >= SERIES || self.label_bytes > LABEL_BYTES {
                    return Err(Rubbish::TooManySeries);
                }
                new.insert(value);
            }
        }
        Ok(())
    }

    /// By its type; where none is said, by its name.
    fn is_counter(&self, name: &str) -> bool {
        let of_family = |suffix: &str| {
            let family = name.strip_suffix(suffix)?;
            self.types.get(family).copied()
        };
        match self.types.get(name) {
            Some(of) => *of == Type::Counter,
            None => match of_family("_total") {
                Some(of) => of == Type::Counter,
                None => {
                    let of_parts = ["_count", "_sum"].into_iter().find_map(of_family);
                    matches!(of_parts, Some(Type::Histogram | Type::Summary))
                        || of_family("_bucket") == Some(Type::Histogram)
                        || name.ends_with("_total")
                }
            },
        }
    }
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':')
}

/// What follows a name: the labels that are wanted, and the value. A time and an exemplar behind it do not matter.
fn labels_and_value<'a>(
    text: &str,
    wanted: &'a BTreeSet<String>,
) -> Option<(BTreeMap<&'a str, String>, f64)> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let end = rest.find(|of: char| !of.is_ascii() || !is_of_a_name(of as u8))?;
            let (name, after) = rest
                .split_at_checked(end)
                .filter(|(name, _)| !name.is_empty())?;
            let after = after.trim_start().strip_prefix('=')?;
            let (value, after) = quoted(after.trim_start())?;
            if let Some(name) = wanted.get(name) {
                labels.insert(name.as_str(), value);
            }
            rest = after.trim_start();
            match rest.strip_prefix(',') {
                Some(after) => rest = after.trim_start(),
                None if rest.starts_with('}') => {}
                None => return None,
            }
        }
    }
    let value = rest.split_ascii_whitespace().next()?;
    Some((labels, value.parse().ok()?))
}

/// A text in quotes, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut value = String::new();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
}

/// What the bytes of a pod meet, for the fuzzer.
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut wanted = Wanted::default();
    wanted.add("a_total".to_owned(), ["b".to_owned(), "c".to_owned()]);
    wanted.add("a".to_owned(), ["b".to_owned()]);
    let mut reader = Reader::new(&wanted);
    for piece in bytes.chunks(1 + bytes.len() / 3) {
        if reader.take(piece).is_err() {
            return;
        }
    }
    drop(reader.finish());
}

#[cfg(test)]
mod tests;
