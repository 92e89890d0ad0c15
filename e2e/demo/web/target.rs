//! Where requests go.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// A host, a port and what is asked for there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// A name or an address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query.
    pub(crate) path: String,
}

impl Target {
    /// From `http://HOST[:PORT][/PATH]`; an IPv6 address stands in brackets.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{url:?} {what}: give http://HOST[:PORT][/PATH]");
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| wrong("is no HTTP address"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = match authority.rsplit_once(':') {
            // A colon within the brackets of an address.
            Some((_, tail)) if tail.ends_with(']') => (authority, "80"),
            Some(parts) => parts,
            None => (authority, "80"),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let port = port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| wrong("has a port that is none"))?;
        Ok(Self {
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }

    /// Asks the system's resolver; an address is its own answer.
    pub(crate) fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }

    /// As it stands in a request's `Host`.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16, path: &str) -> Target {
        Target {
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        }
    }

    #[test]
    fn targets_are_hosts_with_ports_and_paths() {
        for (url, expected) in [
            ("http://web", target("web", 80, "/")),
            (
                "http://web.shop:8080/a?b=c",
                target("web.shop", 8080, "/a?b=c"),
            ),
            ("http://10.0.0.1:30080/", target("10.0.0.1", 30080, "/")),
            ("http://[fd00::1]/x", target("fd00::1", 80, "/x")),
            ("http://[fd00::1]:81", target("fd00::1", 81, "/")),
        ] {
            assert_eq!(Target::parse(url), Ok(expected), "{url}");
        }
        assert_eq!(target("fd00::1", 81, "/").authority(), "[fd00::1]:81");
        for (url, complaint) in [
            ("web:80", "no HTTP address"),
            ("http:///x", "names no host"),
            ("http://:80", "names no host"),
            ("http://web:http", "port"),
            ("http://web:0", "port"),
        ] {
            let said = Target::parse(url).expect_err(url);
            assert!(said.contains(complaint), "{url}: {said}");
        }
    }
}
