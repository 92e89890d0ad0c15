//! Writes YAML as Kubernetes' clients do, to the letter: what sigs.k8s.io/yaml and the emitter of go-yaml make of JSON.
//!
//! Text is quoted where a reader of YAML 1.1 would take it for something else, text of several lines is a literal block,
//! lists stand at their field's indentation, lines longer than [`WIDTH`] are folded at blanks, and keys are in go-yaml's
//! order, in which `item2` comes before `item10`.
//!
//! It differs where go-yaml loses something: line separators of Unicode are always escaped, and a key `<<` is quoted.

use serde_json::{Map, Number, Value};

use super::{MERGE, scalar};

/// Where the next blank ends the line, in characters.
const WIDTH: usize = 80;
/// The longest key that stands before its colon, in bytes; others are written as `? key`.
const SIMPLE_KEY: usize = 128;
/// What a level is indented by.
const STEP: usize = 2;

/// A document, ending with its line.
pub fn to_string(value: &Value) -> String {
    let mut writer = Writer::default();
    writer.node(value, 0, Place::Root);
    writer.end()
}

/// An item of a list that a field of the document has: whole lines, of which the first begins with `- `.
pub fn item_to_string(value: &Value) -> String {
    let mut writer = Writer::default();
    writer.put('-');
    writer.node(value, 0, Place::Item);
    writer.end()
}

/// What stands before a node on its line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Root,
    /// A key and its colon: collections begin on the next line.
    Entry,
    /// A dash, or the colon below a long key: collections begin beside it.
    Item,
}

#[derive(Clone, Copy)]
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

impl Style {
    fn of(text: &str) -> Self {
        let special = text.contains(|letter: char| !is_printable(letter));
        if text.contains('\n') {
            return match special || text.ends_with(' ') || text.contains(" \n") {
                true => Self::Double,
                false => Self::Literal,
            };
        }
        if special || !scalar::is_text(text) {
            return Self::Double;
        }
        match text.starts_with(' ') || text.ends_with(' ') || has_indicators(text) {
            true => Self::Single,
            false => Self::Plain,
        }
    }
}

/// Whether a letter stands in a document as it is.
fn is_printable(letter: char) -> bool {
    match letter {
        '\n' | ' '..='~' => true,
        // The two end lines in YAML 1.1.
        '\u{a0}'..='\u{d7ff}' => letter != '\u{2028}' && letter != '\u{2029}',
        '\u{e000}'..='\u{fffd}' => letter != '\u{feff}',
        _ => false,
    }
}

/// Whether plain text would be taken for more than text.
fn has_indicators(text: &str) -> bool {
    const FIRST: &str = "#,[]{}&*!|>'\"%@`";
    text.starts_with("---")
        || text.starts_with("...")
        || text.starts_with(|first: char| FIRST.contains(first))
        || text == "?"
        || text.starts_with("? ")
        || text == "-"
        || text.starts_with("- ")
        || text.contains(": ")
        || text.ends_with(':')
        || text.contains(" #")
}

#[derive(Default)]
struct Writer {
    text: String,
    /// Characters on the last line.
    column: usize,
}

impl Writer {
    fn end(mut self) -> String {
        if self.column != 0 {
            self.put('\n');
        }
        self.text
    }

    fn put(&mut self, letter: char) {
        self.text.push(letter);
        self.column = match letter {
            '\n' => 0,
            _ => self.column + 1,
        };
    }

    fn puts(&mut self, text: &str) {
        text.chars().for_each(|letter| self.put(letter));
    }

    fn pad(&mut self, indent: usize) {
        while self.column < indent {
            self.put(' ');
        }
    }

    /// Begins a line.
    fn line(&mut self, indent: usize) {
        if self.column != 0 {
            self.put('\n');
        }
        self.pad(indent);
    }

    /// Parts a word from the indicator before it.
    fn part(&mut self) {
        if self.column != 0 && !self.text.ends_with(' ') {
            self.put(' ');
        }
    }

    fn word(&mut self, word: &str) {
        self.part();
        self.puts(word);
    }

    /// Writes a node of a collection that is indented by `indent`.
    fn node(&mut self, value: &Value, indent: usize, place: Place) {
        match value {
            Value::Null => self.word("null"),
            Value::Bool(set) => self.word(if *set { "true" } else { "false" }),
            Value::Number(value) => self.word(&number(value)),
            Value::String(text) => self.text(text, indent + STEP),
            Value::Array(items) if items.is_empty() => self.word("[]"),
            Value::Object(entries) if entries.is_empty() => self.word("{}"),
            Value::Array(items) => {
                let indent = match place {
                    Place::Root | Place::Entry => indent,
                    Place::Item => indent + STEP,
                };
                for (at, item) in items.iter().enumerate() {
                    self.begin(indent, at == 0, place);
                    self.put('-');
                    self.node(item, indent, Place::Item);
                }
            }
            Value::Object(entries) => {
                let indent = match place {
                    Place::Root => indent,
                    Place::Entry | Place::Item => indent + STEP,
                };
                for (at, (key, value)) in sorted(entries).into_iter().enumerate() {
                    self.begin(indent, at == 0, place);
                    self.entry(key, value, indent);
                }
            }
        }
    }

    /// Begins a member of a collection.
    fn begin(&mut self, indent: usize, is_first: bool, place: Place) {
        match is_first && place != Place::Entry {
            true => self.pad(indent),
            false => self.line(indent),
        }
    }

    fn entry(&mut self, key: &str, value: &Value, indent: usize) {
        if key.contains('\n') || key.len() > SIMPLE_KEY {
            self.put('?');
            self.text(key, indent + STEP);
            self.line(indent);
            self.put(':');
            return self.node(value, indent, Place::Item);
        }
        match Style::of(key) {
            Style::Plain if key == MERGE => self.double(key, None),
            Style::Plain => self.plain(key, None),
            Style::Single => self.single(key, None),
            Style::Double | Style::Literal => self.double(key, None),
        }
        self.put(':');
        self.node(value, indent, Place::Entry);
    }

    /// Writes text whose further lines are indented by `indent`.
    fn text(&mut self, text: &str, indent: usize) {
        self.part();
        match Style::of(text) {
            Style::Plain => self.plain(text, Some(indent)),
            Style::Single => self.single(text, Some(indent)),
            Style::Double => self.double(text, Some(indent)),
            Style::Literal => self.literal(text, indent),
        }
    }

    /// Whether a blank ends the line: where lines may be folded, never beside another blank.
    fn folds(&self, fold: Option<usize>, before: Option<char>) -> Option<usize> {
        fold.filter(|_| self.column > WIDTH && before != Some(' '))
    }

    fn plain(&mut self, text: &str, fold: Option<usize>) {
        let mut before = None;
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let single = letter == ' ' && letters.peek() != Some(&' ');
            match self.folds(fold, before).filter(|_| single) {
                Some(indent) => self.line(indent),
                None => self.put(letter),
            }
            before = Some(letter);
        }
    }

    fn single(&mut self, text: &str, fold: Option<usize>) {
        self.put('\'');
        let mut before = None;
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let inner = before.is_some() && letters.peek().is_some_and(|next| *next != ' ');
            match self.folds(fold, before).filter(|_| letter == ' ' && inner) {
                Some(indent) => self.line(indent),
                None if letter == '\'' => self.puts("''"),
                None => self.put(letter),
            }
            before = Some(letter);
        }
        self.put('\'');
    }

    fn double(&mut self, text: &str, fold: Option<usize>) {
        // After a byte order mark, go-yaml takes every character for one.
        let escapes_all = text.starts_with('\u{feff}');
        self.put('"');
        let mut before = None;
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let inner = before.is_some() && letters.peek().is_some();
            if escapes_all || !is_printable(letter) || "\n\"\\".contains(letter) {
                self.escape(letter);
                before = Some('\\');
                continue;
            }
            match self.folds(fold, before).filter(|_| letter == ' ' && inner) {
                Some(indent) => {
                    self.line(indent);
                    if letters.peek() == Some(&' ') {
                        self.put('\\');
                    }
                }
                None => self.put(letter),
            }
            before = Some(letter);
        }
        self.put('"');
    }

    fn escape(&mut self, letter: char) {
        let code = u32::from(letter);
        let short = match letter {
            '\0' => '0',
            '\u{7}' => 'a',
            '\u{8}' => 'b',
            '\t' => 't',
            '\n' => 'n',
            '\u{b}' => 'v',
            '\u{c}' => 'f',
            '\r' => 'r',
            '\u{1b}' => 'e',
            '"' => '"',
            '\\' => '\\',
            '\u{85}' => 'N',
            '\u{a0}' => '_',
            '\u{2028}' => 'L',
            '\u{2029}' => 'P',
            _ if code <= 0xff => return self.puts(&format!("\\x{code:02X}")),
            _ if code <= 0xffff => return self.puts(&format!("\\u{code:04X}")),
            _ => return self.puts(&format!("\\U{code:08X}")),
        };
        self.put('\\');
        self.put(short);
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put('|');
        if text.starts_with([' ', '\n']) {
            self.puts(&STEP.to_string());
        }
        if !text.ends_with('\n') {
            self.put('-');
        } else if text == "\n" || text.ends_with("\n\n") {
            self.put('+');
        }
        self.put('\n');
        for letter in text.chars() {
            if letter != '\n' && self.column == 0 {
                self.pad(indent);
            }
            self.put(letter);
        }
    }
}

fn number(number: &Number) -> String {
    match number.as_f64().filter(|_| number.is_f64()) {
        None => number.to_string(),
        Some(float) => match scalar::whole_of(float) {
            Some(whole) => whole.to_string(),
            None => scalar::shortest(&format!("{float:e}")),
        },
    }
}

type Entry<'a> = (&'a String, &'a Value);

fn sorted(entries: &Map<String, Value>) -> Vec<Entry<'_>> {
    sort(entries.iter().collect())
}

/// Sorts by a comparison that for some keys is no order (`a10` before `a1b` before `a01` before `a10`), at which the
/// standard library's sorts may panic.
fn sort(mut left: Vec<Entry<'_>>) -> Vec<Entry<'_>> {
    if left.len() < 2 {
        return left;
    }
    let right = left.split_off(left.len() / 2);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let mut left = sort(left).into_iter().peekable();
    let mut right = sort(right).into_iter().peekable();
    loop {
        let takes_right = match (left.peek(), right.peek()) {
            (Some((one, _)), Some((other, _))) => is_before(other, one),
            (None, None) => return merged,
            (one, _) => one.is_none(),
        };
        merged.extend(match takes_right {
            true => right.next(),
            false => left.next(),
        });
    }
}

/// go-yaml's comparison of keys: letters by their code and behind all others, digits as the numbers that they begin.
fn is_before(one: &str, other: &str) -> bool {
    let mut letters = other.chars();
    for (at, letter) in one.char_indices() {
        match letters.next() {
            None => return false,
            Some(same) if same == letter => {}
            Some(differs) => {
                return match (letter.is_alphabetic(), differs.is_alphabetic()) {
                    (true, true) => letter < differs,
                    (false, false) => {
                        let (first, second) = (digits(one, at), digits(other, at));
                        let tens = letter == '0' || differs == '0';
                        let start = i64::from(tens && is_within_number(&one[..at]));
                        let first = (value(first, start), first.len());
                        let second = (value(second, start), second.len());
                        (first, letter) < (second, differs)
                    }
                    (_, is_letter) => is_letter,
                };
            }
        }
    }
    letters.next().is_some()
}

/// Whether a zero behind this text counts: not in front of a number.
fn is_within_number(text: &str) -> bool {
    text.bytes()
        .rev()
        .take_while(u8::is_ascii_digit)
        .any(|digit| digit != b'0')
}

fn digits(text: &str, at: usize) -> &str {
    let rest = &text[at..];
    let end = rest.find(|letter: char| !letter.is_ascii_digit());
    &rest[..end.unwrap_or(rest.len())]
}

fn value(digits: &str, start: i64) -> i64 {
    digits.bytes().fold(start, |sum, digit| {
        sum.wrapping_mul(10)
            .wrapping_add(i64::from(digit.wrapping_sub(b'0')))
    })
}
