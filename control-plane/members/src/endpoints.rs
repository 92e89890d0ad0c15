//! Keeps the endpoints of the Service `kubernetes` to the servers that are there, and with them what else every cluster has.
//! Runs on the leader, which alone knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use gantry_apiserver::ApiServer;
use gantry_store::{Event, MemberRole, MemberStatus, Store, Table, Watch, WatchError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::roster::{Roster, ServerRecord};

const LOOK: Duration = Duration::from_secs(1);
/// Changes that come faster are looked at together: whoever writes these objects in a loop keeps nobody busy.
const APART: Duration = Duration::from_millis(200);
/// A server that is not heard of for longer is no endpoint until it is: an election or a slow disk takes less.
const PATIENCE: Duration = Duration::from_secs(3);

/// What kube-apiserver calls so, over members instead of leases: since when servers have been silent.
#[derive(Default)]
struct EndpointReconciler {
    silent: BTreeMap<u64, Instant>,
}

impl EndpointReconciler {
    /// The addresses of voters that are there, by id; the leader itself always is. One whose disk fills up will soon serve
    /// nobody, so that it is left out while there are others.
    fn endpoints(
        &mut self,
        members: &[MemberStatus],
        servers: &[ServerRecord],
        now: Instant,
    ) -> Vec<SocketAddr> {
        self.silent
            .retain(|id, _| members.iter().any(|member| member.id == *id));
        let (mut present, mut short) = (Vec::new(), Vec::new());
        for member in members
            .iter()
            .filter(|member| member.role == MemberRole::Voter)
        {
            if member.is_leader || member.active == Some(true) {
                self.silent.remove(&member.id);
            } else if now - *self.silent.entry(member.id).or_insert(now) > PATIENCE {
                continue;
            }
            let server = servers.iter().find(|server| server.id == member.id);
            let at = server.map(|server| server.address);
            match member.short_of_room {
                true => short.extend(at),
                false => present.extend(at),
            }
        }
        if present.is_empty() {
            return short;
        }
        present
    }
}

/// Publishes who is there whenever that changes, and has what every cluster has brought back when somebody deletes or
/// spoils it.
pub async fn keep(api: ApiServer, store: Store, roster: Roster, stop: CancellationToken) {
    let own = ApiServer::own_objects();
    let tables: Vec<Table> = own.iter().map(|key| key.table.clone()).collect();
    let mut changes = None;
    let mut reconciler = EndpointReconciler::default();
    let mut published = Vec::new();
    // Whether some of it may not be as it should be, and when to look after it at the earliest.
    let mut changed = true;
    let mut earliest = Instant::now();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            event = next(&mut changes) => match event {
                Some(Ok(event)) if own.contains(&event.key) => changed = true,
                Some(Ok(_)) => continue,
                // It fell behind.
                Some(Err(_)) => changes = None,
                None => return,
            }
        }
        if changes.is_none() {
            changes = store.watch(&tables, store.revision()).ok();
            // What was missed before.
            changed = true;
        }
        let now = Instant::now();
        let present = reconciler.endpoints(&store.members().await, &roster.all(), now);
        let due = changed && now >= earliest;
        if present.is_empty() || (present == published && !due) {
            continue;
        }
        changed = false;
        earliest = now + APART;
        match api.restore(&present).await {
            Ok(()) if present == published => {}
            Ok(()) => {
                tracing::info!(servers = ?present, "the API's endpoints");
                published = present;
            }
            Err(error) => {
                changed = true;
                tracing::warn!(%error, "looking after the cluster's own objects; trying again");
            }
        }
    }
}

/// The next change; none comes without a watch.
async fn next(changes: &mut Option<Watch>) -> Option<Result<Event, WatchError>> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gantry_apiserver::{ApiServerConfig, Identity, NoNodes};
    use k8s_openapi::api::core::v1::{Endpoints, Namespace, Service};
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
    use kube::runtime::wait::{Condition, await_condition};
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    fn member(id: u64, active: bool) -> MemberStatus {
        MemberStatus {
            short_of_room: false,
            differs: false,
            id,
            role: MemberRole::Voter,
            is_leader: id == 1,
            matched: None,
            lag: None,
            active: Some(active),
        }
    }

    fn server(id: u64) -> ServerRecord {
        ServerRecord::running(
            id,
            format!("s{id}"),
            SocketAddr::from(([10, 0, 0, u8::try_from(id).expect("few")], 6443)),
        )
    }

    #[test]
    fn the_silent_are_left_out_after_a_while_and_come_back_at_once() {
        let servers = [server(1), server(2), server(3)];
        let all: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let mut reconciler = EndpointReconciler::default();
        let start = Instant::now();
        let heard = [member(1, false), member(2, true), member(3, true)];
        let silent = [member(1, false), member(2, false), member(3, true)];
        assert_eq!(reconciler.endpoints(&heard, &servers, start), all);
        assert_eq!(reconciler.endpoints(&silent, &servers, start), all);
        assert_eq!(
            reconciler.endpoints(&silent, &servers, start + PATIENCE),
            all
        );
        let later = start + PATIENCE + Duration::from_millis(1);
        let rest = [all[0], all[2]];
        assert_eq!(reconciler.endpoints(&silent, &servers, later), rest);
        assert_eq!(reconciler.endpoints(&heard, &servers, later), all);
        // Its silence begins anew.
        assert_eq!(reconciler.endpoints(&silent, &servers, later), all);
        // A server that was removed is gone at once; one that only learns does not count yet.
        assert_eq!(reconciler.endpoints(&heard[..2], &servers, later), all[..2]);
        let full = MemberStatus {
            short_of_room: true,
            ..member(2, true)
        };
        let with_full = [heard[0], full, heard[2]];
        assert_eq!(reconciler.endpoints(&with_full, &servers, later), rest);
        assert_eq!(reconciler.endpoints(&[full], &servers, later), all[1..2]);
        let learner = MemberStatus {
            role: MemberRole::Learner,
            ..member(3, true)
        };
        let joining = [heard[0], heard[1], learner];
        assert_eq!(reconciler.endpoints(&joining, &servers, later), all[..2]);
    }

    /// Waits until the object is so.
    async fn wait<K>(api: &Api<K>, name: &str, condition: impl Condition<K>)
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let awaited = await_condition(api.clone(), name, condition);
        let awaited = tokio::time::timeout(Duration::from_secs(10), awaited).await;
        awaited.expect("in time").expect("a watch");
    }

    #[tokio::test]
    async fn what_every_cluster_has_is_back_within_seconds() {
        let store = Store::ephemeral();
        let api = ApiServer::new(ApiServerConfig::default(), store.clone(), Arc::new(NoNodes));
        api.bootstrap(6443).await.expect("bootstrapped");
        let roster = Roster::new(store.clone());
        roster.put(&server(1)).await.expect("written");
        let stop = CancellationToken::new();
        let _ends = stop.clone().drop_guard();
        tokio::spawn(keep(api.clone(), store, roster, stop));
        let identity = Identity::new("kubernetes-admin", &["system:masters"]);
        let client = kube::Client::new(api.local_service(identity), "default");
        let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
        let told = |slice: Option<&EndpointSlice>| {
            let endpoints = slice.and_then(|slice| slice.endpoints.as_ref());
            let first = endpoints.and_then(|endpoints| endpoints.first());
            first.is_some_and(|endpoint| endpoint.addresses == ["10.0.0.1"])
        };
        wait(&slices, "kubernetes", told).await;
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let before = services.get("kubernetes").await.expect("the service");
        let address = |service: &Service| {
            let spec = service.spec.as_ref();
            spec.and_then(|spec| spec.cluster_ip.clone())
        };
        let parameters = DeleteParams::default();
        services
            .delete("kubernetes", &parameters)
            .await
            .expect("deleted");
        let (uid, had) = (before.metadata.uid.clone(), address(&before));
        let back = move |service: Option<&Service>| {
            service.is_some_and(|service| service.metadata.uid != uid && address(service) == had)
        };
        wait(&services, "kubernetes", back).await;
        slices
            .delete("kubernetes", &parameters)
            .await
            .expect("deleted");
        wait(&slices, "kubernetes", told).await;
        let endpoints: Api<Endpoints> = Api::default_namespaced(client.clone());
        let spoilt = Patch::Merge(json!({"subsets": null}));
        endpoints
            .patch("kubernetes", &PatchParams::default(), &spoilt)
            .await
            .expect("spoilt");
        let set_right = |endpoints: Option<&Endpoints>| {
            let subsets = endpoints.and_then(|endpoints| endpoints.subsets.as_ref());
            subsets.is_some_and(|subsets| subsets.len() == 1)
        };
        wait(&endpoints, "kubernetes", set_right).await;
        // Nobody empties namespaces here: without its finalizer it goes at once.
        let namespaces: Api<Namespace> = Api::all(client);
        let mut leases = namespaces
            .get("kube-node-lease")
            .await
            .expect("it is there");
        let uid = leases.metadata.uid.clone();
        namespaces
            .delete("kube-node-lease", &parameters)
            .await
            .expect("deleted");
        leases.spec = None;
        leases.metadata.resource_version = None;
        namespaces
            .replace_subresource(
                "finalize",
                "kube-node-lease",
                &PostParams::default(),
                &leases,
            )
            .await
            .expect("finalized");
        let another = move |namespace: Option<&Namespace>| {
            namespace.is_some_and(|namespace| namespace.metadata.uid != uid)
        };
        wait(&namespaces, "kube-node-lease", another).await;
    }
}
