//! Asks the node's annotated pods for the series that a server wants of them (`ScrapeWanted`): every second while any is wanted, and
//! never otherwise. What they answer is offered to the link as a whole (see [`crate::outgoing`]).
//!
//! A pod is asked at its own address and nowhere else. One that answers rubbish, slowly or without end costs its own answer: it is
//! asked less and less often, and what is wrong is told instead.

mod exposition;
mod fetch;
mod target;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use gantry_cri::network::{NodeConnection, NodeConnections, PodNetwork};
use gantry_rpc::node::{Label, ScrapeWanted, Scraped, ScrapedPod, ScrapedSeries};
use k8s_openapi::api::core::v1::Pod;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;

use self::exposition::{Series, Wanted};
use self::target::{Target, is_scraped, target};
use crate::desired::Desired;

/// For the fuzzer.
pub(crate) use self::exposition::fuzz;

/// From the beginning of one round to that of the next.
const PERIOD: Duration = Duration::from_secs(1);
/// Answers that have come by then are told before the others.
const EARLY: Duration = Duration::from_millis(200);
/// A pod that fails is asked less often, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Pods that are asked at once.
const AT_ONCE: usize = 64;
/// Of what is wrong with a pod more is not told.
const TROUBLE_CHARS: usize = 256;
/// What all answers may come to on the link, in bytes. Those beyond are not told, but that they are.
const TOLD_BYTES: usize = 4 << 20;

/// What is wanted, by namespace.
pub(crate) type WantedSeries = HashMap<String, Arc<Wanted>>;

/// What a server has said that it wants, and what pods have answered last.
#[derive(Debug, Default)]
pub(crate) struct Scrapes {
    wanted: watch::Sender<Arc<WantedSeries>>,
    answers: watch::Sender<Option<Arc<Scraped>>>,
}

impl Scrapes {
    /// From now on these are wanted, and nothing else.
    pub(crate) fn want(&self, said: ScrapeWanted) {
        let mut by_namespace: HashMap<String, Wanted> = HashMap::new();
        for series in said.series {
            let wanted = by_namespace.entry(series.namespace).or_default();
            wanted.add(series.name, series.labels);
        }
        let wanted = by_namespace.into_iter();
        let wanted: WantedSeries = wanted.map(|(name, all)| (name, Arc::new(all))).collect();
        self.wanted.send_if_modified(|known| {
            let is_new = **known != wanted;
            if is_new {
                *known = Arc::new(wanted);
            }
            is_new
        });
    }

    /// The answers, as they come; none before the first.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<Scraped>>> {
        self.answers.subscribe()
    }
}

/// A pod that is to be asked.
struct Asked {
    pod: Arc<Pod>,
    target: Result<Target, String>,
    wanted: Arc<Wanted>,
}

/// What is known of a pod that is asked.
struct Known {
    /// Answers without series in a row.
    failures: u32,
    /// It is not asked earlier.
    due: Instant,
    told: ScrapedPod,
}

/// What pods are asked by.
pub(crate) struct Sources {
    pub(crate) desired: Arc<Desired>,
    pub(crate) network: Arc<dyn PodNetwork>,
    /// The node's own, for pods on its network.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where connections to pods are counted: nobody uses a pod for it.
    pub(crate) connections: Arc<NodeConnections>,
}

/// Asks pods, again and again. Runs until it is dropped.
pub(crate) async fn follow(from: Sources, scrapes: Arc<Scrapes>) {
    let mut rounds = Rounds {
        began: Instant::now(),
        clock: rand::random(),
        known: HashMap::new(),
        connections: from.connections,
        scrapes: scrapes.clone(),
    };
    let mut wanted = scrapes.wanted.subscribe();
    loop {
        // The sender is here as well.
        if wanted.wait_for(|wanted| !wanted.is_empty()).await.is_err() {
            return;
        }
        let began = Instant::now();
        let now = wanted.borrow_and_update().clone();
        let attached = from.network.attached().await.unwrap_or_else(|error| {
            let error = gantry_cri::words(&error);
            tracing::debug!(error, "looking for the addresses of pods to scrape");
            BTreeMap::new()
        });
        let address = |pod: &Pod| match is_on_the_nodes_network(pod) {
            true => from.addresses.first().copied(),
            false => {
                let uid = pod.metadata.uid.as_deref()?;
                attached.get(uid).map(|at| IpAddr::from(at.ip))
            }
        };
        let asked = asked(from.desired.pods(), &now, address);
        rounds.round(asked).await;
        let ends = tokio::time::sleep_until(began + PERIOD);
        tokio::select! {
            () = ends => {}
            // Before the next round there may be nothing to ask for any more.
            _ = wanted.wait_for(|wanted| wanted.is_empty()) => rounds.forget(),
        }
    }
}

fn is_on_the_nodes_network(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.host_network).unwrap_or_default()
}

/// The pods that are to be asked, as far as they have an address.
fn asked(
    pods: Vec<Arc<Pod>>,
    wanted: &WantedSeries,
    address: impl Fn(&Pod) -> Option<IpAddr>,
) -> Vec<Asked> {
    let all = pods.into_iter().filter(|pod| is_scraped(pod));
    let all = all.filter_map(|pod| {
        let wanted = wanted.get(pod.metadata.namespace.as_deref()?)?.clone();
        let target = target(&pod, address(&pod)?);
        Some(Asked {
            pod,
            target,
            wanted,
        })
    });
    all.collect()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

struct Rounds {
    began: Instant,
    clock: u64,
    /// By uid.
    known: HashMap<String, Known>,
    connections: Arc<NodeConnections>,
    scrapes: Arc<Scrapes>,
}

impl Rounds {
    /// Asks those whose time has come, and tells what all have answered.
    async fn round(&mut self, asked: Vec<Asked>) {
        let names: HashSet<&str> = asked.iter().map(|asked| uid(&asked.pod)).collect();
        self.known.retain(|uid, _| names.contains(uid.as_str()));
        let now = Instant::now();
        let due = |asked: &Asked| {
            self.known
                .get(uid(&asked.pod))
                .is_none_or(|of| of.due <= now)
        };
        let due: Vec<Asked> = asked.into_iter().filter(due).collect();
        let connections = self.connections.clone();
        let mut answers = futures::stream::iter(due)
            .map(|asked| {
                let counted = connections.begin(uid(&asked.pod));
                async move {
                    let answer = ask(&asked, counted).await;
                    (asked.pod, answer, Instant::now())
                }
            })
            .buffer_unordered(AT_ONCE);
        let mut early = std::pin::pin!(tokio::time::sleep(EARLY));
        let mut is_early = true;
        loop {
            tokio::select! {
                answer = answers.next() => match answer {
                    Some((pod, answer, at)) => self.note(&pod, answer, at),
                    None => break,
                },
                () = &mut early, if is_early => {
                    is_early = false;
                    self.tell();
                }
            }
        }
        self.tell();
    }

    fn note(&mut self, pod: &Pod, answer: Result<Vec<Series>, String>, at: Instant) {
        let read_at = at.saturating_duration_since(self.began).as_nanos();
        let failures = match &answer {
            Ok(_) => 0,
            Err(_) => self.known.get(uid(pod)).map_or(0, |known| known.failures) + 1,
        };
        let known = Known {
            failures,
            due: at + pause(failures),
            told: told(pod, answer, u64::try_from(read_at).unwrap_or(u64::MAX)),
        };
        self.known.insert(uid(pod).to_owned(), known);
    }

    fn tell(&self) {
        let pods = self.known.values().map(|known| known.told.clone());
        let scraped = Scraped {
            clock: self.clock,
            pods: within(TOLD_BYTES, pods),
        };
        self.scrapes.answers.send_replace(Some(Arc::new(scraped)));
    }

    /// Nothing is wanted any more.
    fn forget(&mut self) {
        self.known.clear();
        self.tell();
    }
}

/// How long a pod is left alone that has failed so often in a row; others have their turn by the rounds.
fn pause(failures: u32) -> Duration {
    let doublings = failures.checked_sub(1).map(|failures| failures.min(3));
    doublings.map_or(Duration::ZERO, |doublings| {
        (PERIOD * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
    })
}

async fn ask(asked: &Asked, counted: NodeConnection) -> Result<Vec<Series>, String> {
    let target = asked.target.as_ref().map_err(Clone::clone)?;
    let answer = fetch::fetch(target, &asked.wanted, counted).await;
    answer.map_err(|trouble| {
        let error = gantry_cri::words(&trouble);
        format!("GET {target}: {error}")
    })
}

/// An answer as it is sent.
fn told(pod: &Pod, answer: Result<Vec<Series>, String>, read_at: u64) -> ScrapedPod {
    let (series, trouble) = match answer {
        Ok(series) => (series, String::new()),
        Err(trouble) => (Vec::new(), trouble.chars().take(TROUBLE_CHARS).collect()),
    };
    let label = |(name, value)| Label { name, value };
    let series = series.into_iter().map(|series| ScrapedSeries {
        name: series.name,
        labels: series.labels.into_iter().map(label).collect(),
        counter: series.is_counter,
        value: series.value,
    });
    let metadata = &pod.metadata;
    ScrapedPod {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: uid(pod).to_owned(),
        read_at,
        series: series.collect(),
        trouble,
    }
}

/// Answers that come to no more bytes: of a pod beyond them only that is told.
fn within(bytes: usize, pods: impl Iterator<Item = ScrapedPod>) -> Vec<ScrapedPod> {
    let mut left = bytes;
    pods.map(|mut pod| {
        match left.checked_sub(pod.encoded_len()) {
            Some(less) => left = less,
            None => {
                pod.series = Vec::new();
                pod.trouble = format!(
                    "the pods of its node have answered with more than {bytes} bytes of wanted labels together"
                );
            }
        }
        pod
    })
    .collect()
}

#[cfg(test)]
mod tests;
