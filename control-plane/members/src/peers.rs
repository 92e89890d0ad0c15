//! [`Peers`]: the store's transport. A lane per member, each with one connection at a time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, anyhow};
use gantry_rpc::raft::RaftMessages;
use gantry_rpc::raft::raft_client::RaftClient;
use gantry_store::{Outgoing, Store, Transport};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::dial;
use crate::roster::Roster;

/// Batches queued for a member that is slow or away; what is beyond is dropped, since consensus repeats itself.
const QUEUE: usize = 1024;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// The largest gRPC message: a log entry may hold an object of 3 MiB, a chunk of a state is smaller.
pub(crate) const PEER_MESSAGE: usize = 16 << 20;

/// Sends the store's messages to the other servers. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    /// Where this server listens.
    address: SocketAddr,
    /// What connections are made with, as of the moment.
    tls: watch::Receiver<Arc<ClientConfig>>,
    /// Where the others listen.
    book: Mutex<BTreeMap<u64, SocketAddr>>,
    lanes: Mutex<BTreeMap<u64, mpsc::Sender<Vec<Outgoing>>>>,
    store: OnceLock<Store>,
    /// The store calls from a thread of its own.
    runtime: tokio::runtime::Handle,
}

impl Peers {
    /// Those of the server `id`, which listens at `address`. Must be called within a tokio runtime.
    pub fn new(id: u64, address: SocketAddr, tls: watch::Receiver<Arc<ClientConfig>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                id,
                address,
                tls,
                book: Mutex::default(),
                lanes: Mutex::default(),
                store: OnceLock::new(),
                runtime: tokio::runtime::Handle::current(),
            }),
        }
    }

    /// Whom to tell that a member is out of reach.
    pub fn attach(&self, store: Store) {
        // A second store would be a mistake of this crate, without consequence.
        self.inner.store.set(store).ok();
    }

    /// Notes where a member listens.
    pub fn learn(&self, member: u64, address: SocketAddr) {
        if member != self.inner.id {
            self.inner.book.lock().insert(member, address);
        }
    }

    /// Where a member listens.
    pub fn address_of(&self, member: u64) -> Option<SocketAddr> {
        self.inner.book.lock().get(&member).copied()
    }

    /// A gRPC connection to a member.
    pub async fn connect(&self, member: u64) -> Result<Channel> {
        let address = self
            .address_of(member)
            .ok_or_else(|| anyhow!("nobody knows where server {member} listens"))?;
        dial::channel(address, self.tls()).await
    }

    /// For single requests to other servers.
    pub fn tls(&self) -> Arc<ClientConfig> {
        self.inner.tls.borrow().clone()
    }
}

/// Keeps `peers` to the addresses that the store has, until told to stop.
pub async fn follow_addresses(peers: Peers, roster: Roster, store: Store, stop: CancellationToken) {
    loop {
        let Ok(mut changes) = store.watch(&[Roster::table()], store.revision()) else {
            // The history was cut this moment: from now on, then.
            tokio::task::yield_now().await;
            continue;
        };
        for server in roster.all() {
            peers.learn(server.id, server.address);
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                events = changes.next() => match events {
                    Some(Ok(_)) => for server in roster.all() {
                        peers.learn(server.id, server.address);
                    },
                    Some(Err(_)) => break,
                    None => return,
                }
            }
        }
    }
}

impl Transport for Peers {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        let mut lanes = self.inner.lanes.lock();
        let lane = lanes.entry(to).or_insert_with(|| {
            let (lane, queue) = mpsc::channel(QUEUE);
            self.inner
                .runtime
                .spawn(serve_lane(self.clone(), to, queue));
            lane
        });
        // A full lane belongs to a member that does not read.
        lane.try_send(messages).ok();
    }
}

/// Keeps a member supplied for as long as this server runs.
async fn serve_lane(peers: Peers, to: u64, mut queue: mpsc::Receiver<Vec<Outgoing>>) {
    let mut delay = FIRST_DELAY;
    loop {
        // Connect when there is something to say.
        let Some(first) = queue.recv().await else {
            return;
        };
        let began = tokio::time::Instant::now();
        let supplied = gantry_tasks::caught(supply(&peers, to, first, &mut queue)).await;
        if let Err(error) = supplied.unwrap_or_else(|panicked| Err(panicked.into())) {
            tracing::debug!(
                member = to,
                error = format!("{error:#}"),
                "a server is out of reach"
            );
        }
        if let Some(store) = peers.inner.store.get() {
            store.report_unreachable(to);
        }
        if began.elapsed() > LONGEST_DELAY {
            delay = FIRST_DELAY;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
        // What was queued meanwhile is stale: consensus says it again.
        while queue.try_recv().is_ok() {}
    }
}

/// One connection, until it breaks.
async fn supply(
    peers: &Peers,
    to: u64,
    first: Vec<Outgoing>,
    queue: &mut mpsc::Receiver<Vec<Outgoing>>,
) -> Result<()> {
    let channel = peers.connect(to).await?;
    let mut client = RaftClient::new(channel).max_encoding_message_size(PEER_MESSAGE);
    let (stream, outbound) = mpsc::channel::<RaftMessages>(16);
    let call = client.deliver(ReceiverStream::new(outbound));
    tokio::pin!(call);
    let mut batch = RaftMessages {
        messages: bytes_of(first),
        from: peers.inner.id,
        address: peers.inner.address.to_string(),
    };
    loop {
        tokio::select! {
            ended = &mut call => {
                ended?;
                return Err(anyhow!("the server closed the connection"));
            }
            sent = stream.send(std::mem::take(&mut batch)) => {
                sent.map_err(|_| anyhow!("the connection is gone"))?;
            }
        }
        tokio::select! {
            ended = &mut call => {
                ended?;
                return Err(anyhow!("the server closed the connection"));
            }
            messages = queue.recv() => match messages {
                Some(messages) => batch.messages = bytes_of(messages),
                None => return Ok(()),
            }
        }
    }
}

fn bytes_of(messages: Vec<Outgoing>) -> Vec<bytes::Bytes> {
    messages.into_iter().map(|message| message.bytes).collect()
}
