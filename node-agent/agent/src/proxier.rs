//! Programs services into this node: kernel rules, names, health checks of load balancers. Takes only what changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_cri::dns::{ClusterDns, DnsTable};
use gantry_cri::network::NetworkError;
use gantry_network::{Listeners, ServiceChanges, ServiceName, ServiceRules};
use tokio::sync::{Notify, watch};

use crate::desired::{Desired, ServiceUpdates};
use crate::health_checks::HealthChecks;
use crate::held_ports::HeldPorts;
use crate::metrics::METRICS;
use crate::reports::Reports;
use crate::services::{self, Place};

/// Between attempts at rules that the kernel refused.
const RETRY: Duration = Duration::from_secs(5);
/// Between looks at the rules, which other programs may have removed.
const LOOK_AROUND: Duration = Duration::from_secs(60);
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What kube-proxy is on other nodes: it programs services, and DNS with their names.
pub struct Proxier {
    place: Place,
    cluster_domain: String,
    desired: Arc<Desired>,
    reports: Arc<Reports>,
    rules: Arc<dyn ServiceRules>,
    dns: Arc<dyn ClusterDns>,
    health_checks: HealthChecks,
    held_ports: HeldPorts,
    /// How many endpoints the rules of each service lead to.
    endpoints: BTreeMap<ServiceName, usize>,
    /// Of the last acknowledgement.
    acknowledged: Option<u64>,
    /// Services with changes that are not acknowledged, since when.
    waiting: BTreeMap<ServiceName, Instant>,
}

impl Proxier {
    /// For the node of this name, in the cluster of this domain.
    pub fn new(
        node_name: &str,
        cluster_domain: &str,
        desired: Arc<Desired>,
        reports: Arc<Reports>,
        rules: Arc<dyn ServiceRules>,
        dns: Arc<dyn ClusterDns>,
        listeners: Arc<dyn Listeners>,
    ) -> Self {
        Self {
            place: Place {
                node: node_name.to_owned(),
                zone: None,
            },
            cluster_domain: cluster_domain.to_owned(),
            desired,
            held_ports: HeldPorts::new(node_name, listeners, reports.clone()),
            reports,
            rules,
            dns,
            health_checks: HealthChecks::default(),
            endpoints: BTreeMap::new(),
            acknowledged: None,
            waiting: BTreeMap::new(),
        }
    }

    /// Programs what has changed each time that `changed` says so, and looks around when the rules were `flushed`.
    pub async fn run(mut self, changed: Arc<Notify>, mut flushed: watch::Receiver<()>) {
        let mut looks = tokio::time::interval(LOOK_AROUND);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let has_news = tokio::select! {
                () = changed.notified() => true,
                _ = looks.tick() => self.look_around().await,
                Ok(()) = flushed.changed() => self.look_around().await,
            };
            if !has_news {
                continue;
            }
            while let Err(error) = self.sync().await {
                tracing::warn!(
                    error = gantry_cri::words(&error),
                    "programming services; trying again"
                );
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = changed.notified() => {}
                }
            }
        }
    }

    /// Puts back what others removed, and tries again what they were in the way of. Whether there is something to
    /// [program](Self::sync) now.
    pub async fn look_around(&mut self) -> bool {
        if let Err(error) = self.rules.reassert().await {
            METRICS.sync_failures.inc();
            tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after the rules of services"
            );
        }
        if let Err(error) = self.health_checks.retry() {
            tracing::warn!(error = gantry_cri::words(&error), "serving a health check");
        }
        let again = self.held_ports.look_again().await;
        let found = !again.is_empty();
        self.desired.program_again(again);
        found
    }

    /// Programs what has changed. Acknowledged only when the kernel has it: pods wait for that before they stop.
    pub async fn sync(&mut self) -> Result<(), NetworkError> {
        let Some(news) = self.news() else {
            return Ok(());
        };
        for (service, arrived) in &news.arrived {
            self.waiting.entry(service.clone()).or_insert(*arrived);
        }
        let (mut changes, names) = self.translate(&news);
        self.held_ports.leave_out(&mut changes, &news).await;
        // What the kernel refuses, the rules remember: the next call is the next attempt.
        self.count(&changes);
        let begun = Instant::now();
        let programmed = self.rules.apply(changes).await;
        METRICS.sync.observe(begun.elapsed().as_secs_f64());
        self.publish(news.complete, names);
        self.check_health(&news);
        programmed.inspect_err(|_| METRICS.sync_failures.inc())?;
        if self.acknowledged != Some(news.revision) {
            self.reports.services_programmed(news.revision);
            self.acknowledged = Some(news.revision);
        }
        for arrived in std::mem::take(&mut self.waiting).into_values() {
            METRICS.programming.observe(arrived.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// What has changed; everything when the node is in another zone, since hints are for zones.
    fn news(&mut self) -> Option<ServiceUpdates> {
        let mut news = self.desired.take_services()?;
        let node = self.desired.node(&self.place.node);
        let labels = node.as_ref().and_then(|node| node.metadata.labels.as_ref());
        let zone = labels.and_then(|labels| labels.get(ZONE_LABEL)).cloned();
        if zone != self.place.zone {
            self.place.zone = zone;
            let arrived = std::mem::take(&mut news.arrived);
            news = self.desired.all_services();
            news.arrived.extend(arrived);
        }
        Some(news)
    }

    fn translate(
        &self,
        news: &ServiceUpdates,
    ) -> (ServiceChanges, BTreeMap<ServiceName, Option<DnsTable>>) {
        let mut changes = ServiceChanges {
            complete: news.complete,
            services: BTreeMap::new(),
        };
        let mut names = BTreeMap::new();
        for (name, objects) in &news.services {
            let rules = services::rules(objects, &self.place);
            changes.services.insert(name.clone(), rules);
            names.insert(name.clone(), services::names(objects, &self.cluster_domain));
        }
        (changes, names)
    }

    /// Keeps the numbers of services and endpoints.
    fn count(&mut self, changes: &ServiceChanges) {
        if changes.complete {
            self.endpoints.clear();
        }
        for (name, ports) in &changes.services {
            let endpoints = ports.iter().map(|port| port.endpoints.len()).sum();
            match ports.is_empty() {
                true => self.endpoints.remove(name),
                false => self.endpoints.insert(name.clone(), endpoints),
            };
        }
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        METRICS.services.set(number(self.endpoints.len()));
        METRICS.endpoints.set(number(self.endpoints.values().sum()));
    }

    fn publish(&self, complete: bool, names: BTreeMap<ServiceName, Option<DnsTable>>) {
        if complete {
            let all = names.into_iter();
            let all = all.filter_map(|(name, table)| Some((name, table?)));
            self.dns.replace(all.collect());
            return;
        }
        for (name, table) in names {
            self.dns.change(name, table);
        }
    }

    fn check_health(&mut self, news: &ServiceUpdates) {
        if news.complete {
            self.health_checks
                .keep(|name| news.services.contains_key(name));
        }
        for (name, objects) in &news.services {
            let wanted = services::health_check(objects, &self.place.node);
            if let Err(error) = self.health_checks.set(name, wanted) {
                tracing::warn!(error = gantry_cri::words(&error), "serving a health check");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use gantry_cri::dns::FakeDns;
    use gantry_network::{FakeListeners, FakeServiceRules, Protocol, ServicePort};
    use gantry_rpc::node::{Resource, agent_message};
    use serde_json::{Value, json};

    use super::*;
    use crate::desired::tests::change_at;

    struct Bed {
        program: Proxier,
        rules: Arc<FakeServiceRules>,
        dns: Arc<FakeDns>,
        listeners: Arc<FakeListeners>,
    }

    impl Bed {
        fn new() -> Self {
            let (rules, dns) = (
                Arc::<FakeServiceRules>::default(),
                Arc::<FakeDns>::default(),
            );
            let listeners = Arc::new(FakeListeners::new([[192, 0, 2, 1].into()]));
            let program = Proxier::new(
                "n1",
                "cluster.local",
                Arc::default(),
                Arc::new(Reports::new("n1")),
                rules.clone(),
                dns.clone(),
                listeners.clone(),
            );
            Self {
                program,
                rules,
                dns,
                listeners,
            }
        }

        fn send(&self, revision: u64, resource: Resource, object: &Value) {
            let change = change_at(revision, resource, object);
            self.program.desired.apply(&change).unwrap();
        }

        fn gone(&self, revision: u64, resource: Resource, object: &Value) {
            let mut change = change_at(revision, resource, object);
            change.deleted = true;
            self.program.desired.apply(&change).unwrap();
        }

        /// Programs, and answers which services were asked for and what was acknowledged.
        async fn sync(&mut self) -> (Vec<String>, Option<u64>) {
            self.program.sync().await.ok();
            let changes = self.rules.take_changes().into_iter();
            let asked = changes.flat_map(|changes| changes.services.into_keys());
            let asked = asked.map(|name| name.name).collect();
            (asked, self.acknowledged())
        }

        fn acknowledged(&self) -> Option<u64> {
            let messages = self.program.reports.next().now_or_never()?;
            messages
                .into_iter()
                .find_map(|message| match message.message {
                    Some(agent_message::Message::ServicesProgrammed(done)) => Some(done.revision),
                    _ => None,
                })
        }

        fn endpoints(&self, service: &str) -> usize {
            let port = self.port(service);
            port.map_or(0, |port| port.endpoints.len())
        }

        /// The first port of a service, as it is programmed.
        fn port(&self, service: &str) -> Option<ServicePort> {
            let name = ServiceName {
                namespace: "shop".into(),
                name: service.into(),
            };
            let ports = self.rules.programmed().remove(&name)?;
            ports.into_iter().next()
        }
    }

    fn service(name: &str) -> Value {
        let ip = format!("10.96.0.{}", name.len());
        json!({"metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}]}})
    }

    fn slice(service: &str, name: &str, endpoints: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
    }

    fn ready(ips: &[&str]) -> Value {
        ips.iter()
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect()
    }

    #[tokio::test]
    async fn a_change_costs_its_own_service_and_is_acknowledged_by_its_revision() {
        let mut bed = Bed::new();
        let desired = bed.program.desired.clone();
        desired.link_opened();
        for (revision, name) in [(5, "a"), (3, "bb"), (4, "ccc")] {
            bed.send(revision, Resource::Service, &service(name));
            bed.send(
                revision,
                Resource::EndpointSlice,
                &slice(name, &format!("{name}-1"), ready(&["10.0.0.1"])),
            );
        }
        assert_eq!(
            bed.sync().await,
            (vec![], None),
            "not before everything is known"
        );
        desired.synced(9);
        let (mut asked, revision) = bed.sync().await;
        asked.sort();
        assert_eq!(
            (asked.join(" "), revision),
            ("a bb ccc".to_owned(), Some(9))
        );
        assert_eq!(bed.dns.services().len(), 3);

        bed.send(
            10,
            Resource::EndpointSlice,
            &slice("bb", "bb-2", ready(&["10.0.0.2"])),
        );
        assert_eq!(bed.sync().await, (vec!["bb".to_owned()], Some(10)));
        assert_eq!((bed.endpoints("a"), bed.endpoints("bb")), (1, 2));
        let moved = slice("a", "bb-2", ready(&["10.0.0.2"]));
        bed.send(11, Resource::EndpointSlice, &moved);
        assert_eq!(
            bed.sync().await,
            (vec!["a".to_owned(), "bb".to_owned()], Some(11))
        );
        assert_eq!((bed.endpoints("a"), bed.endpoints("bb")), (2, 1));
        bed.gone(12, Resource::Service, &service("ccc"));
        bed.gone(13, Resource::EndpointSlice, &moved);
        assert_eq!(
            bed.sync().await,
            (vec!["a".to_owned(), "ccc".to_owned()], Some(13))
        );
        assert_eq!((bed.endpoints("a"), bed.rules.programmed().len()), (1, 2));
        assert_eq!(bed.dns.services().len(), 2);
    }

    #[tokio::test]
    async fn a_new_link_costs_what_is_different_and_is_acknowledged_as_a_whole() {
        let mut bed = Bed::new();
        let desired = bed.program.desired.clone();
        let everything = |bed: &Bed, names: &[&str]| {
            desired.link_opened();
            for name in names {
                bed.send(20, Resource::Service, &service(name));
            }
        };
        everything(&bed, &["a", "bb"]);
        desired.synced(9);
        bed.sync().await;
        everything(&bed, &["bb", "ccc"]);
        assert_eq!(
            bed.sync().await.1,
            None,
            "revisions of a half snapshot mean nothing"
        );
        assert_eq!(
            bed.rules.programmed().len(),
            3,
            "nothing goes before Synced"
        );
        desired.synced(30);
        assert_eq!(bed.sync().await, (vec!["a".to_owned()], Some(30)));
        everything(&bed, &["bb", "ccc"]);
        desired.synced(31);
        assert_eq!(bed.sync().await, (vec![], Some(31)), "nothing is different");
    }

    #[tokio::test]
    async fn services_of_a_checkpoint_are_programmed_while_no_server_has_said_everything() {
        let mut bed = Bed::new();
        for name in ["a", "bb"] {
            bed.send(0, Resource::Service, &service(name));
        }
        assert!(bed.program.desired.has_services());
        bed.program.desired.link_opened();
        bed.send(20, Resource::Service, &service("ccc"));
        assert_eq!(bed.sync().await.0, ["a", "bb", "ccc"]);
    }

    #[tokio::test]
    async fn what_the_kernel_refuses_is_not_acknowledged() {
        let mut bed = Bed::new();
        bed.program.desired.link_opened();
        bed.send(5, Resource::Service, &service("a"));
        bed.program.desired.synced(9);
        bed.rules.refuse(true);
        assert!(bed.program.sync().await.is_err());
        assert_eq!(bed.acknowledged(), None);
        assert_eq!(
            bed.dns.services().len(),
            1,
            "names do not wait for the kernel"
        );
        bed.rules.refuse(false);
        bed.program.sync().await.unwrap();
        assert_eq!(bed.acknowledged(), Some(9));
    }

    #[tokio::test]
    async fn another_zone_changes_every_service() {
        let mut bed = Bed::new();
        bed.program.desired.link_opened();
        bed.send(5, Resource::Service, &service("a"));
        let hinted = |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
        let endpoints = json!([hinted("10.0.0.1", "z1"), hinted("10.0.0.2", "z2")]);
        bed.send(6, Resource::EndpointSlice, &slice("a", "a-1", endpoints));
        bed.program.desired.synced(9);
        bed.sync().await;
        assert_eq!(bed.endpoints("a"), 2);
        let node = json!({"metadata": {"name": "n1", "labels": {ZONE_LABEL: "z2"}}});
        bed.send(10, Resource::Node, &node);
        assert_eq!(bed.sync().await.0, ["a"]);
        assert_eq!(bed.endpoints("a"), 1);
    }

    #[tokio::test]
    async fn a_port_of_the_node_is_taken_when_its_process_has_ended() {
        let mut bed = Bed::new();
        let any = [0, 0, 0, 0].into();
        bed.listeners.listen(Protocol::Tcp, any, 80);
        bed.program.desired.link_opened();
        let mut balanced = service("a");
        balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
        bed.send(5, Resource::Service, &balanced);
        bed.program.desired.synced(9);
        let balancers = |bed: &Bed| bed.port("a").unwrap().load_balancer_ips;
        assert_eq!(bed.sync().await, (vec!["a".to_owned()], Some(9)));
        assert!(balancers(&bed).is_empty());
        assert!(!bed.program.look_around().await, "nothing to program");
        bed.listeners.close(Protocol::Tcp, any, 80);
        assert!(bed.program.look_around().await);
        assert_eq!(bed.sync().await, (vec!["a".to_owned()], None));
        assert_eq!(balancers(&bed).len(), 1);
    }

    #[tokio::test]
    async fn the_time_from_a_change_to_its_acknowledgement_is_measured_by_service() {
        let mut bed = Bed::new();
        let desired = bed.program.desired.clone();
        desired.link_opened();
        bed.send(5, Resource::Service, &service("a"));
        desired.synced(9);
        assert!(
            desired.take_services().unwrap().arrived.is_empty(),
            "everything at once is no change"
        );
        // Other tests of this process measure as well.
        let measured = || METRICS.programming.get_sample_count();
        let (before, failures) = (measured(), METRICS.sync_failures.get());
        for address in ["10.0.0.1", "10.0.0.2"] {
            let slice = slice("a", "a-1", ready(&[address]));
            bed.send(10, Resource::EndpointSlice, &slice);
        }
        bed.send(11, Resource::Service, &service("bb"));
        bed.rules.refuse(true);
        bed.sync().await;
        bed.send(12, Resource::EndpointSlice, &slice("a", "a-1", ready(&[])));
        bed.sync().await;
        let waiting: Vec<&str> = bed
            .program
            .waiting
            .keys()
            .map(|s| s.name.as_str())
            .collect();
        assert_eq!(waiting, ["a", "bb"]);
        assert!(METRICS.sync_failures.get() >= failures + 2);
        bed.rules.refuse(false);
        assert_eq!(bed.sync().await.1, Some(12));
        assert!(bed.program.waiting.is_empty());
        assert!(measured() >= before + 2, "one for each service");
    }
}
