//! The web server.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | one line: version and pod name |
//! | `/info` | the same as JSON |
//! | `/client` | the address that the request comes from |
//! | `/burn?ms=N` | burns a CPU for N milliseconds (at most 60 000) |
//! | `/slow?ms=N` | answers after N milliseconds (at most 60 000) |
//! | `/healthz` | 200 |
//! | `/metrics` | requests served and connections open, as Prometheus reads them |
//! | `/crash` | none: the process aborts |
//! | `/ready` | 200 or 503, switched by `/ready/on` and `/ready/off` |
//!
//! On SIGTERM it takes what the kernel has accepted already and stops listening: who is still sent here then is refused.
//! Requests in flight are finished, and every answer from now on says `Connection: close`. A connection that is idle is
//! kept for [`LAME_DUCK`] to answer the request that may be on its way, and then closed. The version comes from
//! `$VERSION`, the pod's name from its host name.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::signal::{self, Woken};

/// The longest a request may ask to burn or wait.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(75);
/// How long a kept-alive connection may be silent once the server stops.
const LAME_DUCK: Duration = Duration::from_secs(1);
/// The same for one that has not asked for anything yet, and is owed an answer.
const OWED: Duration = Duration::from_secs(5);
const LONGEST_HEAD: usize = 64 * 1024;
/// Connections that wait to be accepted, as far as the kernel lets them.
const QUEUE: i32 = 4096;
/// Attempts to have a thread are no further apart, whether one ends or not.
const AGAIN: Duration = Duration::from_millis(20);
/// Of a thread that serves a connection, in bytes.
const STACK: usize = 256 * 1024;

struct Server {
    version: String,
    pod: String,
    ready: AtomicBool,
    served: AtomicUsize,
    open: Mutex<usize>,
    closed: Condvar,
}

/// On every address of both families, or of IPv4 where the kernel has no other.
fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    signal::deepen(&listener, QUEUE)?;
    Ok(listener)
}

/// Listens until told to stop, and returns when every connection is closed.
pub(crate) fn run() -> ExitCode {
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8080u16);
    let listener = match listen(port) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Port 0 asks for any.
    let bound = listener
        .set_nonblocking(true)
        .and_then(|()| listener.local_addr());
    let port = match bound {
        Ok(address) => address.port(),
        Err(error) => {
            eprintln!("cannot wait for connections: {error}");
            return ExitCode::FAILURE;
        }
    };
    let server = Arc::new(Server {
        version: std::env::var("VERSION").unwrap_or_else(|_| "dev".to_owned()),
        pod: hostname(),
        ready: AtomicBool::new(true),
        served: AtomicUsize::new(0),
        open: Mutex::new(0),
        closed: Condvar::new(),
    });
    println!(
        "web {} listens on port {port} in {}",
        server.version, server.pod
    );
    serve(&listener, &server);
    drop(listener);
    server.drain();
    println!(
        "web {} served {} requests and stops",
        server.version,
        server.served.load(Ordering::Relaxed)
    );
    ExitCode::SUCCESS
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

/// Accepts until told to stop and nothing is left in the kernel's queue.
fn serve(listener: &TcpListener, server: &Arc<Server>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                // Counted before the thread runs, so that draining sees it.
                let connection = Connection::new(server.clone(), stream);
                serve_apart(connection, server);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if signal::is_stopping() {
                    return;
                }
                signal::wait(listener, None, true);
            }
            Err(error) => eprintln!("accepting a connection: {error}"),
        }
    }
}

/// Serves a connection on a thread of its own. Where none can be had, it waits until one ends, and is not closed: its client may
/// have asked already.
fn serve_apart(connection: Connection, server: &Server) {
    let connection = Arc::new(Mutex::new(Some(connection)));
    let begin = || {
        let own = connection.clone();
        let thread = std::thread::Builder::new().stack_size(STACK);
        thread.spawn(move || {
            let connection = own.lock().map(|mut connection| connection.take());
            if let Ok(Some(connection)) = connection {
                connection.serve();
            }
        })
    };
    while let Err(error) = begin() {
        eprintln!("a thread for a connection: {error}");
        server.wait_closed(AGAIN);
    }
}

impl Server {
    fn open(&self) -> MutexGuard<'_, usize> {
        self.open
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until no connection is open.
    fn drain(&self) {
        let mut open = self.open();
        while *open > 0 {
            open = self
                .closed
                .wait(open)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Until a connection is closed, or so long.
    fn wait_closed(&self, longest: Duration) {
        let waited = self.closed.wait_timeout(self.open(), longest);
        drop(waited);
    }

    /// In the text format of Prometheus.
    fn metrics(&self) -> String {
        let (served, open) = (self.served.load(Ordering::Relaxed), *self.open());
        format!(
            "# TYPE web_requests_total counter\nweb_requests_total {served}\n\
             # TYPE web_connections gauge\nweb_connections {open}\n"
        )
    }

    fn answer(&self, target: &str, client: &TcpStream) -> (&'static str, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let duration = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("ms="))
            .and_then(|value| value.parse().ok())
            .map_or(Duration::from_millis(100), Duration::from_millis)
            .min(LONGEST);
        match path {
            "/" => (
                "200 OK",
                format!("web {} from {}\n", self.version, self.pod),
            ),
            "/info" => (
                "200 OK",
                format!(
                    "{{\"version\":\"{}\",\"pod\":\"{}\",\"served\":{}}}\n",
                    self.version,
                    self.pod,
                    self.served.load(Ordering::Relaxed)
                ),
            ),
            "/client" => match client.peer_addr() {
                Ok(address) => ("200 OK", format!("{}\n", address.ip().to_canonical())),
                Err(error) => ("500 Internal Server Error", format!("{error}\n")),
            },
            "/burn" => {
                let start = Instant::now();
                let mut rounds: u64 = 0;
                while start.elapsed() < duration {
                    rounds = std::hint::black_box(rounds.wrapping_add(1));
                }
                ("200 OK", format!("burned {} ms\n", duration.as_millis()))
            }
            "/slow" => {
                let start = Instant::now();
                while start.elapsed() < duration {
                    std::thread::park_timeout(duration.saturating_sub(start.elapsed()));
                }
                ("200 OK", format!("waited {} ms\n", duration.as_millis()))
            }
            "/healthz" => ("200 OK", "ok\n".to_owned()),
            "/metrics" => ("200 OK", self.metrics()),
            "/crash" => {
                eprintln!("told to crash");
                std::process::abort();
            }
            "/ready" if self.ready.load(Ordering::SeqCst) => ("200 OK", "ready\n".to_owned()),
            "/ready" => ("503 Service Unavailable", "not ready\n".to_owned()),
            "/ready/on" | "/ready/off" => {
                self.ready.store(path == "/ready/on", Ordering::SeqCst);
                ("200 OK", format!("{path}\n"))
            }
            _ => ("404 Not Found", format!("no such path: {path}\n")),
        }
    }
}

/// A request without what does not matter here.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// Path and query.
    target: String,
    keep_alive: bool,
}

/// A connection, open as long as the value lives.
struct Connection {
    server: Arc<Server>,
    stream: TcpStream,
    /// What has arrived of further requests.
    received: Vec<u8>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        *self.server.open() -= 1;
        self.server.closed.notify_all();
    }
}

impl Connection {
    fn new(server: Arc<Server>, stream: TcpStream) -> Self {
        *server.open() += 1;
        Self {
            server,
            stream,
            received: Vec::new(),
        }
    }

    fn serve(mut self) {
        let prepared = self
            .stream
            .set_nonblocking(false)
            .and_then(|()| self.stream.set_nodelay(true));
        if let Err(error) = prepared {
            eprintln!("a connection: {error}");
            return;
        }
        let mut patience = OWED;
        while let Some(request) = self.request(patience) {
            let (status, body) = self.server.answer(&request.target, &self.stream);
            // Looked at as late as can be: whoever is told to keep the connection will use it.
            let keep = request.keep_alive && !signal::is_stopping();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: {}\r\n\r\n{body}",
                if body.starts_with('{') {
                    "application/json"
                } else {
                    "text/plain"
                },
                body.len(),
                if keep { "keep-alive" } else { "close" },
            );
            let sent = self.stream.write_all(answer.as_bytes());
            self.server.served.fetch_add(1, Ordering::Relaxed);
            if !keep || sent.is_err() {
                return;
            }
            patience = LAME_DUCK;
        }
    }

    /// The next request. `None` when the peer is done or was silent for too long, which is `patience` at the most once
    /// the server stops.
    fn request(&mut self, patience: Duration) -> Option<Request> {
        let mut until = Instant::now() + IDLE;
        let mut heeding = true;
        loop {
            if let Some(request) = take_request(&mut self.received) {
                return request;
            }
            match signal::wait(&self.stream, Some(until), heeding) {
                Woken::Readable => {}
                Woken::Stopping => {
                    heeding = false;
                    until = until.min(Instant::now() + patience);
                    continue;
                }
                Woken::Late => return None,
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(count) if count > 0 && self.received.len() < LONGEST_HEAD => {
                    self.received.extend_from_slice(&bytes[..count]);
                }
                _ => return None,
            }
        }
    }
}

/// Takes the first whole head out of what was received: a request, or nothing that is one.
fn take_request(received: &mut Vec<u8>) -> Option<Option<Request>> {
    let end = received.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let rest = received.split_off(end);
    let head = std::mem::replace(received, rest);
    Some(parse(&String::from_utf8_lossy(&head)))
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (_method, target, version) = (words.next()?, words.next()?.to_owned(), words.next()?);
    let connection = lines
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("connection")
                .then(|| value.trim().to_lowercase())
        })
        .unwrap_or_default();
    let keep_alive = match version {
        "HTTP/1.0" => connection == "keep-alive",
        _ => connection != "close",
    };
    Some(Request { target, keep_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_one_by_one() {
        let mut received =
            b"GET /a HTTP/1.1\r\nHost: web\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\nGET"
                .to_vec();
        let request = |target: &str, keep_alive| {
            Some(Some(Request {
                target: target.to_owned(),
                keep_alive,
            }))
        };
        assert_eq!(take_request(&mut received), request("/a", true));
        assert_eq!(take_request(&mut received), request("/b", false));
        assert_eq!(take_request(&mut received), None);
        assert_eq!(received, b"GET");
        let mut old = b"GET /c HTTP/1.0\r\n\r\n".to_vec();
        assert_eq!(take_request(&mut old), request("/c", false));
        let mut noise = b"hello\r\n\r\n".to_vec();
        assert_eq!(take_request(&mut noise), Some(None));
    }
}
