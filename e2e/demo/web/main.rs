//! The demo image's only program: an HTTP/1.1 server on port 8080 (or `$PORT`) with nothing but `std`.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | one line: version and pod name |
//! | `/info` | the same as JSON |
//! | `/burn?ms=N` | burns a CPU for N milliseconds (at most 60 000) |
//! | `/slow?ms=N` | answers after N milliseconds (at most 60 000) |
//! | `/healthz` | 200 |
//! | `/ready` | 200 or 503, switched by `/ready/on` and `/ready/off` |
//!
//! On SIGTERM it takes what the kernel has accepted already, stops listening, finishes the requests in flight,
//! closes idle connections and exits 0. The version comes from `$VERSION`, the pod's name from its host name.
#![allow(unknown_lints)]

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// The longest a request may ask to burn or wait.
const LONGEST: Duration = Duration::from_secs(60);
/// How often a waiting thread looks whether the server is stopping.
const TICK: Duration = Duration::from_millis(20);

static STOPPING: AtomicBool = AtomicBool::new(false);

struct Server {
    version: String,
    pod: String,
    ready: AtomicBool,
    served: AtomicUsize,
    /// Connections that have a request in hand.
    busy: Mutex<usize>,
    idle: Condvar,
}

#[expect(
    unsafe_code,
    reason = "std has no signal handling, and the image holds no other code"
)]
mod signal {
    //! SIGTERM sets a flag.
    use std::sync::atomic::Ordering;

    const SIGTERM: i32 = 15;

    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    }

    extern "C" fn stop(_: i32) {
        super::STOPPING.store(true, Ordering::SeqCst);
    }

    /// Installs the handler; without one, an init process ignores SIGTERM.
    pub(crate) fn install() {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe {
            signal(SIGTERM, stop);
        }
    }
}

fn main() -> ExitCode {
    signal::install();
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8080u16);
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = listener.set_nonblocking(true) {
        eprintln!("cannot wait for connections: {error}");
        return ExitCode::FAILURE;
    }
    let server = Arc::new(Server {
        version: std::env::var("VERSION").unwrap_or_else(|_| "dev".to_owned()),
        pod: hostname(),
        ready: AtomicBool::new(true),
        served: AtomicUsize::new(0),
        busy: Mutex::new(0),
        idle: Condvar::new(),
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
                server.begin();
                let server = server.clone();
                std::thread::spawn(move || server.connection(&stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if STOPPING.load(Ordering::SeqCst) {
                    return;
                }
                wait_readable(listener);
            }
            Err(error) => eprintln!("accepting a connection: {error}"),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "std cannot wait for a listener with a signal in between"
)]
fn wait_readable(listener: &TcpListener) {
    use std::os::fd::AsRawFd;

    #[repr(C)]
    struct PollFd {
        fd: i32,
        events: i16,
        revents: i16,
    }
    unsafe extern "C" {
        fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
    }
    const POLLIN: i16 = 1;
    let mut fd = PollFd {
        fd: listener.as_raw_fd(),
        events: POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd is passed, and poll keeps no pointer. A signal interrupts it; the time-out covers a
    // signal that arrives just before.
    unsafe {
        poll(&raw mut fd, 1, 1000);
    }
}

/// A request's method-less essence: its path and query.
struct Request {
    target: String,
    keep_alive: bool,
}

impl Server {
    fn begin(&self) {
        *self
            .busy
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) += 1;
    }

    fn end(&self) {
        *self
            .busy
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) -= 1;
        self.idle.notify_all();
    }

    /// Waits until no request is in flight.
    fn drain(&self) {
        let mut busy = self
            .busy
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        while *busy > 0 {
            busy = self
                .idle
                .wait(busy)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Serves one connection; counted as busy except between requests.
    fn connection(&self, stream: &TcpStream) {
        let prepared = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(TICK)))
            .and_then(|()| stream.set_nodelay(true));
        if let Err(error) = prepared {
            eprintln!("a connection: {error}");
            return self.end();
        }
        let mut reader = BufReader::new(stream);
        // The first request of a connection is owed an answer even while stopping.
        let mut first = true;
        loop {
            let Some(request) = read_request(&mut reader, first) else {
                if first {
                    self.end();
                }
                return;
            };
            if !first {
                self.begin();
            }
            let keep = request.keep_alive && !STOPPING.load(Ordering::SeqCst);
            let (status, body) = self.answer(&request.target);
            let connection = if keep { "keep-alive" } else { "close" };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
                if body.starts_with('{') {
                    "application/json"
                } else {
                    "text/plain"
                },
                body.len(),
            );
            let mut stream = stream;
            let sent = stream.write_all(format!("{head}{body}").as_bytes());
            self.served.fetch_add(1, Ordering::Relaxed);
            self.end();
            if !keep || sent.is_err() {
                return;
            }
            first = false;
        }
    }

    fn answer(&self, target: &str) -> (&'static str, String) {
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

/// Reads a request's head. `None` when the peer is done, or when the server stops between requests.
fn read_request(reader: &mut BufReader<&TcpStream>, owed: bool) -> Option<Request> {
    let deadline = Instant::now() + Duration::from_secs(75);
    let mut head = String::new();
    loop {
        let start = head.len();
        match reader.read_line(&mut head) {
            Ok(0) => return None,
            Ok(_) if head[start..].trim().is_empty() && start > 0 => break,
            Ok(_) if head.len() > 64 * 1024 => return None,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let stopping = STOPPING.load(Ordering::SeqCst) && head.is_empty() && !owed;
                if stopping || Instant::now() > deadline {
                    return None;
                }
            }
            Err(_) => return None,
        }
    }
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
