//! The list of plugins, with plugins made for it.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::plugin::Operation;
use super::{Attributes, Chain, Plugin};
use crate::streams::NoNodes;
use crate::testing::{send, server};
use crate::{ApiServer, ApiServerConfig};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Adds its letter to what a ConfigMap says, and notes what it was asked.
struct Letter {
    letter: &'static str,
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Plugin for Letter {
    fn name(&self) -> &'static str {
        "Letter"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.writes("", "ConfigMap")
    }

    async fn admit(&self, at: &Attributes<'_>, draft: &mut dyn Draft) -> Result<(), StatusError> {
        self.asked.lock().push(format!("admit {}", self.letter));
        // It may wait, and others are answered meanwhile.
        tokio::task::yield_now().await;
        let was = draft.typed_old::<ConfigMap>().is_some();
        assert_eq!(was, at.operation == Operation::Update);
        if let Some(map) = draft.typed_mut::<ConfigMap>() {
            let data = map.data.get_or_insert_default();
            data.entry("said".to_owned())
                .or_default()
                .push_str(self.letter);
        }
        Ok(())
    }

    fn validate(&self, at: &Attributes<'_>, draft: &dyn Draft) -> Result<Vec<String>, StatusError> {
        self.asked.lock().push(format!("validate {}", self.letter));
        let map = draft.typed::<ConfigMap>().cloned().unwrap_or_default();
        let said = map.data.and_then(|data| data.get("said").cloned());
        match said.is_some_and(|said| said.contains('!')) {
            true => Err(StatusError::forbidden(at.info(), "m", "no shouting")),
            false => Ok(Vec::new()),
        }
    }

    fn delete(&self, _: &Attributes<'_>) -> Result<(), StatusError> {
        self.asked.lock().push(format!("delete {}", self.letter));
        Ok(())
    }
}

#[tokio::test]
async fn plugins_are_asked_in_their_order_at_every_write() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let letter = |letter| -> Box<dyn Plugin> {
        let asked = asked.clone();
        Box::new(Letter { letter, asked })
    };
    let admission = Chain(vec![letter("a"), letter("b")]);
    let store = gantry_store::Store::ephemeral();
    let server = ApiServer::with_admission(
        ApiServerConfig::default(),
        store,
        Arc::new(NoNodes),
        Arc::new(admission),
    );
    server.bootstrap(6443).await.expect("bootstrapped");
    let taken = || std::mem::take(&mut *asked.lock());
    taken();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let (status, created) = send(&server, Method::POST, MAPS, map.clone()).await;
    assert_eq!((status, &created["data"]["said"]), (201, &json!("ab")));
    let stages = ["admit a", "admit b", "validate a", "validate b"];
    assert_eq!(taken(), stages);
    let path = format!("{MAPS}/m");
    let (status, patched) = send(
        &server,
        Method::PATCH,
        &path,
        json!({"data": {"said": "-"}}),
    )
    .await;
    assert_eq!((status, &patched["data"]["said"]), (200, &json!("-ab")));
    assert_eq!(taken(), stages);
    let (status, _) = send(
        &server,
        Method::PATCH,
        &path,
        json!({"data": {"said": "!"}}),
    )
    .await;
    assert_eq!(status, 403);
    taken();
    let (_, kept) = send(&server, Method::GET, &path, Value::Null).await;
    assert_eq!(
        kept["data"]["said"], "-ab",
        "nothing of what was refused is kept"
    );
    assert_eq!(
        send(&server, Method::DELETE, &path, Value::Null).await.0,
        200
    );
    assert_eq!(taken(), ["delete a", "delete b"]);
}

/// Keys of a pod's tolerations.
fn tolerated(pod: &Value) -> Vec<String> {
    let pod: Pod = serde_json::from_value(pod.clone()).expect("a pod");
    let tolerations = pod.spec.and_then(|spec| spec.tolerations);
    let keys = tolerations.into_iter().flatten();
    keys.filter_map(|toleration| toleration.key).collect()
}

#[tokio::test]
async fn tolerations_that_a_client_replaces_come_back() {
    let server = server().await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}
    });
    let (status, mut pod) = send(&server, Method::POST, PODS, pod).await;
    assert_eq!(status, 201);
    let defaults = [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ];
    assert_eq!(tolerated(&pod), defaults);
    pod["spec"]["tolerations"] = json!([{"key": "mine", "operator": "Exists"}]);
    // Clients that do not know these leave them out.
    for field in ["priority", "preemptionPolicy"] {
        pod["spec"].as_object_mut().expect("a spec").remove(field);
    }
    let path = format!("{PODS}/p");
    let (status, replaced) = send(&server, Method::PUT, &path, pod).await;
    assert_eq!(status, 200, "{replaced}");
    assert_eq!(tolerated(&replaced), ["mine", defaults[0], defaults[1]]);
    assert_eq!(replaced["spec"]["priority"], 0);
    assert_eq!(replaced["spec"]["preemptionPolicy"], "PreemptLowerPriority");
}

#[tokio::test]
async fn a_pod_without_a_class_gets_the_default_one_of_which_there_is_one() {
    const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let server = server().await;
    let class = |name: &str, value: i32, default: bool| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "globalDefault": default,
            "preemptionPolicy": "Never"
        })
    };
    let pod = |name: &str, policy: Value| {
        let container = json!({"name": "c", "image": "i"});
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [container], "preemptionPolicy": policy}
        })
    };
    let (status, first) = send(&server, Method::POST, PODS, pod("a", json!(null))).await;
    assert_eq!((status, &first["spec"]["priority"]), (201, &json!(0)));
    let (status, _) = send(&server, Method::POST, CLASSES, class("usual", 7, true)).await;
    assert_eq!(status, 201);
    let (status, refused) = send(&server, Method::POST, CLASSES, class("other", 8, true)).await;
    let expected = "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual \
        is already marked as default. Only one default can exist";
    assert_eq!((status, &refused["message"]), (403, &json!(expected)));
    let (status, _) = send(&server, Method::POST, CLASSES, class("other", 8, false)).await;
    assert_eq!(status, 201);
    let path = format!("{CLASSES}/other");
    let default = json!({"globalDefault": true});
    let (status, _) = send(&server, Method::PATCH, &path, default.clone()).await;
    assert_eq!(status, 403);
    let path = format!("{CLASSES}/usual");
    let (status, _) = send(&server, Method::PATCH, &path, default).await;
    assert_eq!(status, 200);
    let (status, second) = send(&server, Method::POST, PODS, pod("b", json!(null))).await;
    assert_eq!(status, 201, "{second}");
    assert_eq!(second["spec"]["priorityClassName"], "usual");
    assert_eq!(second["spec"]["priority"], 7);
    assert_eq!(second["spec"]["preemptionPolicy"], "Never");
    let pod = pod("c", json!("PreemptLowerPriority"));
    let (status, refused) = send(&server, Method::POST, PODS, pod).await;
    let expected = "pods \"c\" is forbidden: the string value of PreemptionPolicy \
        (PreemptLowerPriority) must not be provided in pod spec; priority admission controller \
        computed Never from the given PriorityClass name";
    assert_eq!((status, &refused["message"]), (403, &json!(expected)));
}

#[tokio::test]
async fn refusals_name_what_has_no_name_yet() {
    let server = server().await;
    for (metadata, shown) in [
        (json!({"generateName": "web-"}), "web-"),
        (json!({}), "Unknown"),
    ] {
        let container = json!({"name": "c", "image": "i"});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [container], "priorityClassName": "none"}
        });
        let (status, refused) = send(&server, Method::POST, PODS, pod).await;
        let expected =
            format!("pods \"{shown}\" is forbidden: no PriorityClass with name none was found");
        assert_eq!((status, &refused["message"]), (403, &json!(expected)));
    }
}

#[tokio::test]
async fn nothing_is_made_of_objects_in_a_namespace_that_is_missing_or_leaves() {
    const NAMESPACES: &str = "/api/v1/namespaces";
    let server = server().await;
    let token = async |namespace: &str| {
        let path = format!("{NAMESPACES}/{namespace}/serviceaccounts/default/token");
        let (status, answer) = send(&server, Method::POST, &path, json!({"spec": {}})).await;
        let message = answer["message"].as_str().unwrap_or_default();
        (status, message.to_owned())
    };
    let missing = "namespaces \"leaving\" not found".to_owned();
    assert_eq!(token("leaving").await, (404, missing));
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "leaving"}});
    let (status, _) = send(&server, Method::POST, NAMESPACES, namespace).await;
    assert_eq!(status, 201);
    let path = format!("{NAMESPACES}/leaving");
    let (status, _) = send(&server, Method::DELETE, &path, json!({})).await;
    assert_eq!(status, 200);
    let leaves = "serviceaccounts \"default\" is forbidden: unable to create new content in namespace leaving because it is being terminated";
    assert_eq!(token("leaving").await, (403, leaves.to_owned()));
}

#[tokio::test]
async fn nothing_is_bound_or_evicted_where_the_namespace_ends() {
    let server = server().await;
    let namespace = json!({"metadata": {"name": "ending"}});
    let made = send(&server, Method::POST, "/api/v1/namespaces", namespace).await;
    assert_eq!(made.0, 201);
    // Its own finalizer holds it.
    let path = "/api/v1/namespaces/ending";
    assert_eq!(send(&server, Method::DELETE, path, json!({})).await.0, 200);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let eviction = json!({"metadata": {"name": "p"}});
    for (below, body) in [("binding", binding), ("eviction", eviction)] {
        let path = format!("/api/v1/namespaces/ending/pods/p/{below}");
        let (status, answer) = send(&server, Method::POST, &path, body.clone()).await;
        assert_eq!(status, 403, "{answer}");
        assert_eq!(
            answer["message"],
            "pods \"p\" is forbidden: unable to create new content in namespace ending because it is being terminated"
        );
        let cause = &answer["details"]["causes"][0];
        assert_eq!(cause["reason"], "NamespaceTerminating");
        let path = format!("/api/v1/namespaces/missing/pods/p/{below}");
        let (status, answer) = send(&server, Method::POST, &path, body).await;
        assert_eq!(status, 404);
        assert_eq!(answer["message"], "namespaces \"missing\" not found");
    }
}

#[tokio::test]
async fn volumes_and_claims_are_protected_and_do_not_grow_by_themselves() {
    const VOLUMES: &str = "/api/v1/persistentvolumes";
    const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
    let server = server().await;
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}
        }
    });
    let (status, volume) = send(&server, Method::POST, VOLUMES, volume).await;
    assert_eq!(status, 201, "{volume}");
    let protection = json!(["kubernetes.io/pv-protection"]);
    assert_eq!(volume["metadata"]["finalizers"], protection);
    assert_eq!(volume["status"]["phase"], "Pending");
    assert_eq!(
        volume["status"]["lastPhaseTransitionTime"],
        volume["metadata"]["creationTimestamp"]
    );
    let path = format!("{VOLUMES}/v/status");
    let time = "2001-02-03T04:05:06Z";
    let told = json!({"status": {"phase": "Available", "lastPhaseTransitionTime": time}});
    let (status, told) = send(&server, Method::PATCH, &path, told).await;
    assert_eq!(
        (status, &told["status"]["lastPhaseTransitionTime"]),
        (200, &json!(time))
    );
    let kept = json!({"status": {"phase": "Available", "lastPhaseTransitionTime": null}});
    let (_, kept) = send(&server, Method::PATCH, &path, kept).await;
    assert_eq!(kept["status"]["lastPhaseTransitionTime"], time);
    let bound = json!({"status": {"phase": "Bound"}});
    let (status, changed) = send(&server, Method::PATCH, &path, bound.clone()).await;
    assert_eq!(status, 200, "{changed}");
    let noted = changed["status"]["lastPhaseTransitionTime"].as_str();
    assert!(noted.is_some_and(|noted| noted > time), "{changed}");

    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "finalizers": ["a.b/c"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    });
    let (status, claim) = send(&server, Method::POST, CLAIMS, claim).await;
    assert_eq!(status, 201, "{claim}");
    let protection = json!(["a.b/c", "kubernetes.io/pvc-protection"]);
    assert_eq!(claim["metadata"]["finalizers"], protection);
    let path = format!("{CLAIMS}/c");
    let status_path = format!("{path}/status");
    let (status, _) = send(&server, Method::PATCH, &status_path, bound).await;
    assert_eq!(status, 200);
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let (status, refused) = send(&server, Method::PATCH, &path, larger).await;
    let expected = "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be \
        resized and the storageclass that provisions the pvc must support resize";
    assert_eq!((status, &refused["message"]), (403, &json!(expected)));
}

#[tokio::test]
async fn what_a_pod_is_resized_to_keeps_the_limits_of_its_namespace_and_fits_its_node() {
    let server = server().await;
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"allocatable": {"cpu": "400m", "memory": "1Gi"}}
    });
    let (status, node) = send(&server, Method::POST, "/api/v1/nodes", node).await;
    assert_eq!(status, 201, "{node}");
    let containers = |request: &str, limit: &str| {
        let resources = json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        json!([{"name": "c", "image": "i", "resources": resources}])
    };
    for (name, node) in [("free", ""), ("bound", "n")] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": containers("100m", "200m"), "nodeName": node}
        });
        let (status, pod) = send(&server, Method::POST, PODS, pod).await;
        assert_eq!(status, 201, "{pod}");
    }
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"},
        "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}
    });
    let path = "/api/v1/namespaces/default/limitranges";
    let (status, range) = send(&server, Method::POST, path, range).await;
    assert_eq!(status, 201, "{range}");
    let resized = async |name: &str, request: &str, limit: &str| {
        let path = format!("{PODS}/{name}/resize");
        let patch = json!({"spec": {"containers": containers(request, limit)}});
        send(&server, Method::PATCH, &path, patch).await
    };
    let (status, refused) = resized("free", "150m", "2").await;
    let expected =
        "pods \"free\" is forbidden: maximum cpu usage per Container is 1, but limit is 2";
    assert_eq!((status, &refused["message"]), (403, &json!(expected)));
    let (status, pod) = resized("free", "450m", "500m").await;
    assert_eq!((status, &pod["metadata"]["generation"]), (200, &json!(2)));
    let (status, refused) = resized("bound", "450m", "500m").await;
    let expected = "pods \"bound\" is forbidden: node didn't have enough allocatable resources: \
        cpu, requested: 450, allocatable: 400";
    assert_eq!((status, &refused["message"]), (403, &json!(expected)));
    let causes = &refused["details"]["causes"];
    assert_eq!(causes, &json!([{"reason": "NodeCapacity"}]));
    let (status, pod) = resized("bound", "350m", "500m").await;
    assert_eq!(status, 200, "{pod}");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["resources"]["requests"]["cpu"], "350m");
}
