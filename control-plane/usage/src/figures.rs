//! [`Figures`]: what all nodes have said, by node and by pod.

mod connections;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::broadcast;

pub use connections::{NewConnections, PodConnections};

use crate::FRESH;
use crate::held::Held;
use crate::ring::{Point, Ring};
use crate::sample::{
    Amounts, Connections, NodeSample, PodName, PodSample, Sample, ScrapedSample, ServiceName,
    Traffic,
};
use crate::scraped::{Scraped, ScrapedMetric, ScrapedValue};

/// News that wait for who listens. One that falls behind looks at everything.
const WAITING: usize = 1024;
/// Between looks for nodes that have not been heard for long.
pub(crate) const SWEEP: Duration = Duration::from_secs(10);
/// Nothing is known of a node any more that was silent for as long.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(60);

/// There are new figures of these pods and Services.
#[derive(Clone, Debug)]
pub struct News {
    /// Their node.
    pub node: Arc<str>,
    /// Those that the node has named.
    pub pods: Arc<[Arc<PodName>]>,
    /// Services to which it holds connections.
    pub held: Arc<[ServiceName]>,
}

/// What a container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name in the pod.
    pub name: Arc<str>,
    /// CPU, in billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory that cannot be reclaimed easily, bytes.
    pub working_set_bytes: u64,
}

/// What a pod uses, of which each container that runs has a rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// Which.
    pub pod: Arc<PodName>,
    /// Where it runs.
    pub node: Arc<str>,
    /// When it was heard, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What the rates are over: the shortest of them.
    pub window: Duration,
    /// By name.
    pub containers: Vec<ContainerUsage>,
    /// All of it together as the kernel has counted it, and what passed its link.
    pub counted: (Amounts, Option<Traffic>),
}

/// What a node uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUsage {
    /// Which.
    pub node: Arc<str>,
    /// When it was heard, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What the rate is over.
    pub window: Duration,
    /// CPU, in billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory that cannot be reclaimed easily, bytes.
    pub working_set_bytes: u64,
    /// As the kernel has counted it.
    pub counted: NodeSample,
}

/// The last minute of a container.
struct Container {
    name: Arc<str>,
    attempt: u32,
    working_set_bytes: u64,
    ring: Ring,
}

/// The last minute of a pod.
struct Pod {
    name: Arc<PodName>,
    amounts: Amounts,
    traffic: Option<Traffic>,
    connections: Option<Connections>,
    /// Those that were opened.
    opened: Ring,
    /// By name.
    containers: Vec<Container>,
    /// In which of its node's samples it was named last.
    named: u64,
}

/// The last minute of a node.
struct Node {
    name: Arc<str>,
    clock: u64,
    heard: Instant,
    unix_nanos: i64,
    last: NodeSample,
    ring: Ring,
    /// By uid.
    pods: HashMap<String, Pod>,
    samples: u64,
}

struct State {
    nodes: HashMap<Arc<str>, Node>,
    /// The node of each pod, by uid.
    places: HashMap<String, Arc<str>>,
    held: Held,
    swept: Option<Instant>,
}

/// What all nodes have said. Asked and told at once by many.
pub struct Figures {
    state: Mutex<State>,
    scraped: Mutex<Scraped>,
    news: broadcast::Sender<News>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                nodes: HashMap::new(),
                places: HashMap::new(),
                held: Held::default(),
                swept: None,
            }),
            scraped: Mutex::default(),
            news: broadcast::Sender::new(WAITING),
        }
    }
}

impl Figures {
    /// Takes what a node says of itself and its own pods, as it was heard at a time and a time since the epoch. Costs what
    /// the node has, whatever others have.
    pub fn take(&self, node: &str, sample: Sample, heard: Instant, unix_nanos: i64) {
        let held: Arc<[ServiceName]> = sample.held.keys().cloned().collect();
        let mut state = self.state.lock();
        let (name, pods) = state.take(node, sample, heard, unix_nanos);
        state.sweep(heard);
        drop(state);
        self.tell(name, pods, held);
    }

    /// As [`Self::take`], of what the node's own pods have answered that expose series.
    pub fn take_scraped(&self, node: &str, sample: ScrapedSample, heard: Instant, unix_nanos: i64) {
        let name: Arc<str> = node.into();
        let pods = self.scraped.lock().take(&name, sample, heard, unix_nanos);
        self.tell(name, pods, Arc::default());
    }

    fn tell(&self, node: Arc<str>, pods: Vec<Arc<PodName>>, held: Arc<[ServiceName]>) {
        if !pods.is_empty() || !held.is_empty() {
            let news = News {
                node,
                pods: pods.into(),
                held,
            };
            // Nobody listens, most of the time.
            self.news.send(news).ok();
        }
    }

    /// What comes from now on. A receiver that lags has missed some, and looks at what it wants to know.
    pub fn subscribe(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Forgets everything: nodes speak to another server now.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.nodes.clear();
        state.places.clear();
        state.held.clear();
        drop(state);
        self.scraped.lock().clear();
    }

    /// A metric that a pod exposes, by its uid: the sum of the series that are selected, or of their rates ([`crate::sources`]). An
    /// error is why the pod has not answered, and names it; none is known of one that was not asked, or has answered without it.
    pub fn scraped(
        &self,
        uid: &str,
        metric: &ScrapedMetric<'_>,
        now: Instant,
    ) -> Option<Result<ScrapedValue, String>> {
        self.scraped.lock().metric(uid, metric, now)
    }

    /// What a pod uses, by its uid, with rates over about so long. None where nothing fresh is known, or a container of it has
    /// no rate yet.
    pub fn pod(&self, uid: &str, window: Duration, now: Instant) -> Option<PodUsage> {
        let state = self.state.lock();
        let (node, pod) = state.fresh(uid, now)?;
        pod.usage(node, window)
    }

    /// As [`Self::pod`], of all pods of a namespace, or everywhere, sorted by namespace and name.
    pub fn pods(&self, namespace: Option<&str>, window: Duration, now: Instant) -> Vec<PodUsage> {
        let state = self.state.lock();
        let fresh = state.nodes.values().filter(|node| node.is_fresh(now));
        let mut all: Vec<PodUsage> = fresh
            .flat_map(|node| node.pods.values().map(move |pod| (node, pod)))
            .filter(|(_, pod)| namespace.is_none_or(|wanted| pod.name.namespace == wanted))
            .filter_map(|(node, pod)| pod.usage(node, window))
            .collect();
        drop(state);
        all.sort_by(|one, other| one.pod.cmp(&other.pod));
        all
    }

    /// How many connections all nodes together hold to a Service that nothing serves.
    pub fn held(&self, service: &ServiceName, now: Instant) -> u64 {
        let state = self.state.lock();
        let is_fresh = |node: &str| state.nodes.get(node).is_some_and(|node| node.is_fresh(now));
        state.held.of(service, is_fresh)
    }

    /// What a node uses.
    pub fn node(&self, node: &str, window: Duration, now: Instant) -> Option<NodeUsage> {
        let state = self.state.lock();
        let node = state.nodes.get(node)?;
        node.is_fresh(now).then(|| node.usage(window))?
    }

    /// As [`Self::node`], of all nodes, sorted by name.
    pub fn nodes(&self, window: Duration, now: Instant) -> Vec<NodeUsage> {
        let state = self.state.lock();
        let fresh = state.nodes.values().filter(|node| node.is_fresh(now));
        let mut all: Vec<NodeUsage> = fresh.filter_map(|node| node.usage(window)).collect();
        drop(state);
        all.sort_by(|one, other| one.node.cmp(&other.node));
        all
    }
}

impl State {
    /// A pod of a node that was heard lately.
    fn fresh(&self, uid: &str, now: Instant) -> Option<(&Node, &Pod)> {
        let node = self.nodes.get(self.places.get(uid)?)?;
        let pod = node.pods.get(uid)?;
        node.is_fresh(now).then_some((node, pod))
    }

    /// Takes a sample in; the node's name, and the pods that are in it.
    fn take(
        &mut self,
        node: &str,
        sample: Sample,
        heard: Instant,
        unix_nanos: i64,
    ) -> (Arc<str>, Vec<Arc<PodName>>) {
        let name = match self.nodes.get_key_value(node) {
            Some((name, _)) => name.clone(),
            None => Arc::from(node),
        };
        let known = self.nodes.entry(name.clone()).or_insert_with(|| Node {
            name: name.clone(),
            clock: sample.clock,
            heard,
            unix_nanos,
            last: NodeSample::default(),
            ring: Ring::default(),
            pods: HashMap::new(),
            samples: 0,
        });
        if known.clock != sample.clock {
            // Of another process: no time of it can be compared with one of before.
            known.clock = sample.clock;
            known.ring = Ring::default();
            for (uid, _) in known.pods.drain() {
                self.places.remove(&uid);
            }
        }
        (known.heard, known.unix_nanos) = (heard, unix_nanos);
        known.samples += 1;
        known.ring.push(Point {
            at: sample.node.at,
            count: sample.node.amounts.cpu_nanos,
        });
        known.last = sample.node;
        self.held.take(&name, sample.held);
        let mut names = Vec::with_capacity(sample.pods.len());
        let mut moved = Vec::new();
        for pod in sample.pods {
            let named = known.samples;
            let uid = pod.pod.uid.as_str();
            let own = match known.pods.get_mut(uid) {
                Some(own) => own,
                None => {
                    let before = self.places.insert(uid.to_owned(), name.clone());
                    moved.extend(
                        before
                            .filter(|before| *before != name)
                            .map(|before| (before, pod.pod.clone())),
                    );
                    let new = Pod::new(pod.pod.clone());
                    known.pods.entry(uid.to_owned()).or_insert(new)
                }
            };
            own.named = named;
            names.push(own.name.clone());
            own.take(pod);
        }
        let named = known.samples;
        let places = &mut self.places;
        known.pods.retain(|uid, pod| {
            let stays = pod.named == named;
            if !stays {
                places.remove(uid);
            }
            stays
        });
        // A pod is bound once; of two nodes that name it the one that did so last has been looked at last.
        for (before, pod) in moved {
            if let Some(node) = self.nodes.get_mut(&before) {
                node.pods.remove(&pod.uid);
            }
        }
        (name, names)
    }

    /// Forgets nodes that have been silent for long.
    fn sweep(&mut self, now: Instant) {
        let due = self
            .swept
            .is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP);
        if !due {
            return;
        }
        self.swept = Some(now);
        let (places, held) = (&mut self.places, &mut self.held);
        self.nodes.retain(|_, node| {
            let stays = now.saturating_duration_since(node.heard) < FORGOTTEN;
            if !stays {
                held.take(&node.name, HashMap::new());
                for uid in node.pods.keys() {
                    places.remove(uid);
                }
            }
            stays
        });
    }
}

impl Node {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) <= FRESH
    }

    fn usage(&self, window: Duration) -> Option<NodeUsage> {
        let rate = self.ring.rate(window)?;
        Some(NodeUsage {
            node: self.name.clone(),
            unix_nanos: self.unix_nanos,
            window: rate.window,
            cpu_nanocores: rate.per_second(),
            working_set_bytes: self.last.amounts.working_set_bytes,
            counted: self.last.clone(),
        })
    }
}

impl Pod {
    fn new(name: Arc<PodName>) -> Self {
        Self {
            name,
            amounts: Amounts::default(),
            traffic: None,
            connections: None,
            opened: Ring::default(),
            containers: Vec::new(),
            named: 0,
        }
    }

    fn take(&mut self, sample: PodSample) {
        self.amounts = sample.amounts;
        self.traffic = sample.traffic;
        self.connections = sample.connections;
        match sample.connections {
            Some(connections) => self.opened.push(Point {
                at: sample.at,
                count: connections.opened,
            }),
            None => self.opened = Ring::default(),
        }
        let mut before = std::mem::take(&mut self.containers);
        let said = sample.containers.into_iter();
        self.containers = said
            .map(|said| {
                let place = before
                    .iter()
                    .position(|known| *known.name == *said.name && known.attempt == said.attempt);
                let mut own = match place {
                    Some(place) => before.swap_remove(place),
                    None => Container {
                        name: said.name.as_str().into(),
                        attempt: said.attempt,
                        working_set_bytes: 0,
                        ring: Ring::default(),
                    },
                };
                own.working_set_bytes = said.amounts.working_set_bytes;
                own.ring.push(Point {
                    at: sample.at,
                    count: said.amounts.cpu_nanos,
                });
                own
            })
            .collect();
        self.containers
            .sort_by(|one, other| one.name.cmp(&other.name));
    }

    fn usage(&self, node: &Node, window: Duration) -> Option<PodUsage> {
        let mut over: Option<Duration> = None;
        let mut containers = Vec::with_capacity(self.containers.len());
        for container in &self.containers {
            let rate = container.ring.rate(window)?;
            over = Some(over.map_or(rate.window, |over| over.min(rate.window)));
            containers.push(ContainerUsage {
                name: container.name.clone(),
                cpu_nanocores: rate.per_second(),
                working_set_bytes: container.working_set_bytes,
            });
        }
        Some(PodUsage {
            pod: self.name.clone(),
            node: node.name.clone(),
            unix_nanos: node.unix_nanos,
            // A pod none of whose containers runs has no figures.
            window: over?,
            containers,
            counted: (self.amounts, self.traffic),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::ContainerSample;

    const SECOND: u64 = 1_000_000_000;
    const WINDOW: Duration = Duration::from_secs(1);

    fn named(name: &str) -> Arc<PodName> {
        Arc::new(PodName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        })
    }

    fn container(name: &str, attempt: u32, cpu_nanos: u64) -> ContainerSample {
        ContainerSample {
            name: name.to_owned(),
            attempt,
            amounts: Amounts {
                cpu_nanos,
                working_set_bytes: 4096,
                ..Amounts::default()
            },
        }
    }

    fn pod(name: &str, at: u64, containers: Vec<ContainerSample>) -> PodSample {
        PodSample {
            pod: named(name),
            at: at * SECOND,
            amounts: Amounts::default(),
            traffic: None,
            connections: None,
            containers,
        }
    }

    fn sample(clock: u64, at: u64, pods: Vec<PodSample>) -> Sample {
        Sample {
            clock,
            node: NodeSample {
                at: at * SECOND,
                amounts: Amounts {
                    cpu_nanos: at * SECOND / 4,
                    working_set_bytes: 1 << 20,
                    ..Amounts::default()
                },
                ..NodeSample::default()
            },
            pods,
            held: HashMap::new(),
        }
    }

    fn cpu(figures: &Figures, name: &str, now: Instant) -> Option<Vec<u64>> {
        let usage = figures.pod(&format!("uid-{name}"), WINDOW, now)?;
        let containers = usage.containers.iter();
        Some(containers.map(|one| one.cpu_nanocores).collect())
    }

    #[test]
    fn two_samples_make_a_rate_and_a_restart_begins_anew() {
        let (figures, start) = (Figures::default(), Instant::now());
        let say = |at: u64, attempt, cpu_nanos| {
            let containers = vec![
                container("b", 0, at * SECOND),
                container("a", attempt, cpu_nanos),
            ];
            let said = sample(1, at, vec![pod("web", at, containers)]);
            let heard = start + Duration::from_secs(at);
            figures.take("one", said, heard, 7);
            cpu(&figures, "web", heard)
        };
        assert_eq!(say(1, 0, 5), None);
        assert_eq!(say(2, 0, 5 + SECOND / 2), Some(vec![SECOND / 2, SECOND]));
        assert_eq!(say(3, 1, SECOND), None, "another attempt");
        assert_eq!(say(4, 1, 2 * SECOND), Some(vec![SECOND, SECOND]));
        let node = figures.node("one", WINDOW, start + Duration::from_secs(4));
        let node = node.expect("its figures");
        assert_eq!(
            (node.cpu_nanocores, node.working_set_bytes),
            (SECOND / 4, 1 << 20)
        );
        assert_eq!((node.window, node.unix_nanos), (WINDOW, 7));
    }

    #[test]
    fn what_a_node_does_not_name_is_gone_and_so_is_a_silent_node() {
        let (figures, start) = (Figures::default(), Instant::now());
        let say = |node: &str, at: u64, pods: &[&str]| {
            let pods = pods.iter();
            let pods = pods.map(|name| pod(name, at, vec![container("c", 0, at * SECOND)]));
            let said = sample(1, at, pods.collect());
            figures.take(node, said, start + Duration::from_secs(at), 0);
        };
        for at in 1..3 {
            say("one", at, &["a", "b"]);
            say("two", at, &["c"]);
        }
        let now = start + Duration::from_secs(2);
        let names = |now| {
            let pods = figures.pods(Some("default"), WINDOW, now);
            let names = pods.into_iter().map(|usage| usage.pod.name.clone());
            names.collect::<Vec<String>>()
        };
        assert_eq!(names(now), ["a", "b", "c"]);
        assert_eq!(figures.pods(Some("other"), WINDOW, now), []);
        say("one", 3, &["b"]);
        assert_eq!(names(now), ["b", "c"]);
        assert_eq!(figures.state.lock().places.len(), 2);
        let later = start + Duration::from_secs(13);
        assert_eq!(names(later), ["b"], "the other node is silent");
        assert_eq!(figures.nodes(WINDOW, later).len(), 1);
        say("one", 100, &["b"]);
        let state = figures.state.lock();
        assert_eq!((state.nodes.len(), state.places.len()), (1, 1));
    }

    #[test]
    fn what_a_silent_node_holds_does_not_count() {
        let (figures, start) = (Figures::default(), Instant::now());
        let service = ServiceName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        let mut news = figures.subscribe();
        let say = |node: &str, at: u64, held| {
            let said = Sample {
                held: [(service.clone(), held)].into(),
                ..sample(1, at, Vec::new())
            };
            figures.take(node, said, start + Duration::from_secs(at), 0);
        };
        say("one", 1, 3);
        say("two", 1, 4);
        let of = |at| figures.held(&service, start + Duration::from_secs(at));
        assert_eq!(of(1), 7);
        let heard = news.try_recv().expect("news, though of no pod");
        assert_eq!(heard.held.iter().collect::<Vec<_>>(), [&service]);
        say("one", 12, 3);
        assert_eq!(of(12), 3);
        say("one", 100, 3);
        assert_eq!(of(100), 3, "the other node is forgotten");
        figures.clear();
        assert_eq!(of(100), 0);
    }

    #[test]
    fn times_of_another_process_are_not_compared() {
        let (figures, now) = (Figures::default(), Instant::now());
        let say = |clock, at, cpu_nanos| {
            let containers = vec![container("c", 0, cpu_nanos)];
            figures.take(
                "one",
                sample(clock, at, vec![pod("web", at, containers)]),
                now,
                0,
            );
        };
        say(1, 5, 0);
        say(1, 6, SECOND);
        assert_eq!(cpu(&figures, "web", now), Some(vec![SECOND]));
        say(2, 7, 100 * SECOND);
        assert_eq!(cpu(&figures, "web", now), None);
        say(2, 8, 101 * SECOND);
        assert_eq!(cpu(&figures, "web", now), Some(vec![SECOND]));
        figures.clear();
        assert_eq!(cpu(&figures, "web", now), None);
    }

    #[test]
    fn a_pod_that_another_node_has_now_is_told_of_once() {
        let (figures, now) = (Figures::default(), Instant::now());
        for at in 1..3 {
            let pods = || vec![pod("web", at, vec![container("c", 0, at * SECOND)])];
            figures.take("one", sample(1, at, pods()), now, 0);
            figures.take("two", sample(1, at, pods()), now, 0);
        }
        assert!(figures.pods(None, WINDOW, now).len() <= 1);
        assert_eq!(figures.state.lock().places.len(), 1);
    }

    #[test]
    fn who_listens_hears_which_pods_there_is_news_of() {
        let figures = Figures::default();
        let mut news = figures.subscribe();
        let pods = vec![pod("a", 1, Vec::new()), pod("b", 1, Vec::new())];
        figures.take("one", sample(1, 1, pods), Instant::now(), 0);
        figures.take("two", sample(1, 1, Vec::new()), Instant::now(), 0);
        let heard = news.try_recv().expect("news");
        let names: Vec<&str> = heard.pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!((&*heard.node, names), ("one", vec!["a", "b"]));
        assert!(news.try_recv().is_err());
    }
}
