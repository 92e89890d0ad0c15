//! Links in HTML, rewritten as the page passes by: attributes that hold URLs, and nothing else. Every other byte stays what it
//! is, a page that breaks off included.
//!
//! What is a tag, a comment, or text that only looks like them follows the tokenizer of the HTML standard, as far as it takes
//! to tell them apart. A byte costs the same wherever it stands, and no more is kept than one URL.

use super::links::Links;

/// Longer URLs stay as they are: pages embed whole images in them.
const LONGEST_URL: usize = 8 << 10;
/// Longer names are no names of elements or attributes that matter.
const LONGEST_NAME: usize = 16;

/// Everything behind it is text.
const PLAIN: &[u8] = b"plaintext";

/// Elements whose content is text, however much it looks like markup.
const RAW: [&[u8]; 9] = [
    b"iframe",
    b"noembed",
    b"noframes",
    PLAIN,
    b"script",
    b"style",
    b"textarea",
    b"title",
    b"xmp",
];

/// Whether an attribute of an element holds a URL.
fn holds_url(element: &[u8], attribute: &[u8]) -> bool {
    match attribute {
        b"href" => matches!(element, b"a" | b"area" | b"base" | b"link"),
        b"src" => matches!(
            element,
            b"audio"
                | b"embed"
                | b"frame"
                | b"iframe"
                | b"img"
                | b"input"
                | b"script"
                | b"source"
                | b"video"
        ),
        b"action" => element == b"form",
        b"background" => element == b"body",
        b"cite" => matches!(element, b"blockquote" | b"del" | b"ins" | b"q"),
        b"classid" | b"data" => element == b"object",
        b"codebase" => matches!(element, b"applet" | b"object"),
        b"formaction" => matches!(element, b"button" | b"input"),
        b"icon" => element == b"command",
        b"longdesc" => matches!(element, b"frame" | b"iframe" | b"img"),
        b"manifest" => element == b"html",
        b"poster" => element == b"video",
        b"profile" => element == b"head",
        b"usemap" => matches!(element, b"img" | b"input" | b"object"),
        _ => false,
    }
}

/// Where in a page the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// Behind `<`.
    Open,
    /// Behind `</`.
    OpenEnd,
    /// Behind `<!` and as many dashes.
    Declaration(u8),
    /// Behind as many dashes (no more than two are counted), or behind `--!`.
    Comment {
        dashes: u8,
        bang: bool,
    },
    /// Up to `>`.
    Bogus,
    /// In the name of a tag.
    Element,
    /// Between attributes.
    Between,
    /// In the name of an attribute.
    Attribute,
    /// Behind the name of an attribute.
    AfterAttribute,
    /// Behind `=`.
    BeforeValue,
    /// In a value, up to this quote, or up to a blank or `>`.
    Value(Option<u8>),
    /// In what is text up to the end tag of this element.
    Raw(&'static [u8]),
    /// As [`State::Raw`], behind `<` and as many bytes of `/` and the name.
    RawEnd(&'static [u8], usize),
}

/// A name in lower case, as far as it matters.
#[derive(Debug, Default)]
struct Name(Vec<u8>);

impl Name {
    fn begin(&mut self, byte: u8) {
        self.0.clear();
        self.push(byte);
    }

    fn push(&mut self, byte: u8) {
        if self.0.len() < LONGEST_NAME {
            self.0.push(byte.to_ascii_lowercase());
        }
    }
}

/// Rewrites one page, however it comes in pieces.
#[derive(Debug)]
pub(super) struct Rewriter {
    links: Links,
    state: State,
    element: Name,
    attribute: Name,
    /// Of a tag that ends an element: its attributes mean nothing.
    is_end: bool,
    /// A URL as far as it has come; `None` outside of those that may be rewritten.
    url: Option<Vec<u8>>,
}

impl Rewriter {
    pub(super) fn new(links: Links) -> Self {
        Self {
            links,
            state: State::Text,
            element: Name::default(),
            attribute: Name::default(),
            is_end: false,
            url: None,
        }
    }

    /// Takes a piece, and gives what can be said so far.
    pub(super) fn piece(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut rest = piece;
        while let Some(byte) = rest.first().copied() {
            let skipped = match self.state {
                State::Text | State::Raw(_) => rest.iter().position(|byte| *byte == b'<'),
                State::Bogus => rest.iter().position(|byte| *byte == b'>'),
                _ => Some(0),
            };
            let (plain, next) = rest.split_at(skipped.unwrap_or(rest.len()));
            out.extend_from_slice(plain);
            rest = next;
            if plain.is_empty() {
                self.byte(byte, out);
                rest = next.get(1..).unwrap_or_default();
            }
        }
    }

    /// The page is over.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(url) = self.url.take() {
            out.extend_from_slice(&url);
        }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        if let State::Value(quote) = self.state {
            return self.value(byte, quote, out);
        }
        out.push(byte);
        let is_blank = is_blank(byte);
        self.state = match self.state {
            State::Text if byte == b'<' => State::Open,
            State::Text => State::Text,
            State::Open => match byte {
                b'/' => State::OpenEnd,
                b'!' => State::Declaration(0),
                b'?' => State::Bogus,
                b'<' => State::Open,
                byte if byte.is_ascii_alphabetic() => self.element(byte, false),
                _ => State::Text,
            },
            State::OpenEnd => match byte {
                b'>' => State::Text,
                byte if byte.is_ascii_alphabetic() => self.element(byte, true),
                _ => State::Bogus,
            },
            State::Declaration(dashes) => match (byte, dashes) {
                (b'-', 0) => State::Declaration(1),
                // The dashes that begin a comment may be those that end it.
                (b'-', _) => State::Comment {
                    dashes: 2,
                    bang: false,
                },
                (b'>', _) => State::Text,
                _ => State::Bogus,
            },
            State::Comment { dashes, bang } => match byte {
                b'>' if dashes == 2 || bang => State::Text,
                b'-' => State::Comment {
                    dashes: (dashes + 1).min(2),
                    bang: false,
                },
                _ => State::Comment {
                    dashes: 0,
                    bang: byte == b'!' && dashes == 2,
                },
            },
            State::Bogus if byte == b'>' => State::Text,
            State::Bogus => State::Bogus,
            State::Element => match byte {
                b'>' => self.content(),
                b'/' => State::Between,
                _ if is_blank => State::Between,
                byte => {
                    self.element.push(byte);
                    State::Element
                }
            },
            State::Between | State::AfterAttribute => match byte {
                b'>' => self.content(),
                b'/' => State::Between,
                b'=' if self.state == State::AfterAttribute => State::BeforeValue,
                _ if is_blank => self.state,
                byte => {
                    self.attribute.begin(byte);
                    State::Attribute
                }
            },
            State::Attribute => match byte {
                b'>' => self.content(),
                b'/' => State::Between,
                b'=' => State::BeforeValue,
                _ if is_blank => State::AfterAttribute,
                byte => {
                    self.attribute.push(byte);
                    State::Attribute
                }
            },
            State::BeforeValue => match byte {
                b'>' => self.content(),
                _ if is_blank => State::BeforeValue,
                b'"' | b'\'' => self.begin_value(Some(byte)),
                byte => {
                    // It is the first byte of the value.
                    out.pop();
                    self.state = self.begin_value(None);
                    return self.value(byte, None, out);
                }
            },
            State::Raw(name) if byte == b'<' && name != PLAIN => State::RawEnd(name, 0),
            State::Raw(name) => State::Raw(name),
            State::RawEnd(name, 0) if byte == b'/' => State::RawEnd(name, 1),
            State::RawEnd(name, matched) => match name.get(matched.wrapping_sub(1)) {
                Some(next) if *next == byte.to_ascii_lowercase() => {
                    State::RawEnd(name, matched + 1)
                }
                None if matched > 0 && byte == b'>' => State::Text,
                None if matched > 0 && (is_blank || byte == b'/') => {
                    self.is_end = true;
                    State::Between
                }
                _ if byte == b'<' => State::RawEnd(name, 0),
                _ => State::Raw(name),
            },
            // Taken care of above.
            State::Value(quote) => State::Value(quote),
        };
    }

    /// A tag begins.
    fn element(&mut self, first: u8, is_end: bool) -> State {
        self.element.begin(first);
        self.is_end = is_end;
        State::Element
    }

    /// What comes behind a tag.
    fn content(&self) -> State {
        let raw = RAW.iter().copied().find(|name| *name == self.element.0);
        match raw.filter(|_| !self.is_end) {
            Some(name) => State::Raw(name),
            None => State::Text,
        }
    }

    fn begin_value(&mut self, quote: Option<u8>) -> State {
        let holds = !self.is_end && holds_url(&self.element.0, &self.attribute.0);
        self.url = holds.then(Vec::new);
        State::Value(quote)
    }

    fn value(&mut self, byte: u8, quote: Option<u8>, out: &mut Vec<u8>) {
        let is_over = match quote {
            Some(quote) => byte == quote,
            None => byte == b'>' || is_blank(byte),
        };
        if !is_over {
            match &mut self.url {
                Some(url) if url.len() < LONGEST_URL => url.push(byte),
                Some(url) => {
                    out.append(url);
                    out.push(byte);
                    self.url = None;
                }
                None => out.push(byte),
            }
            return;
        }
        if let Some(url) = self.url.take() {
            let rewritten = self.links.rewritten(url.trim_ascii());
            out.extend_from_slice(rewritten.as_deref().unwrap_or(&url));
        }
        out.push(byte);
        self.state = match (quote, byte) {
            (None, b'>') => self.content(),
            _ => State::Between,
        };
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b'\x0c')
}

#[cfg(test)]
mod tests;
