//! The network between Gantry's members: a lane per member, one connection at a time, as between real servers but
//! without TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_store::{Outgoing, Store, Transport};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::rpc::bench::Packets;
use crate::rpc::bench::member_client::MemberClient;

const QUEUE: usize = 1024;
const RETRY: Duration = Duration::from_millis(50);
pub(crate) const MESSAGE: usize = 16 << 20;

/// Sends to the other members. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lanes {
    inner: Arc<Inner>,
}

struct Inner {
    book: Mutex<BTreeMap<u64, SocketAddr>>,
    lanes: Mutex<BTreeMap<u64, mpsc::Sender<Vec<Outgoing>>>>,
    store: OnceLock<Store>,
    runtime: tokio::runtime::Handle,
}

impl Lanes {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(book: BTreeMap<u64, SocketAddr>) -> Self {
        Self {
            inner: Arc::new(Inner {
                book: Mutex::new(book),
                lanes: Mutex::default(),
                store: OnceLock::new(),
                runtime: tokio::runtime::Handle::current(),
            }),
        }
    }

    /// Whom to tell that a member is out of reach.
    pub(crate) fn attach(&self, store: Store) {
        // There is one store per process.
        self.inner.store.set(store).ok();
    }

    pub(crate) fn learn(&self, member: u64, address: SocketAddr) {
        self.inner.book.lock().insert(member, address);
    }

    fn address_of(&self, member: u64) -> Option<SocketAddr> {
        self.inner.book.lock().get(&member).copied()
    }
}

impl Transport for Lanes {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        let mut lanes = self.inner.lanes.lock();
        let lane = lanes.entry(to).or_insert_with(|| {
            let (lane, queue) = mpsc::channel(QUEUE);
            self.inner
                .runtime
                .spawn(serve_lane(self.clone(), to, queue));
            lane
        });
        // A full lane belongs to a member that does not read; consensus repeats itself.
        lane.try_send(messages).ok();
    }
}

async fn serve_lane(lanes: Lanes, to: u64, mut queue: mpsc::Receiver<Vec<Outgoing>>) {
    while let Some(first) = queue.recv().await {
        if let Err(error) = supply(&lanes, to, first, &mut queue).await {
            tracing::debug!(member = to, error = format!("{error:#}"), "out of reach");
        }
        if let Some(store) = lanes.inner.store.get() {
            store.report_unreachable(to);
        }
        tokio::time::sleep(RETRY).await;
        while queue.try_recv().is_ok() {}
    }
}

/// One connection, until it breaks.
async fn supply(
    lanes: &Lanes,
    to: u64,
    first: Vec<Outgoing>,
    queue: &mut mpsc::Receiver<Vec<Outgoing>>,
) -> Result<()> {
    let address = lanes.address_of(to).context("nobody knows where it is")?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let mut client =
        MemberClient::new(endpoint.connect().await?).max_encoding_message_size(MESSAGE);
    let (stream, outbound) = mpsc::channel(16);
    let call = client.deliver(ReceiverStream::new(outbound));
    tokio::pin!(call);
    let mut messages = first;
    loop {
        let packets = messages.into_iter().map(|message| message.bytes).collect();
        tokio::select! {
            ended = &mut call => { ended?; return Ok(()); }
            sent = stream.send(Packets { packets }) => sent.context("the connection is gone")?,
        }
        messages = tokio::select! {
            ended = &mut call => { ended?; return Ok(()); }
            next = queue.recv() => match next {
                Some(messages) => messages,
                None => return Ok(()),
            }
        };
    }
}
