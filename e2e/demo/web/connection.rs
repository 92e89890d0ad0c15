//! One HTTP/1.1 connection as a client that believes nothing: every answer must be whole.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::target::Target;

const LONGEST_ANSWER: usize = 1 << 20;
/// How long a server is waited for that is to close a connection.
const END: Duration = Duration::from_secs(1);

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The name has no address.
    Resolve,
    /// Nobody listens there.
    Refused,
    /// There is no way there.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The connection was reset in the middle of a request.
    Reset,
    /// The connection was closed, in good order, without an answer.
    Closed,
    /// The connection was closed in the middle of an answer.
    ShortBody,
    /// An answer other than 200.
    Status,
    /// What came is no HTTP.
    Malformed,
    /// The generator itself was too busy to send it.
    Generator,
}

impl Kind {
    /// As reports have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::ShortBody => "short_body",
            Self::Status => "status",
            Self::Malformed => "malformed",
            Self::Generator => "generator",
        }
    }
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    fn from_error(doing: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::ConnectionRefused => Kind::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Kind::Timeout,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                Kind::Reset
            }
            _ => Kind::Unreachable,
        };
        Self::new(kind, format!("{doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.kind.name(), self.message)
    }
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// Whether the server takes further requests on this connection.
    pub(crate) keep: bool,
}

/// What is left until a deadline.
fn left(deadline: Instant, doing: &str) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Failure::new(Kind::Timeout, format!("{doing}: too late")));
    }
    Ok(left)
}

/// A connection between requests.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Both ends, for messages.
    ends: String,
}

impl Connection {
    /// Connects to the first address of the target that answers.
    pub(crate) fn open(target: &Target, deadline: Instant) -> Result<Self, Failure> {
        let addresses = target.resolve().map_err(|error| {
            Failure::new(
                Kind::Resolve,
                format!("looking up {}: {error}", target.host),
            )
        })?;
        let nothing = format!("looking up {}: no address", target.host);
        let mut failure = Failure::new(Kind::Resolve, nothing);
        for address in addresses {
            let doing = format!("connecting to {address}");
            let connected = TcpStream::connect_timeout(&address, left(deadline, &doing)?)
                .and_then(|stream| stream.set_nodelay(true).map(|()| stream));
            match connected {
                Ok(stream) => {
                    let local = stream.local_addr();
                    let local = local.map_or_else(|_| "?".to_owned(), |local| local.to_string());
                    let ends = format!("{local} to {address}");
                    return Ok(Self { stream, ends });
                }
                Err(error) => failure = Failure::from_error(&doing, &error),
            }
        }
        Err(failure)
    }

    /// Whether the server has ended the connection since the last answer.
    pub(crate) fn has_ended(&self) -> bool {
        let peeked = self
            .stream
            .set_nonblocking(true)
            .and_then(|()| self.stream.peek(&mut [0]));
        let open = matches!(&peeked, Err(error) if error.kind() == ErrorKind::WouldBlock);
        !open || self.stream.set_nonblocking(false).is_err()
    }

    /// Sends a request and reads the whole answer to it.
    pub(crate) fn request(
        &mut self,
        target: &Target,
        keep: bool,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: {}\r\n\r\n",
            target.path,
            target.authority(),
            if keep { "keep-alive" } else { "close" },
        );
        let doing = format!("{}: sending the request", self.ends);
        self.stream
            .set_write_timeout(Some(left(deadline, &doing)?))
            .and_then(|()| self.stream.write_all(request.as_bytes()))
            .map_err(|error| Failure::from_error(&doing, &error))?;
        self.answer(deadline)
    }

    fn answer(&mut self, deadline: Instant) -> Result<Answer, Failure> {
        let mut received = Vec::new();
        let head = loop {
            if let Some(head) = Head::parse(&received).map_err(|what| self.malformed(&what))? {
                break head;
            }
            if self.read(&mut received, deadline)? == 0 {
                let (kind, what) = if received.is_empty() {
                    (Kind::Closed, "closed without an answer".to_owned())
                } else {
                    let said = format!("closed after {} bytes of the head", received.len());
                    (Kind::ShortBody, said)
                };
                return Err(Failure::new(kind, format!("{}: {what}", self.ends)));
            }
        };
        let whole = head.length + head.body;
        while received.len() < whole {
            if self.read(&mut received, deadline)? == 0 {
                let message = format!(
                    "{}: closed after {} of {} bytes",
                    self.ends,
                    received.len() - head.length,
                    head.body
                );
                return Err(Failure::new(Kind::ShortBody, message));
            }
        }
        if received.len() > whole {
            return Err(self.malformed("more than the answer"));
        }
        Ok(Answer {
            status: head.status,
            body: received.split_off(head.length),
            keep: head.keep,
        })
    }

    fn malformed(&self, what: &str) -> Failure {
        Failure::new(Kind::Malformed, format!("{}: {what}", self.ends))
    }

    fn read(&mut self, received: &mut Vec<u8>, deadline: Instant) -> Result<usize, Failure> {
        let doing = format!("{}: reading the answer", self.ends);
        let mut bytes = [0; 4096];
        let count = self
            .stream
            .set_read_timeout(Some(left(deadline, &doing)?))
            .and_then(|()| self.stream.read(&mut bytes))
            .map_err(|error| Failure::from_error(&doing, &error))?;
        received.extend_from_slice(&bytes[..count]);
        if received.len() > LONGEST_ANSWER {
            return Err(self.malformed("an answer of more than a mebibyte"));
        }
        Ok(count)
    }

    /// Lets the server close first, as it is to do after the last answer: the port that is blocked for a while then is
    /// the server's, of which there is only one, rather than one of ours.
    pub(crate) fn end(mut self) {
        let deadline = Instant::now() + END;
        let mut rest = Vec::new();
        // The answer was whole: how the connection ends no longer matters.
        while matches!(self.read(&mut rest, deadline), Ok(count) if count > 0) {}
    }
}

/// The first part of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes of the head itself.
    length: usize,
    /// Bytes of the body.
    body: usize,
    keep: bool,
}

impl Head {
    /// `None` while it is not whole.
    fn parse(received: &[u8]) -> Result<Option<Self>, String> {
        let Some(end) = received.windows(4).position(|part| part == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&received[..end]);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ');
        let (version, status) = (words.next(), words.next());
        let status = status.and_then(|status| status.parse().ok());
        let (Some("HTTP/1.1"), Some(status)) = (version, status) else {
            return Err(format!("{first:?} is no answer"));
        };
        let (mut body, mut keep) = (None, true);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => body = value.trim().parse().ok(),
                "connection" => keep = !value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Ok(Some(Self {
            status,
            length: end + 4,
            body: body.ok_or("an answer without a length")?,
            keep,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_how_much_follows_and_whether_the_connection_stays() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nab";
        assert_eq!(
            Head::parse(head),
            Ok(Some(Head {
                status: 200,
                length: head.len() - 2,
                body: 3,
                keep: false
            }))
        );
        assert_eq!(Head::parse(&head[..20]), Ok(None));
        let kept = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
        let kept = Head::parse(kept).expect("a head").expect("a whole one");
        assert!(kept.keep && kept.status == 503);
        for noise in [
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(Head::parse(noise.as_bytes()).is_err(), "{noise}");
        }
    }
}
