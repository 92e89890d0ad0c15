//! [`External`]: asks sources while somebody wants them, and answers everybody from what they said last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::answer::Series;
use crate::ask::{PATIENCE, Place, ask};
use crate::guard::Guard;
use crate::source::Source;

/// Questions that are under way at once.
const AT_ONCE: usize = 16;
/// Of one namespace.
const AT_ONCE_PER_NAMESPACE: usize = 2;
/// Metrics of one namespace that are asked for.
const METRICS: usize = 64;
/// A metric that nobody has wanted for so long is not asked for any more. Autoscalers are looked at far more often.
const UNWANTED: Duration = Duration::from_secs(60);
/// News that wait for who listens.
const WAITING: usize = 256;
/// How long a client waits for the first answer of a source.
pub const CLIENTS_WAIT: Duration = PATIENCE;
/// Of what is wrong more is not told.
const TOLD: usize = 400;

/// A source as it is registered: of the same `source` the same is asked.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Whom to ask, for what.
    pub source: Arc<Source>,
    /// What may be asked.
    pub guard: Guard,
}

/// Where sources are registered.
pub trait Sources: Send + Sync + 'static {
    /// The source of a metric of a namespace, or why there is none. It is asked each time that the metric is: it is quick.
    fn find(&self, namespace: &str, metric: &str) -> Result<Registered, String>;
}

/// What a source said last.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// All series.
    pub series: Arc<[Series]>,
    /// When it said so, nanoseconds since the epoch.
    pub unix_nanos: i64,
}

/// Why there are no series, in words for who asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody has registered a source, or nothing can be made of what is registered.
    #[error("{0}")]
    Unregistered(String),
    /// The source has not answered, or not in time, or with something else.
    #[error("{0}")]
    Failed(String),
}

type Answer = Result<Answered, NoAnswer>;

/// A metric that is asked for.
struct Entry {
    source: Arc<Source>,
    answers: watch::Receiver<Option<Answer>>,
    /// When somebody wanted to know it last.
    wanted: Instant,
    /// Ends the asking.
    _asking: DropGuard,
}

struct Namespace {
    places: Arc<Semaphore>,
    entries: HashMap<String, Entry>,
}

struct Shared {
    sources: Arc<dyn Sources>,
    namespaces: Mutex<HashMap<String, Namespace>>,
    places: Semaphore,
    /// Namespaces in which a source has said something else.
    news: broadcast::Sender<Arc<str>>,
}

/// See the module; clones share what is known.
#[derive(Clone)]
pub struct External {
    shared: Arc<Shared>,
}

impl External {
    /// Nobody is asked before somebody wants to know.
    pub fn new(sources: Arc<dyn Sources>) -> Self {
        Self {
            shared: Arc::new(Shared {
                sources,
                namespaces: Mutex::default(),
                places: Semaphore::new(AT_ONCE),
                news: broadcast::Sender::new(WAITING),
            }),
        }
    }

    /// Namespaces in which there are other answers, as they come. A receiver that lags has missed some.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.shared.news.subscribe()
    }

    /// The series of a metric, or why there are none: at once where the source has been asked before, else as soon as it has
    /// answered, and within so long. It is asked again once per period from now on, while anybody wants it.
    pub async fn get(
        &self,
        namespace: &str,
        metric: &str,
        patience: Duration,
    ) -> Result<Answered, NoAnswer> {
        let registered = self.shared.sources.find(namespace, metric).map_err(|why| {
            self.shared.forget(namespace, metric);
            NoAnswer::Unregistered(why)
        })?;
        let (url, period) = (registered.source.url.to_string(), registered.source.period);
        let mut answers = self.shared.want(namespace, metric, registered)?;
        let answer = tokio::time::timeout(patience, answers.wait_for(Option::is_some)).await;
        match answer {
            Ok(Ok(answer)) => match answer.clone() {
                Some(Ok(answered)) if is_stale(&answered, period) => Err(waiting(&url)),
                Some(answer) => answer,
                None => Err(waiting(&url)),
            },
            // Another source has taken its place meanwhile.
            Ok(Err(_)) | Err(_) => Err(waiting(&url)),
        }
    }
}

/// Whether a source should have said something else since, and was perhaps not even asked.
fn is_stale(answered: &Answered, period: Duration) -> bool {
    let most = (period + PATIENCE).saturating_mul(2).as_nanos();
    let age = unix_nanos().saturating_sub(answered.unix_nanos);
    u128::try_from(age).is_ok_and(|age| age > most)
}

fn waiting(url: &str) -> NoAnswer {
    failed(&format!("GET {url}: no answer yet"))
}

fn failed(text: &str) -> NoAnswer {
    NoAnswer::Failed(text.chars().take(TOLD).collect())
}

fn unix_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Whether an answer says something else than the one before.
fn is_other(one: &Answer, other: &Answer) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.series != other.series,
        (Err(one), Err(other)) => one != other,
        _ => true,
    }
}

impl Shared {
    fn forget(&self, namespace: &str, metric: &str) {
        self.forget_if(namespace, metric, |_| true);
    }

    /// Forgets what is asked for when nobody has wanted it for long; whether that was so.
    fn forget_unwanted(&self, asking: &Asking) -> bool {
        self.forget_if(&asking.namespace, &asking.metric, |entry| {
            Arc::ptr_eq(&entry.source, &asking.source) && entry.wanted.elapsed() >= UNWANTED
        })
    }

    fn forget_if(&self, namespace: &str, metric: &str, goes: impl Fn(&Entry) -> bool) -> bool {
        let mut namespaces = self.namespaces.lock();
        let Some(known) = namespaces.get_mut(namespace) else {
            return false;
        };
        if !known.entries.get(metric).is_some_and(goes) {
            return false;
        }
        known.entries.remove(metric);
        if known.entries.is_empty() {
            namespaces.remove(namespace);
        }
        true
    }

    /// Has the metric asked for, unless it is already.
    fn want(
        self: &Arc<Self>,
        namespace: &str,
        metric: &str,
        registered: Registered,
    ) -> Result<watch::Receiver<Option<Answer>>, NoAnswer> {
        let mut namespaces = self.namespaces.lock();
        let known = namespaces
            .entry(namespace.to_owned())
            .or_insert_with(|| Namespace {
                places: Arc::new(Semaphore::new(AT_ONCE_PER_NAMESPACE)),
                entries: HashMap::new(),
            });
        if let Some(entry) = known.entries.get_mut(metric)
            && entry.source == registered.source
        {
            entry.wanted = Instant::now();
            return Ok(entry.answers.clone());
        }
        known.entries.remove(metric);
        if known.entries.len() >= METRICS {
            return Err(failed(&format!(
                "{METRICS} external metrics of namespace {namespace} are asked for already, and no more may be"
            )));
        }
        let (tells, answers) = watch::channel(None);
        let asking = CancellationToken::new();
        let task = Asking {
            shared: self.clone(),
            namespace: namespace.into(),
            metric: metric.to_owned(),
            places: known.places.clone(),
            source: registered.source.clone(),
            answers: tells,
        };
        let ends = asking.clone();
        tokio::spawn(async move { ends.run_until_cancelled(task.run()).await });
        let entry = Entry {
            source: registered.source,
            answers: answers.clone(),
            wanted: Instant::now(),
            _asking: asking.drop_guard(),
        };
        known.entries.insert(metric.to_owned(), entry);
        Ok(answers)
    }
}

/// The asking for one metric.
struct Asking {
    shared: Arc<Shared>,
    namespace: Arc<str>,
    metric: String,
    places: Arc<Semaphore>,
    source: Arc<Source>,
    answers: watch::Sender<Option<Answer>>,
}

impl Asking {
    /// Asks once per period, until nobody wants to know any more.
    async fn run(self) {
        loop {
            let began = Instant::now();
            let answer = self.answer().await;
            let is_news = self.answers.send_if_modified(|known| {
                let is_new = known.as_ref().is_none_or(|known| is_other(known, &answer));
                *known = Some(answer);
                is_new
            });
            if is_news {
                // Nobody listens where this server does not lead.
                self.shared.news.send(self.namespace.clone()).ok();
            }
            tokio::time::sleep_until(began + self.source.period).await;
            // With its entry goes what ends this task.
            if self.shared.forget_unwanted(&self) {
                return;
            }
        }
    }

    async fn answer(&self) -> Answer {
        // Those of its namespace wait for each other before they wait for others.
        let Ok(own) = self.places.clone().acquire_owned().await else {
            return Err(waiting(self.source.url.as_str()));
        };
        let own: Place = Arc::new(own);
        let _place = self.shared.places.acquire().await;
        // What may be asked may have changed.
        let registered = self.shared.sources.find(&self.namespace, &self.metric);
        let registered = registered.map_err(NoAnswer::Unregistered)?;
        let answer = ask(&self.source, &registered.guard, &own).await;
        let answered = |series: Vec<Series>| Answered {
            series: series.into(),
            unix_nanos: unix_nanos(),
        };
        answer.map(answered).map_err(|why| {
            tracing::debug!(namespace = %self.namespace, metric = self.metric, %why, "an external metric has no answer");
            failed(&format!("GET {}: {why}", self.source.url))
        })
    }
}

#[cfg(test)]
mod tests;
