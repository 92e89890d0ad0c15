//! What is wrong with text that is no JSON, in the words of Go's scanner, which clients of Kubernetes know.

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value; `closes` where the end of a list may come instead.
    Value { closes: bool },
    /// The name of a member; `closes` where the end of the object may come instead.
    Name { closes: bool },
    /// The colon after a name.
    Colon,
    /// What follows a value.
    After,
}

/// What a value stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    List,
    Object,
}

/// Why Go's `encoding/json` would not read a text; none where it would.
///
/// The text is walked once; what is open is kept on a stack that grows no further than the text.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner {
        text,
        at: 0,
        open: Vec::new(),
    };
    scanner.document().err()
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    open: Vec<Within>,
}

type Scanned = Result<(), String>;

/// A character as Go quotes it.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x07 => r"'\a'".to_owned(),
        0x08 => r"'\b'".to_owned(),
        0x0b => r"'\v'".to_owned(),
        0x0c => r"'\f'".to_owned(),
        b' '..=b'~' => format!("'{}'", char::from(byte)),
        0..b' ' | 0x7f => format!(r"'\x{byte:02x}'"),
        // Each byte is taken for a character of its own.
        0x80..=0xa0 | 0xad => format!(r"'\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

impl Scanner<'_> {
    fn next(&mut self) -> Result<u8, String> {
        let byte = self.text.get(self.at).copied();
        self.at += 1;
        byte.ok_or_else(|| "unexpected end of JSON input".to_owned())
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn wrong<T>(byte: u8, place: &str) -> Result<T, String> {
        Err(format!("invalid character {} {place}", quoted(byte)))
    }

    fn document(&mut self) -> Scanned {
        let mut state = State::Value { closes: false };
        loop {
            self.skip_blanks();
            if state == State::After && self.open.is_empty() {
                return match self.peek() {
                    None => Ok(()),
                    Some(byte) => Self::wrong(byte, "after top-level value"),
                };
            }
            let byte = self.next()?;
            state = match state {
                State::Value { closes } => self.value(byte, closes)?,
                State::Name { closes: true } if byte == b'}' => self.close(),
                State::Name { .. } if byte == b'"' => {
                    self.string()?;
                    State::Colon
                }
                State::Name { .. } => {
                    return Self::wrong(byte, "looking for beginning of object key string");
                }
                State::Colon if byte == b':' => State::Value { closes: false },
                State::Colon => return Self::wrong(byte, "after object key"),
                State::After => self.after(byte)?,
            };
        }
    }

    fn close(&mut self) -> State {
        self.open.pop();
        State::After
    }

    fn after(&mut self, byte: u8) -> Result<State, String> {
        match (self.open.last(), byte) {
            (Some(Within::List), b',') => Ok(State::Value { closes: false }),
            (Some(Within::Object), b',') => Ok(State::Name { closes: false }),
            (Some(Within::List), b']') | (Some(Within::Object), b'}') => Ok(self.close()),
            (Some(Within::List), _) => Self::wrong(byte, "after array element"),
            _ => Self::wrong(byte, "after object key:value pair"),
        }
    }

    fn value(&mut self, byte: u8, closes: bool) -> Result<State, String> {
        match byte {
            b'{' => {
                self.open.push(Within::Object);
                return Ok(State::Name { closes: true });
            }
            b'[' => {
                self.open.push(Within::List);
                return Ok(State::Value { closes: true });
            }
            b']' if closes => return Ok(self.close()),
            b'"' => self.string()?,
            b'-' => match self.next()? {
                first @ b'0'..=b'9' => self.number(first)?,
                other => return Self::wrong(other, "in numeric literal"),
            },
            b'0'..=b'9' => self.number(byte)?,
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            b'n' => self.word("null")?,
            _ => return Self::wrong(byte, "looking for beginning of value"),
        }
        Ok(State::After)
    }

    fn word(&mut self, word: &str) -> Scanned {
        for expected in word.bytes().skip(1) {
            let byte = self.next()?;
            if byte != expected {
                let expected = char::from(expected);
                let place = format!("in literal {word} (expecting '{expected}')");
                return Self::wrong(byte, &place);
            }
        }
        Ok(())
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    /// A number whose first digit is read.
    fn number(&mut self, first: u8) -> Scanned {
        if first != b'0' {
            self.digits();
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            match self.next()? {
                b'0'..=b'9' => self.digits(),
                other => return Self::wrong(other, "after decimal point in numeric literal"),
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            let mut byte = self.next()?;
            if matches!(byte, b'+' | b'-') {
                byte = self.next()?;
            }
            match byte {
                b'0'..=b'9' => self.digits(),
                other => return Self::wrong(other, "in exponent of numeric literal"),
            }
        }
        Ok(())
    }

    /// A string whose first quotation mark is read.
    fn string(&mut self) -> Scanned {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => self.unicode()?,
                    other => return Self::wrong(other, "in string escape code"),
                },
                byte @ 0..b' ' => return Self::wrong(byte, "in string literal"),
                _ => {}
            }
        }
    }

    fn unicode(&mut self) -> Scanned {
        for _ in 0..4 {
            let byte = self.next()?;
            if !byte.is_ascii_hexdigit() {
                return Self::wrong(byte, r"in \u hexadecimal character escape");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_as_go_tells_it() {
        for (text, why) in [
            ("", "unexpected end of JSON input"),
            (" {\"a\": ", "unexpected end of JSON input"),
            ("a", "invalid character 'a' looking for beginning of value"),
            (
                "[1,]",
                "invalid character ']' looking for beginning of value",
            ),
            (
                "{bad",
                "invalid character 'b' looking for beginning of object key string",
            ),
            (
                "{\"a\":1,}",
                "invalid character '}' looking for beginning of object key string",
            ),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            (
                "{\"a\":1 \"b\"}",
                "invalid character '\"' after object key:value pair",
            ),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("01", "invalid character '1' after top-level value"),
            ("-x", "invalid character 'x' in numeric literal"),
            (
                "1.x",
                "invalid character 'x' after decimal point in numeric literal",
            ),
            ("1e+", "unexpected end of JSON input"),
            (
                "1ex",
                "invalid character 'x' in exponent of numeric literal",
            ),
            (
                "nope",
                "invalid character 'o' in literal null (expecting 'u')",
            ),
            (
                "trUe",
                "invalid character 'U' in literal true (expecting 'u')",
            ),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (
                r#""\u12g4""#,
                r"invalid character 'g' in \u hexadecimal character escape",
            ),
            (
                "'a'",
                r"invalid character '\'' looking for beginning of value",
            ),
            (
                "\u{c2}",
                "invalid character 'Ã' looking for beginning of value",
            ),
            (
                "\0",
                r"invalid character '\x00' looking for beginning of value",
            ),
        ] {
            assert_eq!(
                syntax_error(text.as_bytes()).as_deref(),
                Some(why),
                "{text}"
            );
        }
        assert_eq!(
            syntax_error(&[0x81]).as_deref(),
            Some(r"invalid character '\u0081' looking for beginning of value")
        );
        for good in [
            "{}",
            " [1, -2.5e-3, true, null, {\"a\": [\"\\u00e9\\n\"]}] ",
            "0",
            "\"\u{7f}é\"",
        ] {
            assert_eq!(syntax_error(good.as_bytes()), None, "{good}");
        }
        let deep = vec![b'['; 1_000_000];
        assert_eq!(
            syntax_error(&deep).as_deref(),
            Some("unexpected end of JSON input")
        );
    }

    proptest::proptest! {
        #[test]
        fn it_takes_what_serde_takes(text in "[\\[\\]{},:\"\\\\a-fu0-9. +truefalsn-]{0,24}") {
            if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
                proptest::prop_assert_eq!(syntax_error(text.as_bytes()), None);
            }
        }
    }
}
