//! Which nodes are connected, when they were last heard, and the streams that wait for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_apiserver::{Clock, NodeStream, NodeStreams, node_keys};
use gantry_rpc::node::{
    CloseStream, HeartbeatAnswer, OpenStream, ServerMessage, ServicesEverywhere, StreamFrame,
    server_message,
};
use gantry_store::Store;
use gantry_usage::ServiceName;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::ending::{Ending, Said};
use super::routing::{Everywhere, Routing};
use super::scraping::Board;
use super::wakes::{Wakes, Wanted};
use crate::metrics::METRICS;

/// Frames buffered per direction of a stream, before the sender waits.
const STREAM_BUFFER: usize = 16;
/// How long a node may take to dial back for a stream.
const DIAL_BACK: Duration = Duration::from_secs(10);

/// The node's side of a stream that has been asked for.
pub(crate) struct Waiting {
    pub(crate) to_node: mpsc::Receiver<StreamFrame>,
    pub(crate) from_node: mpsc::Sender<StreamFrame>,
    arrived: oneshot::Sender<()>,
    node: String,
}

struct Connection {
    /// Tells an old connection of the same node from its successor.
    generation: u64,
    down: mpsc::Sender<Said>,
    last_heard: Instant,
    /// Comes when this is not the node's connection any more.
    ending: Ending,
}

/// Why a stream could not be opened, in words for the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("node \"{0}\" is not connected: its agent is down or cut off")]
    NotConnected(String),
    #[error("node \"{0}\" did not answer within {seconds} s", seconds = DIAL_BACK.as_secs())]
    NoAnswer(String),
}

/// The registry of the nodes' connections, shared by all links of one server.
#[derive(Default)]
pub struct Hub {
    nodes: Mutex<BTreeMap<String, Connection>>,
    streams: Mutex<BTreeMap<String, Waiting>>,
    generations: AtomicU64,
    /// Bumped whenever a node comes or goes.
    changed: watch::Sender<u64>,
    routing: Mutex<Routing>,
    /// What nodes are to ask their pods for.
    pub(crate) scraping: Board,
    /// Bumped when the keys of a node change, for those of its connections that wait for that.
    keys: Mutex<BTreeMap<String, watch::Sender<u64>>>,
    wakes: Wakes,
}

#[async_trait]
impl NodeStreams for Hub {
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String> {
        let opened = Hub::open(self, node, request).await;
        opened.map_err(|error| error.to_string())
    }
}

impl Hub {
    /// Wakes whenever the keys change that a node may show.
    pub(crate) fn keys_of(&self, node: &str) -> watch::Receiver<u64> {
        let mut keys = self.keys.lock();
        keys.entry(node.to_owned()).or_default().subscribe()
    }

    /// The keys of a node have changed.
    pub(crate) fn keys_changed(&self, node: &str) {
        let mut keys = self.keys.lock();
        match keys.get(node) {
            Some(changed) if changed.receiver_count() == 0 => drop(keys.remove(node)),
            Some(changed) => changed.send_modify(|count| *count += 1),
            None => {}
        }
    }

    /// The keys of any node may have changed. Forgets the nodes of which nobody waits.
    pub(crate) fn all_keys_changed(&self) {
        let mut keys = self.keys.lock();
        keys.retain(|_, changed| changed.receiver_count() > 0);
        for changed in keys.values() {
            changed.send_modify(|count| *count += 1);
        }
    }

    /// Services that nothing serves, and that nodes hold connections to, from now on. A receiver that lags waits for nodes to
    /// say it again, as they do each second.
    pub fn wakes(&self) -> broadcast::Receiver<Wanted> {
        self.wakes.subscribe()
    }

    /// A node holds connections to a Service.
    pub(crate) fn wanted(&self, node: &str, service: ServiceName) {
        self.wakes.tell(node, service);
    }

    /// The names of the series that pods are asked for, in whichever namespace; none where this server does not lead.
    pub fn wanted_series(&self) -> BTreeSet<String> {
        self.scraping.names()
    }

    /// Whether this is the latest link of a node.
    fn is_latest(&self, node: &str, generation: u64) -> bool {
        let nodes = self.nodes.lock();
        nodes
            .get(node)
            .is_some_and(|connection| connection.generation == generation)
    }

    /// Registers a node's new connection; returns its generation.
    pub(crate) fn connected(&self, node: &str, down: mpsc::Sender<Said>) -> u64 {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let connection = Connection {
            generation,
            down,
            last_heard: Instant::now(),
            ending: Ending::default(),
        };
        let before = self.nodes.lock().insert(node.to_owned(), connection);
        // A node has one link, however many it opens.
        if let Some(before) = before {
            let why = Status::aborted("the node has opened another link");
            before.ending.end(why);
        }
        self.routing.lock().joined(node);
        self.count_changed();
        generation
    }

    /// The end of a connection: one that has come, when it is not its node's any more.
    pub(crate) fn ending(&self, node: &str, generation: u64) -> Ending {
        let nodes = self.nodes.lock();
        let own = nodes
            .get(node)
            .filter(|connection| connection.generation == generation);
        own.map_or_else(Ending::past, |connection| connection.ending.clone())
    }

    fn count_changed(&self) {
        let connected = i64::try_from(self.nodes.lock().len()).unwrap_or(i64::MAX);
        METRICS.nodes_connected.set(connected);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Forgets a connection, unless a newer one has taken its place.
    pub(crate) fn disconnected(&self, node: &str, generation: u64) {
        let mut nodes = self.nodes.lock();
        if nodes
            .get(node)
            .is_some_and(|connection| connection.generation == generation)
        {
            let removed = nodes.remove(node);
            drop(nodes);
            if let Some(connection) = removed {
                let why = Status::cancelled("the node closed the link");
                connection.ending.end(why);
            }
            self.routing.lock().left(node);
            self.count_changed();
        }
        let mut keys = self.keys.lock();
        if keys
            .get(node)
            .is_some_and(|changed| changed.receiver_count() == 0)
        {
            keys.remove(node);
        }
    }

    /// Ends the connection of a node, which opens another if it lives.
    pub(crate) fn disconnect(&self, node: &str) {
        let removed = self.nodes.lock().remove(node);
        if let Some(connection) = removed {
            let why = Status::unavailable("this node was silent for too long");
            connection.ending.end(why);
            self.routing.lock().left(node);
            self.count_changed();
        }
    }

    /// Ends every connection: nodes look for the server that leads.
    pub fn disconnect_all(&self) {
        for (_, connection) in std::mem::take(&mut *self.nodes.lock()) {
            let why = Status::failed_precondition("this server no longer leads");
            connection.ending.end(why);
        }
        *self.routing.lock() = Routing::default();
        self.count_changed();
    }

    /// Notes that a node is alive.
    pub(crate) fn heard(&self, node: &str, generation: u64) {
        if let Some(connection) = self.nodes.lock().get_mut(node)
            && connection.generation == generation
        {
            connection.last_heard = Instant::now();
        }
    }

    /// Tells a node what time it is here. One with a full queue does without: the next answer tells as much.
    pub(crate) fn answer_heartbeat(
        &self,
        node: &str,
        generation: u64,
        sequence: u64,
        clock: &Clock,
    ) {
        let nodes = self.nodes.lock();
        let Some(connection) = nodes
            .get(node)
            .filter(|connection| connection.generation == generation)
        else {
            return;
        };
        let answer = HeartbeatAnswer {
            sequence,
            unix_milliseconds: clock.now() / 1_000_000,
        };
        let message = ServerMessage {
            message: Some(server_message::Message::HeartbeatAnswer(answer)),
        };
        if connection.down.try_send(Ok(message)).is_err() {
            tracing::debug!(node, "the node is too busy to be told the time");
        }
    }

    /// The nodes whose rules count, see [`Routing::expect`].
    pub(crate) fn expect(&self, nodes: impl IntoIterator<Item = String>) {
        let answers = self.routing.lock().expect(nodes);
        self.tell(answers);
    }

    /// A change of a Service or EndpointSlice is on its way to a node.
    pub(crate) fn sending_services(&self, revision: u64) {
        self.routing.lock().sending(revision, Instant::now());
    }

    /// A node's rules reflect a revision.
    pub(crate) fn programmed(&self, node: &str, generation: u64, revision: u64) {
        if !self.is_latest(node, generation) {
            return;
        }
        let answers = self.routing.lock().programmed(node, revision);
        self.tell(answers);
    }

    /// A node wants to know when every node's rules reflect a revision.
    pub(crate) fn await_services(&self, node: &str, generation: u64, revision: u64) {
        if !self.is_latest(node, generation) {
            return;
        }
        let answers = self.routing.lock().wait(node, revision, Instant::now());
        self.tell(answers);
    }

    fn tell(&self, answers: Vec<Everywhere>) {
        let nodes = self.nodes.lock();
        for Everywhere { node, revision } in answers {
            let Some(connection) = nodes.get(&node) else {
                continue;
            };
            let message = ServerMessage {
                message: Some(server_message::Message::ServicesEverywhere(
                    ServicesEverywhere { revision },
                )),
            };
            // One with a full queue does without: its pods wait for their time limit.
            if connection.down.try_send(Ok(message)).is_err() {
                tracing::debug!(node, revision, "the node is too busy to be answered");
            }
        }
    }

    /// How long each connected node has been silent.
    pub(crate) fn silence(&self) -> BTreeMap<String, Duration> {
        self.nodes
            .lock()
            .iter()
            .map(|(node, connection)| (node.clone(), connection.last_heard.elapsed()))
            .collect()
    }

    /// Wakes whenever a node comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Asks a node for a stream and waits until it has dialled back.
    pub(crate) async fn open(
        &self,
        node: &str,
        mut request: OpenStream,
    ) -> Result<NodeStream, OpenError> {
        let down = match self.nodes.lock().get(node) {
            Some(connection) => connection.down.clone(),
            None => return Err(OpenError::NotConnected(node.to_owned())),
        };
        let id = uuid::Uuid::new_v4().to_string();
        request.stream_id.clone_from(&id);
        let (to_node, from_client) = mpsc::channel(STREAM_BUFFER);
        let (to_client, from_node) = mpsc::channel(STREAM_BUFFER);
        let (arrived, arrival) = oneshot::channel();
        self.streams.lock().insert(
            id.clone(),
            Waiting {
                to_node: from_client,
                from_node: to_client,
                arrived,
                node: node.to_owned(),
            },
        );
        // However this ends, also when its client leaves meanwhile, nothing goes on waiting.
        let _forget = Forget { hub: self, id };
        let message = ServerMessage {
            message: Some(server_message::Message::OpenStream(request)),
        };
        let answered = async {
            down.send(Ok(message))
                .await
                .map_err(|_| OpenError::NotConnected(node.to_owned()))?;
            arrival
                .await
                .map_err(|_| OpenError::NoAnswer(node.to_owned()))
        };
        tokio::time::timeout(DIAL_BACK, answered)
            .await
            .unwrap_or_else(|_| Err(OpenError::NoAnswer(node.to_owned())))?;
        Ok(NodeStream { to_node, from_node })
    }

    /// Tells a node that nobody listens to a stream any more; one that is over already is none the worse for it.
    pub(crate) async fn close(&self, node: &str, stream_id: String) {
        let down = self
            .nodes
            .lock()
            .get(node)
            .map(|connection| connection.down.clone());
        let message = ServerMessage {
            message: Some(server_message::Message::CloseStream(CloseStream {
                stream_id,
            })),
        };
        if let Some(down) = down {
            // A link that has ended took its streams with it.
            down.send(Ok(message)).await.ok();
        }
    }

    /// Hands the waiting end of a stream to the node that dialled back for it; only to the node that was asked.
    pub(crate) fn claim(&self, node: &str, stream_id: &str) -> Option<Waiting> {
        let mut streams = self.streams.lock();
        match streams.get(stream_id) {
            Some(waiting) if waiting.node == node => streams.remove(stream_id),
            _ => None,
        }
    }
}

/// Tells the connections of nodes when the keys change that their nodes may show, until told to stop.
pub async fn follow_keys(store: Store, hub: Arc<Hub>, stop: CancellationToken) {
    loop {
        let Ok(mut changes) = store.watch(&[node_keys::table()], store.revision()) else {
            // The history was cut this moment: from now on, then.
            tokio::task::yield_now().await;
            continue;
        };
        // What was missed before.
        hub.all_keys_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = changes.next() => match event {
                    Some(Ok(event)) => hub.keys_changed(&event.key.name),
                    Some(Err(_)) => break,
                    None => return,
                }
            }
        }
    }
}

/// Ends the wait for a stream; one that was claimed is not waited for any more.
struct Forget<'a> {
    hub: &'a Hub,
    id: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.hub.streams.lock().remove(&self.id);
    }
}

impl Waiting {
    /// Tells the opener that the node is there, and returns the node's ends.
    pub(crate) fn accept(self) -> (mpsc::Receiver<StreamFrame>, mpsc::Sender<StreamFrame>) {
        // The opener may have given up this moment; then both ends are closed and the stream ends by itself.
        self.arrived.send(()).ok();
        (self.to_node, self.from_node)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::calls::Calls;

    #[tokio::test]
    async fn a_stream_reaches_the_node_that_was_asked_and_no_other() {
        let hub = Arc::new(Hub::default());
        let (down, mut messages) = mpsc::channel(4);
        hub.connected("one", down);
        let opening = tokio::spawn({
            let hub = hub.clone();
            async move { hub.open("one", OpenStream::default()).await }
        });
        let Some(server_message::Message::OpenStream(request)) = messages
            .recv()
            .await
            .expect("asked")
            .expect("a message")
            .message
        else {
            panic!("a request for a stream");
        };
        assert!(
            hub.claim("two", &request.stream_id).is_none(),
            "another node cannot take it"
        );
        let (_, from_node) = hub
            .claim("one", &request.stream_id)
            .expect("waiting")
            .accept();
        let mut ends = opening.await.expect("no panic").expect("opened");
        from_node.send(StreamFrame::default()).await.expect("open");
        assert!(ends.from_node.recv().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_absent_or_silent_node_is_named() {
        let hub = Hub::default();
        let error = hub
            .open("gone", OpenStream::default())
            .await
            .err()
            .expect("not connected");
        assert!(error.to_string().contains("node \"gone\" is not connected"));
        let (down, _messages) = mpsc::channel(4);
        hub.connected("mute", down);
        let error = hub
            .open("mute", OpenStream::default())
            .await
            .err()
            .expect("no answer");
        assert!(error.to_string().contains("did not answer"));
    }

    #[tokio::test]
    async fn a_heartbeat_is_answered_with_the_time_here_on_its_own_connection() {
        let hub = Hub::default();
        let clock = Clock::new(|| 1_767_323_045_678_901_234);
        let (down, mut messages) = mpsc::channel(1);
        let generation = hub.connected("one", down);
        hub.answer_heartbeat("one", generation + 1, 6, &clock);
        hub.answer_heartbeat("other", generation, 6, &clock);
        // There is room for one: the other is left out, and nobody waits.
        for sequence in [7, 8] {
            hub.answer_heartbeat("one", generation, sequence, &clock);
        }
        let answer = messages.recv().await.expect("answered").expect("a message");
        let expected = server_message::Message::HeartbeatAnswer(HeartbeatAnswer {
            sequence: 7,
            unix_milliseconds: 1_767_323_045_678,
        });
        assert_eq!(answer.message, Some(expected));
        assert!(messages.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_client_that_leaves_leaves_nothing_waiting() {
        let hub = Hub::default();
        let (down, mut messages) = mpsc::channel(4);
        hub.connected("mute", down);
        tokio::select! {
            biased;
            _ = hub.open("mute", OpenStream::default()) => panic!("nobody answered"),
            message = messages.recv() => assert!(message.is_some()),
        }
        assert!(hub.streams.lock().is_empty());
    }

    #[tokio::test]
    async fn the_end_of_a_stream_is_said_on_the_link() {
        let hub = Hub::default();
        hub.close("gone", "s".to_owned()).await;
        let (down, mut messages) = mpsc::channel(1);
        hub.connected("one", down);
        hub.close("one", "s".to_owned()).await;
        let message = messages.recv().await.expect("told").expect("a message");
        assert!(matches!(
            message.message,
            Some(server_message::Message::CloseStream(close)) if close.stream_id == "s"
        ));
    }

    #[test]
    fn an_old_connection_does_not_remove_its_successor() {
        let hub = Hub::default();
        let old = hub.connected("one", mpsc::channel(1).0);
        let new = hub.connected("one", mpsc::channel(1).0);
        hub.disconnected("one", old);
        assert_eq!(hub.silence().len(), 1);
        hub.disconnected("one", new);
        assert!(hub.silence().is_empty());
    }

    #[tokio::test]
    async fn another_link_of_a_node_ends_the_one_before() {
        let hub = Hub::default();
        let (down, queue) = mpsc::channel(1);
        let old = hub.connected("one", down);
        let ending = hub.ending("one", old);
        let place = Calls::default().links.take("one").expect("a place");
        let messages = ending.until(queue, place);
        tokio::pin!(messages);
        let new = hub.connected("one", mpsc::channel(1).0);
        let told = messages.next().await.expect("told").expect_err("an end");
        assert!(told.message().contains("another link"), "{told}");
        ending.ended().await;
        hub.ending("one", old).ended().await;
        assert!(hub.is_latest("one", new) && !hub.is_latest("one", old));
    }

    #[tokio::test]
    async fn every_way_to_lose_a_connection_ends_it() {
        let ways: [fn(&Hub, u64); 3] = [
            |hub, generation| hub.disconnected("one", generation),
            |hub, _| hub.disconnect("one"),
            |hub, _| hub.disconnect_all(),
        ];
        for lose in ways {
            let hub = Hub::default();
            let generation = hub.connected("one", mpsc::channel(1).0);
            let ending = hub.ending("one", generation);
            lose(&hub, generation);
            ending.ended().await;
            assert!(hub.silence().is_empty());
        }
    }

    #[test]
    fn whoever_waits_for_keys_is_told_and_nobody_is_remembered_in_vain() {
        let hub = Hub::default();
        let mut keys = hub.keys_of("one");
        hub.keys_changed("one");
        assert!(keys.has_changed().expect("the hub is there"));
        keys.mark_unchanged();
        hub.keys_changed("other");
        assert!(!keys.has_changed().expect("the hub is there"));
        drop(keys);
        hub.keys_changed("one");
        assert!(hub.keys.lock().is_empty());
    }
}
