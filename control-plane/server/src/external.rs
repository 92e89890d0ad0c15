//! Where external metrics are registered: ConfigMaps with a label, in the namespace of those who go by them, so that its Roles say
//! who may. Each server knows them by its own store.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use gantry_apiserver::{ExternalMetric, ExternalMetrics, NoExternalMetric};
use gantry_external::{CLIENTS_WAIT, External, Guard, NoAnswer, Registered, Source, Sources};
use gantry_members::Roster;
use gantry_store::{Entry, Key, Store, Table};
use ipnet::IpNet;
use parking_lot::RwLock;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// The label of ConfigMaps whose data are sources by metric.
const LABEL: &str = "gantry.dev/external-metrics";
/// What a namespace may ask besides, as CIDRs with commas between them: only administrators write Namespaces.
const ALLOW: &str = "gantry.dev/external-metrics-allow";
/// Of what is wrong more is not told.
const TOLD: usize = 64;

/// A source as it is written, and as it was read when it was first wanted.
struct Written {
    text: String,
    read: OnceLock<Result<Arc<Source>, String>>,
}

impl Written {
    fn source(&self) -> Result<Arc<Source>, String> {
        let read = self
            .read
            .get_or_init(|| Source::parse(&self.text).map(Arc::new));
        read.clone()
    }
}

/// Sources by metric.
type Data = HashMap<String, Written>;

/// The ConfigMaps of a namespace, by name.
type ConfigMaps = BTreeMap<String, Data>;

/// What is registered, by namespace.
pub(crate) struct RegisteredSources {
    store: Store,
    roster: Roster,
    known: RwLock<HashMap<String, ConfigMaps>>,
}

fn config_maps() -> Table {
    Table("core/configmaps".into())
}

/// The data of a ConfigMap with the label; none of another one.
fn data(entry: &Entry) -> Option<Data> {
    #[derive(Deserialize)]
    struct ConfigMap {
        #[serde(default)]
        data: HashMap<String, String>,
    }
    let labels = &entry.index.labels;
    if !labels
        .iter()
        .any(|(name, value)| name == LABEL && value == "true")
    {
        return None;
    }
    // The store holds only what the API server wrote.
    let map: ConfigMap = serde_json::from_slice(&entry.value).ok()?;
    let written = map.data.into_iter().map(|(metric, text)| {
        let read = OnceLock::new();
        (metric, Written { text, read })
    });
    Some(written.collect())
}

/// What an annotation allows.
fn allowed(text: &str) -> Result<Vec<IpNet>, String> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let ranges = parts.map(|part| {
        let range = part.parse::<IpNet>();
        range.or_else(|_| part.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            let told: String = part.chars().take(TOLD).collect();
            format!("metadata.annotations[{ALLOW}] of the namespace: {told:?} is no CIDR, such as 192.0.2.0/24")
        })
    });
    ranges.collect()
}

impl RegisteredSources {
    pub(crate) fn new(store: Store, roster: Roster) -> Self {
        Self {
            store,
            roster,
            known: RwLock::default(),
        }
    }

    /// Keeps what is registered up to date, until told to stop.
    pub(crate) async fn follow(&self, stop: CancellationToken) {
        loop {
            let from = self.store.revision();
            let Ok(mut changes) = self.store.watch(&[config_maps()], from) else {
                // The history was cut this moment: from now on, then.
                tokio::task::yield_now().await;
                continue;
            };
            self.begin_anew();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    event = changes.next() => match event {
                        Some(Ok(event)) => {
                            let entry = (!event.deleted).then_some(&*event.entry);
                            self.put(&event.key.namespace, &event.key.name, entry);
                        }
                        Some(Err(_)) => break,
                        None => return,
                    }
                }
            }
        }
    }

    fn begin_anew(&self) {
        self.known.write().clear();
        let snapshot = self.store.snapshot(&config_maps());
        for ((namespace, name), entry) in snapshot.iter() {
            self.put(namespace, name, Some(entry.as_ref()));
        }
    }

    /// A ConfigMap as it is now, if it is.
    fn put(&self, namespace: &str, name: &str, entry: Option<&Entry>) {
        let data = entry.and_then(data);
        let mut known = self.known.write();
        match data {
            Some(data) => {
                let maps = known.entry(namespace.to_owned()).or_default();
                maps.insert(name.to_owned(), data);
            }
            None => {
                if let Some(maps) = known.get_mut(namespace) {
                    maps.remove(name);
                    if maps.is_empty() {
                        known.remove(namespace);
                    }
                }
            }
        }
    }

    fn source(&self, namespace: &str, metric: &str) -> Result<Arc<Source>, String> {
        let known = self.known.read();
        let maps = known.get(namespace).into_iter().flatten();
        let mut found = maps.filter_map(|(name, data)| Some((name, data.get(metric)?)));
        match (found.next(), found.next()) {
            (None, _) => Err(format!(
                "the server could not find the metric {metric}: no ConfigMap of namespace {namespace} with the label \
                 {LABEL}=true has it"
            )),
            (Some((name, written)), None) => written
                .source()
                .map_err(|why| format!("data[{metric}] of ConfigMap {namespace}/{name}: {why}")),
            (Some((one, _)), Some((other, _))) => Err(format!(
                "the metric {metric} is in the ConfigMaps {one} and {other} of namespace {namespace}: remove one of them"
            )),
        }
    }

    fn guard(&self, namespace: &str) -> Result<Guard, String> {
        #[derive(Deserialize)]
        struct Namespace {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            annotations: HashMap<String, String>,
        }
        let entry = self.store.get(&Key {
            table: Table("core/namespaces".into()),
            namespace: "".into(),
            name: namespace.into(),
        });
        let known = entry.and_then(|entry| serde_json::from_slice::<Namespace>(&entry.value).ok());
        let text = known.and_then(|mut known| known.metadata.annotations.remove(ALLOW));
        let servers = self.roster.all();
        let servers = servers
            .iter()
            .map(|server| server.address.ip().to_canonical());
        Ok(Guard {
            servers: servers.collect(),
            allowed: allowed(&text.unwrap_or_default())?,
        })
    }
}

impl Sources for RegisteredSources {
    fn find(&self, namespace: &str, metric: &str) -> Result<Registered, String> {
        Ok(Registered {
            source: self.source(namespace, metric)?,
            guard: self.guard(namespace)?,
        })
    }
}

/// Thousandths, rounded up; but not for what a number of this kind cannot tell exactly. Beyond what there is, the most and least
/// that there are.
pub(crate) fn millis(value: f64) -> i64 {
    let thousandths = value * 1000.0;
    let nearest = thousandths.round();
    let is_whole = (thousandths - nearest).abs() < 1e-6;
    let rounded = if is_whole {
        nearest
    } else {
        thousandths.ceil()
    };
    rounded as i64
}

/// What sources tell, as clients of the API are told it.
pub(crate) struct Served(pub(crate) External);

#[async_trait]
impl ExternalMetrics for Served {
    async fn series(
        &self,
        namespace: &str,
        metric: &str,
    ) -> Result<Vec<ExternalMetric>, NoExternalMetric> {
        let answered = self.0.get(namespace, metric, CLIENTS_WAIT).await;
        let answered = answered.map_err(|none| match none {
            NoAnswer::Unregistered(why) => NoExternalMetric::Unknown(why),
            NoAnswer::Failed(why) => NoExternalMetric::Unavailable(why),
        })?;
        let series = answered.series.iter().map(|series| ExternalMetric {
            labels: series.labels.clone(),
            millis: millis(series.value),
            unix_nanos: answered.unix_nanos,
        });
        Ok(series.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NODE_LINK, NoNodes};
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
    use kube::Api;
    use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
    use serde_json::json;

    use super::*;

    /// What has to come comes long before.
    const DEADLINE: Duration = Duration::from_secs(30);

    fn map(name: &str, label: &str, metric: &str) -> ConfigMap {
        let map = json!({"metadata": {"name": name, "labels": {LABEL: label}},
            "data": {metric: "{url: 'http://a.example', query: up}", "broken": "url: http://a.example"}});
        serde_json::from_value(map).expect("a map")
    }

    #[test]
    fn thousandths_are_rounded_up() {
        for (value, expected) in [
            (0.1, 100),
            (0.3, 300),
            (1.0001, 1001),
            (-1.0001, -1000),
            (0.0, 0),
            (1e300, i64::MAX),
            (-1e300, i64::MIN),
        ] {
            assert_eq!(millis(value), expected, "{value}");
        }
    }

    #[tokio::test]
    async fn config_maps_with_the_label_register_sources() {
        let store = Store::ephemeral();
        let config = ApiServerConfig::default();
        let api = ApiServer::new(config, store.clone(), Arc::new(NoNodes));
        let bootstrapped = api.bootstrap(6443).await;
        bootstrapped.expect("the cluster's own objects");
        let identity = Identity::of_system(NODE_LINK);
        let client = kube::Client::new(api.local_service(identity), "default");
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let post = PostParams::default();
        maps.create(&post, &map("early", "true", "a"))
            .await
            .expect("created");
        maps.create(&post, &map("other", "false", "b"))
            .await
            .expect("created");
        let known = RegisteredSources::new(store.clone(), Roster::new(store.clone()));
        let known = Arc::new(known);
        let stop = CancellationToken::new();
        let _ends = stop.clone().drop_guard();
        let following = known.clone();
        tokio::spawn(async move { following.follow(stop).await });
        let until = async |metric: &str, told: &str| {
            let waiting = async {
                loop {
                    let found = known.find("default", metric);
                    let why = found.map(|_| String::new()).unwrap_or_else(|why| why);
                    if why.contains(told) && why.is_empty() == told.is_empty() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let waited = tokio::time::timeout(DEADLINE, waiting).await;
            waited.unwrap_or_else(|_| {
                panic!("{metric}: {told}: {:?}", known.find("default", metric))
            });
        };
        until("a", "").await;
        until("b", "could not find the metric b").await;
        until(
            "broken",
            "data[broken] of ConfigMap default/early: exactly one of query",
        )
        .await;
        maps.create(&post, &map("late", "true", "a"))
            .await
            .expect("created");
        until("a", "in the ConfigMaps early and late").await;
        maps.delete("early", &DeleteParams::default())
            .await
            .expect("deleted");
        until("a", "").await;
        let namespaces: Api<Namespace> = Api::all(client);
        let allow = |text: &str| json!({"metadata": {"annotations": {ALLOW: text}}});
        for (text, ranges) in [("10.0.0.0/8, fd00::1", 2), ("", 0)] {
            let patch = Patch::Merge(allow(text));
            let patched = namespaces
                .patch("default", &PatchParams::default(), &patch)
                .await;
            patched.expect("patched");
            let guard = known.find("default", "a").expect("registered").guard;
            assert_eq!(guard.allowed.len(), ranges);
        }
        let patch = Patch::Merge(allow("10.0.0.0/8,nonsense"));
        let patched = namespaces
            .patch("default", &PatchParams::default(), &patch)
            .await;
        patched.expect("patched");
        until("a", "\"nonsense\" is no CIDR").await;
    }
}
