//! Connections from the nodes: where a service leads, and how long it takes to get there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gantry_e2e::Fleet;
use tokio::sync::mpsc;

/// Between two looks: what is measured is known to within this.
const PACE: Duration = Duration::from_millis(1);
/// Between two questions whether to go on.
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(1);

const GO: u8 = 0;
const STAY: u8 = 1;
const END: u8 = 2;

/// An answer that differs from the one before.
struct Seen {
    node: usize,
    backend: String,
    at: Instant,
}

/// Threads on every node that ask a service all the time; they end with the value.
pub(crate) struct Probes {
    order: Arc<AtomicU8>,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// What each node has reached last.
    last: Vec<(String, Instant)>,
}

impl Probes {
    pub(crate) fn start(fleet: &Fleet, service: SocketAddr) -> Result<Self> {
        let order = Arc::new(AtomicU8::new(GO));
        let (tell, seen) = mpsc::unbounded_channel();
        let nodes = fleet.node_names();
        let last = vec![(String::new(), Instant::now()); nodes.len()];
        for (node, name) in nodes.iter().enumerate() {
            let (tell, order) = (tell.clone(), order.clone());
            // It ends when it is told to, or when nobody listens.
            drop(fleet.spawn_on_node(name, move || ask_on(node, service, &order, &tell))?);
        }
        Ok(Self { order, seen, last })
    }

    pub(crate) fn pause(&self) {
        self.order.store(STAY, Ordering::Relaxed);
    }

    pub(crate) fn resume(&self) {
        self.order.store(GO, Ordering::Relaxed);
    }

    /// Waits until connections from every node reach a backend; returns when the last did.
    pub(crate) async fn all_reach(&mut self, backend: &str, nodes: usize) -> Result<Instant> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let reached = self.last.iter().filter(|(last, _)| last == backend);
            let times: Vec<Instant> = reached.map(|(_, at)| *at).collect();
            if let Some(latest) = times.iter().max().filter(|_| times.len() == nodes) {
                return Ok(*latest);
            }
            match tokio::time::timeout_at(deadline, self.seen.recv()).await {
                Ok(Some(seen)) => self.last[seen.node] = (seen.backend, seen.at),
                Ok(None) => bail!("the probes have ended"),
                Err(_) => bail!("{backend} was not reached from every node: {:?}", self.last),
            }
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.order.store(END, Ordering::Relaxed);
    }
}

fn ask_on(node: usize, service: SocketAddr, order: &AtomicU8, tell: &mpsc::UnboundedSender<Seen>) {
    let mut last = String::new();
    loop {
        match order.load(Ordering::Relaxed) {
            GO => {}
            END => return,
            _ => {
                std::thread::park_timeout(PAUSE);
                continue;
            }
        }
        // Until there are rules, nobody answers.
        if let Ok(backend) = ask(service)
            && backend != last
        {
            last.clone_from(&backend);
            let at = Instant::now();
            if tell.send(Seen { node, backend, at }).is_err() {
                return;
            }
        }
        std::thread::park_timeout(PACE);
    }
}

/// The name of the pod that answers.
fn ask(service: SocketAddr) -> Result<String> {
    finish(TcpStream::connect_timeout(&service, TIMEOUT)?)
}

/// Asks for an answer and waits for the connection's end.
fn finish(mut stream: TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let last = answer.split_whitespace().last();
    Ok(last.context("an answer")?.to_owned())
}

/// The times that connections take, one after another. Each is used, since a server cannot be behind with those that it
/// has to answer.
pub(crate) fn connects(address: SocketAddr, count: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)
            .with_context(|| format!("connecting to {address}"))?;
        latencies.push(began.elapsed());
        finish(stream).with_context(|| format!("asking {address}"))?;
    }
    Ok(latencies)
}
