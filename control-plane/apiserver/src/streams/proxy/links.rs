//! Where links and redirects of a target lead: what is meant for its own root is below the proxy's path instead.

/// What links are rewritten by.
#[derive(Clone, Debug)]
pub(super) struct Links {
    /// Before the target's own paths: `/api/v1/namespaces/NAMESPACE/pods/NAME/proxy`.
    prefix: Vec<u8>,
    /// As the target is called: `ADDRESS:PORT`.
    target: Vec<u8>,
    /// As the client calls this server, in its `Host`.
    server: Vec<u8>,
}

/// A URL taken apart; `path` and `rest` (query and fragment, with their marks) are all of it behind the authority.
struct Url<'a> {
    scheme: &'a [u8],
    /// With the user, if one is named.
    authority: &'a [u8],
    path: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Url<'a> {
    /// Of what leads to a path; `None` for anything else, as `mailto:` is.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let end = text.iter().position(|byte| matches!(byte, b'?' | b'#'));
        let (text, rest) = text.split_at(end.unwrap_or(text.len()));
        let (scheme, text) = match text.iter().position(|byte| matches!(byte, b':' | b'/')) {
            Some(at) if text.get(at) == Some(&b':') => {
                let (scheme, behind) = text.split_at(at);
                let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
                    && scheme
                        .iter()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
                (Some(scheme).filter(|_| is_scheme)?, behind.get(1..)?)
            }
            _ => (&[][..], text),
        };
        let (authority, path) = match text.strip_prefix(b"//") {
            Some(behind) => {
                let end = behind.iter().position(|byte| *byte == b'/');
                behind.split_at(end.unwrap_or(behind.len()))
            }
            None => (&[][..], text),
        };
        Some(Self {
            scheme,
            authority,
            path,
            rest,
        })
    }

    /// Whether it is of the web: a script whose text begins with a slash is no path.
    fn is_web(&self) -> bool {
        let known: [&[u8]; 3] = [b"", b"http", b"https"];
        known
            .iter()
            .any(|known| self.scheme.eq_ignore_ascii_case(known))
    }

    fn host(&self) -> &'a [u8] {
        let user = self.authority.iter().rposition(|byte| *byte == b'@');
        let host = user.and_then(|user| self.authority.get(user + 1..));
        host.unwrap_or(self.authority)
    }
}

impl Links {
    pub(super) fn new(prefix: &str, target: String, server: &[u8]) -> Self {
        Self {
            prefix: escaped(prefix.as_bytes()),
            target: target.into(),
            server: server.to_owned(),
        }
    }

    /// Where a URL of the target's must lead; `None` where it leads as it stands: it is relative, or another host's.
    pub(super) fn rewritten(&self, text: &[u8]) -> Option<Vec<u8>> {
        let url = Url::parse(text)?;
        let host = url.host();
        let is_own = host.is_empty() || host == self.target || host == self.server;
        if !is_own || !url.is_web() || !url.path.starts_with(b"/") {
            return None;
        }
        let mut whole = Vec::with_capacity(text.len() + self.prefix.len());
        if !host.is_empty() && host == self.server {
            if !url.scheme.is_empty() {
                whole.extend_from_slice(url.scheme);
                whole.push(b':');
            }
            whole.extend_from_slice(b"//");
            whole.extend_from_slice(url.authority);
        }
        match url.path.starts_with(&self.prefix) {
            true => whole.extend_from_slice(url.path),
            false => self.join(url.path, &mut whole),
        }
        whole.extend_from_slice(url.rest);
        Some(whole)
    }

    /// The prefix and a path behind it, without empty parts and `.`; a `..` takes away the part before it.
    fn join(&self, path: &[u8], whole: &mut Vec<u8>) {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in self.prefix.split(is_slash).chain(path.split(is_slash)) {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        for part in &parts {
            whole.push(b'/');
            whole.extend_from_slice(part);
        }
        if path.ends_with(b"/") || parts.is_empty() {
            whole.push(b'/');
        }
    }

    /// A `Location`, rewritten and with nothing in it that does not belong into a URL.
    pub(super) fn location(&self, text: &[u8]) -> Vec<u8> {
        match self.rewritten(text) {
            Some(rewritten) => escaped(&rewritten),
            None => escaped(text),
        }
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

/// Percent-encodes what may stand nowhere in a URL, or means something to who writes URLs into pages.
fn escaped(text: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        let stands = byte.is_ascii_alphanumeric() || b"-_.~%:/?#[]@!$&*+,;=".contains(byte);
        match stands {
            true => escaped.push(*byte),
            false => {
                let digit = |value: u8| DIGITS.get(usize::from(value)).copied();
                escaped.push(b'%');
                escaped.extend(digit(byte >> 4));
                escaped.extend(digit(byte & 15));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/d/pods/p:8080/proxy";

    fn links() -> Links {
        Links::new(PREFIX, "10.244.0.1:8080".to_owned(), b"localhost:8001")
    }

    #[test]
    fn what_leads_to_the_target_leads_through_the_proxy() {
        let links = links();
        for (url, path) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("/a?b=/c#/d", "/a?b=/c#/d"),
            ("/a//b/./c/../d", "/a/b/d"),
            ("/a%2Fb", "/a%2Fb"),
            ("http://10.244.0.1:8080/a", "/a"),
            ("https://10.244.0.1:8080/a?b", "/a?b"),
            ("//10.244.0.1:8080/a", "/a"),
            ("http://user@10.244.0.1:8080/a", "/a"),
        ] {
            let rewritten = links.rewritten(url.as_bytes()).expect(url);
            assert_eq!(
                String::from_utf8_lossy(&rewritten),
                format!("{PREFIX}{path}"),
                "{url}"
            );
        }
        let whole = |url: &str| {
            let rewritten = links.rewritten(url.as_bytes()).expect(url);
            String::from_utf8_lossy(&rewritten).into_owned()
        };
        // Kubernetes keeps scheme and host where they are those that the client itself uses.
        assert_eq!(
            whole("http://localhost:8001/a"),
            format!("http://localhost:8001{PREFIX}/a")
        );
        assert_eq!(
            whole("//localhost:8001/a"),
            format!("//localhost:8001{PREFIX}/a")
        );
        let there = format!("{PREFIX}/a");
        assert_eq!(whole(&there), there, "it leads there already");
        assert_eq!(whole("/../x"), "/api/v1/namespaces/d/pods/p:8080/x");
        assert_eq!(whole("/../../../../../../../../x"), "/x");
        assert_eq!(whole("/../../../../../../../.."), "/");
    }

    #[test]
    fn what_leads_elsewhere_stays() {
        let links = links();
        for url in [
            "",
            "a/b",
            "../a",
            "?a=/b",
            "#/a",
            "http://example.com/a",
            "//example.com/a",
            "http://10.244.0.1/a",
            "http://10.244.0.1:8080",
            "http://10.244.0.1:8080@example.com/a",
            "mailto:a@b/c",
            "javascript:/a/",
            "data:text/plain,/a",
            "1:/a",
            ":/a",
        ] {
            let rewritten = links.rewritten(url.as_bytes());
            assert_eq!(rewritten, None, "{url}");
        }
    }

    #[test]
    fn redirects_hold_nothing_but_urls() {
        let links = links();
        let location = |text: &str| {
            let bytes = links.location(text.as_bytes());
            String::from_utf8(bytes).expect("ASCII")
        };
        assert_eq!(
            location("/to/%00<script>alert(1)</script>/"),
            format!("{PREFIX}/to/%00%3Cscript%3Ealert%281%29%3C/script%3E/")
        );
        assert_eq!(
            location("http://example.com/\u{e4} '\""),
            "http://example.com/%C3%A4%20%27%22"
        );
        assert_eq!(location("relative?q=1#f"), "relative?q=1#f");
    }
}
