//! `WWW-Authenticate`: how one may say who one is (RFC 9110, section 11.6.1).

/// One way, with what it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// `Bearer`, `Basic`, ...
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads a header's value: as many challenges as are well formed, of which a header may hold several. O(length).
pub(crate) fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (token, after) = token(rest);
        if token.is_empty() {
            break;
        }
        let after_blanks = after.trim_start_matches([' ', '\t']);
        match (after_blanks.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = value_of(value.trim_start_matches([' ', '\t'])) else {
                    break;
                };
                challenge.parameters.push((token.to_owned(), value));
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                found.push(Challenge {
                    scheme: token.to_owned(),
                    parameters: Vec::new(),
                });
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    found
}

fn token(text: &str) -> (&str, &str) {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let end = text.bytes().position(|byte| !is_part(byte));
    text.split_at(end.unwrap_or(text.len()))
}

/// A token, or a quoted string without its quotes.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, after) = token(text);
        return Some((value.to_owned(), after));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(letters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str) -> Vec<(String, Vec<(String, String)>)> {
        let found = challenges(header).into_iter();
        found
            .map(|challenge| (challenge.scheme, challenge.parameters))
            .collect()
    }

    fn owned(scheme: &str, parameters: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
        let parameters = parameters.iter();
        let parameters = parameters.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        (scheme.to_owned(), parameters.collect())
    }

    #[test]
    fn what_registries_send() {
        assert_eq!(
            read(
                r#"Bearer realm="https://a.example/token",service="a.example",scope="repository:a/b:pull,push""#
            ),
            [owned(
                "Bearer",
                &[
                    ("realm", "https://a.example/token"),
                    ("service", "a.example"),
                    ("scope", "repository:a/b:pull,push")
                ]
            )]
        );
        assert_eq!(
            read(r#"Basic realm="a \"b\"" , bearer realm=x,, service = "y""#),
            [
                owned("Basic", &[("realm", "a \"b\"")]),
                owned("bearer", &[("realm", "x"), ("service", "y")])
            ]
        );
        assert_eq!(
            read("Negotiate, Basic"),
            [owned("Negotiate", &[]), owned("Basic", &[])]
        );
        let challenge = &challenges("BEARER Realm=\"x\"")[0];
        assert_eq!(challenge.parameter("realm"), Some("x"));
        assert_eq!(challenge.parameter("service"), None);
    }

    #[test]
    fn what_is_none_ends_it() {
        assert!(read("").is_empty());
        assert!(read("=x").is_empty());
        assert!(read("\"Basic\"").is_empty());
        assert_eq!(read("Basic realm=\"open"), [owned("Basic", &[])]);
        assert_eq!(read("Basic realm=\"x\\"), [owned("Basic", &[])]);
        assert_eq!(read("Basic ( realm=x"), [owned("Basic", &[])]);
    }
}
