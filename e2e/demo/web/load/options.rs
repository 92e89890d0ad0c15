//! What load is asked for.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// How to ask.
pub(crate) const USAGE: &str = "\
usage: web                      serve on port 8080, or $PORT
       web load URL [OPTIONS]   send requests at a steady rate until SIGTERM

options of load:
  --rate N              requests per second (100)
  --connections N       kept-alive connections, used in turn (10)
  --mode MODE           new: a connection per request; keep-alive (new)
  --seconds N           stop after that long
  --timeout-ms N        a request that takes longer has failed (5000)
  --messages N          failures to tell in full (20)";

/// Whether requests share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A connection, and a look-up of the name, per request.
    New,
    /// Each connection serves until its end.
    KeepAlive,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::KeepAlive => "keep-alive",
        }
    }
}

/// Where requests go.
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

/// A load to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    /// Requests per second.
    pub(crate) rate: u32,
    /// Kept-alive connections while answers are in time; more are made when all of them wait.
    pub(crate) connections: usize,
    /// `None` for until told to stop.
    pub(crate) duration: Option<Duration>,
    /// A request that takes longer has failed.
    pub(crate) timeout: Duration,
    /// How many failures to tell in full.
    pub(crate) messages: usize,
}

impl Options {
    /// From the arguments after `load`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let (url, options) = arguments.split_first().ok_or("a URL is missing")?;
        let mut parsed = Self {
            target: Target::parse(url)?,
            mode: Mode::New,
            rate: 100,
            connections: 10,
            duration: None,
            timeout: Duration::from_secs(5),
            messages: 20,
        };
        let mut options = options.iter();
        while let Some(name) = options.next() {
            let value = options
                .next()
                .ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--rate" => parsed.rate = number(name, value, 1)?,
                "--connections" => parsed.connections = number(name, value, 1)? as usize,
                "--seconds" => {
                    parsed.duration = Some(Duration::from_secs(number(name, value, 1)?.into()));
                }
                "--timeout-ms" => {
                    parsed.timeout = Duration::from_millis(number(name, value, 1)?.into());
                }
                "--messages" => parsed.messages = number(name, value, 0)? as usize,
                "--mode" => {
                    parsed.mode = [Mode::New, Mode::KeepAlive]
                        .into_iter()
                        .find(|mode| mode.name() == value)
                        .ok_or_else(|| format!("--mode is new or keep-alive, not {value:?}"))?;
                }
                _ => return Err(format!("{name:?} is no option of load")),
            }
        }
        Ok(parsed)
    }
}

fn number(name: &str, value: &str, least: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|number| *number >= least)
        .ok_or_else(|| format!("{name} is a whole number from {least}, not {value:?}"))
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

    #[test]
    fn options_have_defaults_and_limits() {
        let parse = |text: &str| {
            let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Options::parse(&arguments)
        };
        let usual = parse("http://web").expect("a URL is enough");
        assert_eq!(
            (usual.rate, usual.mode, usual.duration),
            (100, Mode::New, None)
        );
        let asked = parse(
            "http://web --rate 500 --mode keep-alive --connections 3 --seconds 2 --timeout-ms 70 --messages 0",
        )
        .expect("every option is known");
        assert_eq!(
            asked,
            Options {
                mode: Mode::KeepAlive,
                rate: 500,
                connections: 3,
                duration: Some(Duration::from_secs(2)),
                timeout: Duration::from_millis(70),
                messages: 0,
                ..usual
            }
        );
        for (text, complaint) in [
            ("", "URL is missing"),
            ("http://web --rate", "--rate needs a value"),
            ("http://web --rate 0", "--rate is a whole number from 1"),
            ("http://web --seconds soon", "--seconds is a whole number"),
            ("http://web --mode slow", "new or keep-alive"),
            ("http://web --fast 1", "no option of load"),
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains(complaint), "{text}: {said}");
        }
    }
}
