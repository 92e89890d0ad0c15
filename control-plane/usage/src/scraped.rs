//! [`Scraped`]: what pods have answered that expose series of their own, as far as somebody wants them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::FRESH;
use crate::figures::{FORGOTTEN, SWEEP};
use crate::ring::{Point, Ring};
use crate::sample::{PodName, ScrapedPod, ScrapedSample, ScrapedSeries};

/// What a metric's name ends in that is the rate of a counter.
const PER_SECOND: &str = "_per_second";
/// What the names of counters end in.
const TOTAL: &str = "_total";
/// Counters are counted in thousandths, as quantities are told.
const THOUSANDTHS: f64 = 1000.0;

/// The series that a metric is made of: the one of its name; else, of `NAME_per_second`, the counters `NAME_total` and `NAME`, in
/// this order.
pub fn sources(metric: &str) -> Vec<String> {
    let counters = metric
        .strip_suffix(PER_SECOND)
        .filter(|name| !name.is_empty())
        .map(|name| [[name, TOTAL].concat(), name.to_owned()]);
    std::iter::once(metric.to_owned())
        .chain(counters.into_iter().flatten())
        .collect()
}

/// Chooses series by their labels.
pub type Selects<'a> = &'a (dyn Fn(&BTreeMap<String, String>) -> bool + Sync);

/// A metric that is asked for.
#[derive(Clone, Copy)]
pub struct ScrapedMetric<'a> {
    /// The namespace of the pods: of others nothing is told.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Which of its series.
    pub selects: Selects<'a>,
    /// What a rate is over, about.
    pub window: Duration,
}

/// A metric of a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScrapedValue {
    /// Finite.
    pub value: f64,
    /// When it was heard, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What it is the rate over; nothing of what is told as it is.
    pub window: Duration,
}

/// The last of a series, and of a counter the last minute.
struct Series {
    labels: BTreeMap<String, String>,
    is_counter: bool,
    value: f64,
    counted: Ring,
}

impl Series {
    fn take(&mut self, at: u64, said: &ScrapedSeries) {
        self.value = said.value;
        if self.is_counter != said.is_counter {
            self.is_counter = said.is_counter;
            self.counted = Ring::default();
        }
        let thousandths = said.value * THOUSANDTHS;
        if self.is_counter && (0.0..=u64::MAX as f64).contains(&thousandths) {
            self.counted.push(Point {
                at,
                count: thousandths as u64,
            });
        } else {
            // What is no count has no rate, and none of before holds now.
            self.counted = Ring::default();
        }
    }
}

struct Pod {
    name: Arc<PodName>,
    node: Arc<str>,
    /// Of the last answer that had series.
    at: u64,
    heard: Instant,
    unix_nanos: i64,
    /// By name.
    series: HashMap<String, Vec<Series>>,
    /// Why the last answer had none.
    trouble: Option<String>,
}

impl Pod {
    /// Takes in an answer; whether it is another one than before.
    fn take(&mut self, said: ScrapedPod, heard: Instant, unix_nanos: i64) -> bool {
        let series = match said.answer {
            Ok(series) => series,
            Err(trouble) => {
                let is_new = self.trouble.as_ref() != Some(&trouble);
                self.trouble = Some(trouble);
                return is_new;
            }
        };
        if said.at <= self.at {
            return false;
        }
        (self.at, self.heard, self.unix_nanos) = (said.at, heard, unix_nanos);
        self.trouble = None;
        let mut before = std::mem::take(&mut self.series);
        for said in series {
            let known = before.get_mut(&said.name);
            let known = known.and_then(|known| {
                let place = known.iter().position(|known| known.labels == said.labels)?;
                Some(known.swap_remove(place))
            });
            let mut own = known.unwrap_or_else(|| Series {
                labels: said.labels.clone(),
                is_counter: said.is_counter,
                value: 0.0,
                counted: Ring::default(),
            });
            own.take(self.at, &said);
            self.series.entry(said.name).or_default().push(own);
        }
        true
    }

    fn metric(&self, metric: &ScrapedMetric<'_>) -> Option<ScrapedValue> {
        let window = metric.window;
        let of = |name: &str| -> Vec<&Series> {
            let series = self.series.get(name).into_iter().flatten();
            let selected = series.filter(|series| (metric.selects)(&series.labels));
            selected.collect()
        };
        let told = |value: f64, window: Duration| {
            value.is_finite().then_some(ScrapedValue {
                value,
                unix_nanos: self.unix_nanos,
                window,
            })
        };
        let own = of(metric.name);
        if !own.is_empty() {
            return told(own.iter().map(|series| series.value).sum(), Duration::ZERO);
        }
        let counters = sources(metric.name).into_iter().skip(1).find_map(|name| {
            let mut series = of(&name);
            series.retain(|series| series.is_counter);
            Some(series).filter(|series| !series.is_empty())
        })?;
        let (mut value, mut over) = (0.0, window);
        // Those that have none yet are new: they count as soon as they have.
        let rates: Vec<_> = counters
            .iter()
            .filter_map(|series| series.counted.rate(window))
            .collect();
        for rate in &rates {
            value += rate.per_second() as f64 / THOUSANDTHS;
            over = over.min(rate.window);
        }
        (!rates.is_empty()).then(|| told(value, over))?
    }
}

/// What is known of one node.
struct Node {
    clock: u64,
    heard: Instant,
    /// Uids of its pods.
    pods: HashSet<String>,
}

/// What the pods of all nodes have answered.
#[derive(Default)]
pub(crate) struct Scraped {
    nodes: HashMap<Arc<str>, Node>,
    /// By uid.
    pods: HashMap<String, Pod>,
    swept: Option<Instant>,
}

impl Scraped {
    /// Takes what a node's own pods have answered; those that there is news of. Costs what the node has, whatever others have.
    pub(crate) fn take(
        &mut self,
        node: &Arc<str>,
        sample: ScrapedSample,
        heard: Instant,
        unix_nanos: i64,
    ) -> Vec<Arc<PodName>> {
        let clock = sample.clock;
        let named: HashSet<String> = sample.pods.iter().map(|of| of.pod.uid.clone()).collect();
        let new = Node {
            clock,
            heard,
            pods: named,
        };
        let own = new.pods.clone();
        if let Some(before) = self.nodes.insert(node.clone(), new) {
            let is_same = before.clock == clock;
            for uid in before.pods {
                // Times of another process cannot be compared with its.
                if !is_same || !own.contains(&uid) {
                    self.remove(node, &uid);
                }
            }
        }
        let mut news = Vec::new();
        for said in sample.pods {
            let name = said.pod.clone();
            let known = self.pods.get(&name.uid);
            if known.is_some_and(|known| known.node != *node) {
                self.pods.remove(&name.uid);
            }
            let pod = self.pods.entry(name.uid.clone()).or_insert_with(|| Pod {
                name: name.clone(),
                node: node.clone(),
                at: 0,
                heard,
                unix_nanos,
                series: HashMap::new(),
                trouble: None,
            });
            if pod.take(said, heard, unix_nanos) {
                news.push(pod.name.clone());
            }
        }
        self.sweep(heard);
        news
    }

    fn remove(&mut self, node: &Arc<str>, uid: &str) {
        if self.pods.get(uid).is_some_and(|pod| pod.node == *node) {
            self.pods.remove(uid);
        }
    }

    /// Forgets nodes that have been silent for long.
    fn sweep(&mut self, now: Instant) {
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.swept.is_some_and(|swept| since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.nodes.retain(|_, node| since(node.heard) < FORGOTTEN);
        let nodes = &self.nodes;
        self.pods.retain(|_, pod| nodes.contains_key(&pod.node));
    }

    /// A metric of a pod, or why the pod has not answered. None where it has answered without it, or was not asked.
    pub(crate) fn metric(
        &self,
        uid: &str,
        metric: &ScrapedMetric<'_>,
        now: Instant,
    ) -> Option<Result<ScrapedValue, String>> {
        let pod = self.pods.get(uid)?;
        let PodName {
            namespace, name, ..
        } = &*pod.name;
        if namespace != metric.namespace {
            return None;
        }
        let is_fresh = now.saturating_duration_since(pod.heard) <= FRESH;
        let value = is_fresh.then(|| pod.metric(metric));
        match (value.flatten(), &pod.trouble) {
            (Some(value), _) => Some(Ok(value)),
            (None, Some(trouble)) => Some(Err(format!(
                "pod {namespace}/{name} cannot be scraped: {trouble}"
            ))),
            (None, None) => None,
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const WINDOW: Duration = Duration::from_secs(3);

    fn series(name: &str, path: &str, is_counter: bool, value: f64) -> ScrapedSeries {
        let labels = (!path.is_empty()).then(|| ("path".to_owned(), path.to_owned()));
        ScrapedSeries {
            name: name.to_owned(),
            labels: labels.into_iter().collect(),
            is_counter,
            value,
        }
    }

    struct World {
        scraped: Scraped,
        began: Instant,
    }

    impl World {
        fn new() -> Self {
            Self {
                scraped: Scraped::default(),
                began: Instant::now(),
            }
        }

        /// What the node says at a second of its pod of this name; how many pods there is news of.
        fn say(
            &mut self,
            node: &str,
            (clock, at): (u64, u64),
            pod: &str,
            answer: Result<Vec<ScrapedSeries>, &str>,
        ) -> usize {
            let name = PodName {
                namespace: "default".to_owned(),
                name: pod.to_owned(),
                uid: pod.to_owned(),
            };
            let pods = vec![ScrapedPod {
                pod: Arc::new(name),
                at: at * SECOND,
                answer: answer.map_err(str::to_owned),
            }];
            let heard = self.began + Duration::from_secs(at);
            let sample = ScrapedSample { clock, pods };
            let news = self.scraped.take(&Arc::from(node), sample, heard, 7);
            news.len()
        }

        fn metric(&self, pod: &str, metric: &str, at: u64) -> Option<Result<f64, String>> {
            self.selected(pod, metric, at, &|_: &BTreeMap<String, String>| true)
        }

        fn selected(
            &self,
            pod: &str,
            metric: &str,
            at: u64,
            selects: Selects<'_>,
        ) -> Option<Result<f64, String>> {
            let now = self.began + Duration::from_secs(at);
            let metric = ScrapedMetric {
                namespace: "default",
                name: metric,
                selects,
                window: WINDOW,
            };
            let known = self.scraped.metric(pod, &metric, now)?;
            Some(known.map(|known| known.value))
        }
    }

    #[test]
    fn a_metric_is_its_series_or_the_rate_of_a_counter() {
        assert_eq!(sources("a"), ["a"]);
        assert_eq!(
            sources("a_per_second"),
            ["a_per_second", "a_total", "a"].map(str::to_owned)
        );
        assert_eq!(sources("_per_second"), ["_per_second"]);
        let mut world = World::new();
        for at in 1..6 {
            let grown = at as f64;
            let said = vec![
                series("depth", "", false, 4.5),
                series("hits_total", "/a", true, 10.0 * grown),
                series("hits_total", "/b", true, 1000.0 + 0.5 * grown),
                series("level", "", false, grown),
                series("done", "", true, 2.0 * grown),
            ];
            assert_eq!(world.say("one", (1, at), "web", Ok(said)), 1);
        }
        let metric = |name: &str| world.metric("web", name, 5).and_then(Result::ok);
        assert_eq!(metric("depth"), Some(4.5));
        assert_eq!(metric("hits_total"), Some(50.0 + 1002.5));
        assert_eq!(metric("hits_per_second"), Some(10.5));
        assert_eq!(metric("done_per_second"), Some(2.0));
        assert_eq!(metric("level_per_second"), None, "it is no counter");
        assert_eq!(metric("other"), None);
        let of_b =
            |labels: &BTreeMap<String, String>| labels.get("path").is_some_and(|path| path == "/b");
        let selected = world.selected("web", "hits_per_second", 5, &of_b);
        assert_eq!(selected, Some(Ok(0.5)));
    }

    #[test]
    fn a_counter_that_begins_anew_has_no_rate_at_first() {
        let mut world = World::new();
        for (at, value) in [(1, 100.0), (2, 110.0), (3, 2.0), (4, 5.0)] {
            world.say(
                "one",
                (1, at),
                "web",
                Ok(vec![series("a_total", "", true, value)]),
            );
            let expected = [None, Some(10.0), None, Some(3.0)][at as usize - 1];
            let rate = world.metric("web", "a_per_second", at);
            assert_eq!(rate, expected.map(Ok), "at {at}");
        }
        world.say(
            "one",
            (2, 1),
            "web",
            Ok(vec![series("a_total", "", true, 9.0)]),
        );
        assert_eq!(
            world.metric("web", "a_per_second", 4),
            None,
            "another agent"
        );
        assert_eq!(world.metric("web", "a_total", 4), Some(Ok(9.0)));
    }

    #[test]
    fn a_pod_that_fails_keeps_its_value_for_a_moment_and_then_says_why() {
        let mut world = World::new();
        let said = || Ok(vec![series("a", "", false, 1.0)]);
        world.say("one", (1, 1), "web", said());
        assert_eq!(world.say("one", (1, 1), "web", said()), 0, "no news");
        assert_eq!(world.say("one", (1, 2), "web", Err("refused")), 1);
        assert_eq!(world.say("one", (1, 3), "web", Err("refused")), 0);
        assert_eq!(world.metric("web", "a", 3), Some(Ok(1.0)));
        let why = "pod default/web cannot be scraped: refused".to_owned();
        assert_eq!(world.metric("web", "b", 3), Some(Err(why.clone())));
        assert_eq!(world.metric("web", "a", 12), Some(Err(why)));
        world.say("one", (1, 13), "web", Ok(Vec::new()));
        assert_eq!(world.metric("web", "a", 13), None);
    }

    #[test]
    fn nothing_is_told_of_pods_of_other_namespaces() {
        let mut world = World::new();
        world.say("one", (1, 1), "web", Ok(vec![series("a", "", false, 1.0)]));
        let told = |namespace| {
            let metric = ScrapedMetric {
                namespace,
                name: "a",
                selects: &|_| true,
                window: WINDOW,
            };
            world.scraped.metric("web", &metric, world.began).is_some()
        };
        assert!(told("default") && !told("other"));
    }

    #[test]
    fn what_a_node_does_not_name_is_gone_and_so_is_a_silent_node() {
        let mut world = World::new();
        let said = || Ok(vec![series("a", "", false, 1.0)]);
        world.say("one", (1, 1), "web", said());
        world.say("two", (1, 1), "db", said());
        world.say("one", (1, 2), "api", said());
        assert_eq!(world.metric("web", "a", 2), None);
        assert_eq!(world.metric("api", "a", 2), Some(Ok(1.0)));
        // A pod is where it was named last.
        world.say("two", (1, 3), "api", said());
        world.say("one", (1, 4), "web", said());
        assert_eq!(world.metric("api", "a", 4), Some(Ok(1.0)));
        world.say("one", (1, 90), "web", said());
        assert_eq!(
            (world.scraped.nodes.len(), world.scraped.pods.len()),
            (1, 1)
        );
    }
}
