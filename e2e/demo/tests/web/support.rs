//! The demo's program as a process, and a door that leads to another server on demand.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything here may take before it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Repeats an attempt until it gives something.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The program, which ends with the value.
pub(crate) struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gantry-demo-web"))
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, output }
    }

    /// A server of this version, and where it listens.
    pub(crate) fn serve(version: &str) -> (Self, SocketAddr) {
        let mut server = Self::start(&[], &[("PORT", "0"), ("VERSION", version)]);
        let line = server.line();
        let port = line.split(' ').nth(5).expect("it says its port");
        let port = port.parse().expect("a number");
        (server, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it can be read");
        line
    }

    pub(crate) fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it can be told to stop");
    }

    /// Waits for its end; returns what else it has printed.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = eventually("the program's end", || {
            self.child.try_wait().expect("waits")
        });
        let mut rest = String::new();
        self.output
            .read_to_string(&mut rest)
            .expect("it can be read");
        (status, rest)
    }

    /// As [`Program::end`], of a load: its total.
    pub(crate) fn total(self) -> Value {
        let (status, output) = self.end();
        assert!(status.success(), "{status}");
        let last = output.lines().last().expect("a report");
        let mut report: Value = serde_json::from_str(last).expect("JSON");
        report["total"].take()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A relay to one of several servers, as a Service is: a connection stays with the server it was made to.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    leads_to: Arc<RwLock<SocketAddr>>,
}

impl Door {
    pub(crate) fn open(leads_to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let door = Self {
            address: listener.local_addr().expect("an address"),
            leads_to: Arc::new(RwLock::new(leads_to)),
        };
        let listening = door.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                // Held until connected: whoever sets the door anew then knows that nobody connects to the old server.
                let leads_to = listening.leads_to.read().expect("nobody panics");
                match TcpStream::connect(*leads_to) {
                    Ok(server) => relay(client, server),
                    Err(error) => eprintln!("connecting to {}: {error}", *leads_to),
                }
            }
        });
        door
    }

    /// Leads further connections to another server.
    pub(crate) fn lead_to(&self, server: SocketAddr) {
        *self.leads_to.write().expect("nobody panics") = server;
    }
}

fn relay(client: TcpStream, server: TcpStream) {
    for (mut from, mut to) in [
        (client.try_clone(), server.try_clone()),
        (Ok(server), Ok(client)),
    ]
    .map(|(from, to)| (from.expect("a copy"), to.expect("a copy")))
    {
        std::thread::spawn(move || {
            to.set_nodelay(true).ok();
            // A connection that is reset ends here as one that is closed.
            std::io::copy(&mut from, &mut to).ok();
            to.shutdown(Shutdown::Write).ok();
        });
    }
}
