//! Quotas through the whole API. Nobody counts here: the tests say what is used.

use std::sync::Arc;

use futures::future::join_all;
use gantry_store::Store;
use http::Method;
use serde_json::{Value, json};

use crate::testing::{send, server};
use crate::{ApiServer, ApiServerConfig, NoNodes};

const SPACE: &str = "/api/v1/namespaces/default";

async fn post(server: &ApiServer, plural: &str, object: Value) -> (u16, Value) {
    send(server, Method::POST, &format!("{SPACE}/{plural}"), object).await
}

/// A quota of which somebody has counted what is used.
async fn quota(server: &ApiServer, name: &str, spec: Value, used: Value) {
    let object = json!({"metadata": {"name": name}, "spec": spec});
    let (status, made) = post(server, "resourcequotas", object).await;
    assert_eq!(status, 201, "{made}");
    let counted = json!({"status": {"hard": spec["hard"], "used": used}});
    let path = format!("{SPACE}/resourcequotas/{name}/status");
    let (status, told) = send(server, Method::PATCH, &path, counted).await;
    assert_eq!(status, 200, "{told}");
}

async fn used(server: &ApiServer, name: &str) -> Value {
    let path = format!("{SPACE}/resourcequotas/{name}");
    let (_, quota) = send(server, Method::GET, &path, Value::Null).await;
    quota["status"]["used"].clone()
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn an_object_is_charged_once_it_is_there_and_refused_where_that_is_too_much() {
    let server = server().await;
    let hard = json!({"hard": {"configmaps": "2", "count/configmaps": "3"}});
    let none = json!({"configmaps": "0", "count/configmaps": "0"});
    quota(&server, "q", hard, none).await;
    let dry = format!("{SPACE}/configmaps?dryRun=All");
    let (status, _) = send(&server, Method::POST, &dry, map("a")).await;
    assert_eq!(status, 201);
    assert_eq!(used(&server, "q").await["configmaps"], "0");
    assert_eq!(post(&server, "configmaps", map("a")).await.0, 201);
    assert_eq!(post(&server, "configmaps", map("a")).await.0, 409);
    assert_eq!(post(&server, "configmaps", map("b")).await.0, 201);
    let expected = json!({"configmaps": "2", "count/configmaps": "2"});
    assert_eq!(used(&server, "q").await, expected);
    let (status, refused) = post(&server, "configmaps", map("c")).await;
    let why = "configmaps \"c\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=2, limited: configmaps=2";
    assert_eq!((status, &refused["message"]), (403, &json!(why)));
    let (status, refused) = send(&server, Method::POST, &dry, map("c")).await;
    assert_eq!((status, &refused["message"]), (403, &json!(why)));
    // What is deleted is given back by who counts.
    let path = format!("{SPACE}/configmaps/a");
    assert_eq!(
        send(&server, Method::DELETE, &path, Value::Null).await.0,
        200
    );
    assert_eq!(used(&server, "q").await, expected);
}

#[tokio::test]
async fn pods_say_what_a_quota_limits_and_are_charged_for_it() {
    let server = server().await;
    let hard = json!({"hard": {"requests.cpu": "1", "pods": "5"}});
    quota(
        &server,
        "q",
        hard,
        json!({"requests.cpu": "0", "pods": "0"}),
    )
    .await;
    let pod = |cpu: &str| {
        json!({"metadata": {"generateName": "p-"}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
    };
    let silent = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": "i"}]}});
    let (status, refused) = post(&server, "pods", silent).await;
    let why = "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c";
    assert_eq!((status, &refused["message"]), (403, &json!(why)));
    let (status, made) = post(&server, "pods", pod("600m")).await;
    assert_eq!(status, 201, "{made}");
    let expected = json!({"requests.cpu": "600m", "pods": "1"});
    assert_eq!(used(&server, "q").await, expected);
    let (status, refused) = post(&server, "pods", pod("600m")).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        status == 403
            && message.ends_with(
                "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
            ),
        "{message}"
    );
    // A change of something else costs nothing.
    let name = made["metadata"]["name"].as_str().expect("a name");
    let path = format!("{SPACE}/pods/{name}");
    let labelled = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(send(&server, Method::PATCH, &path, labelled).await.0, 200);
    assert_eq!(used(&server, "q").await, expected);
    let resize = |cpu: &str| {
        let (server, path) = (&server, format!("{path}/resize"));
        let resources = json!({"requests": {"cpu": cpu}});
        let resized = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        async move { send(server, Method::PATCH, &path, resized).await }
    };
    let (status, told) = resize("900m").await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(used(&server, "q").await["requests.cpu"], "900m");
    let (status, refused) = resize("1100m").await;
    let message = refused["message"].as_str().unwrap_or_default();
    let why = "exceeded quota: q, requested: requests.cpu=200m, used: requests.cpu=900m, limited: requests.cpu=1";
    assert!(status == 403 && message.ends_with(why), "{message}");
}

#[tokio::test]
async fn what_grows_is_charged_for_what_it_grows_by() {
    let server = server().await;
    let hard = json!({"hard": {"services": "1", "services.nodeports": "1"}});
    let none = json!({"services": "0", "services.nodeports": "0"});
    quota(&server, "q", hard, none).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}});
    assert_eq!(post(&server, "services", service).await.0, 201);
    let path = format!("{SPACE}/services/s");
    let patch = |spec: Value| {
        let (server, path) = (&server, &path);
        async move { send(server, Method::PATCH, path, json!({"spec": spec})).await }
    };
    assert_eq!(patch(json!({"type": "NodePort"})).await.0, 200);
    let full = json!({"services": "1", "services.nodeports": "1"});
    assert_eq!(used(&server, "q").await, full);
    let ports = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    let (status, refused) = patch(json!({"ports": ports})).await;
    let why = "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1";
    assert_eq!((status, &refused["message"]), (403, &json!(why)));
    assert_eq!(patch(json!({"type": "ClusterIP"})).await.0, 200);
    assert_eq!(used(&server, "q").await, full);
}

#[tokio::test]
async fn quotas_are_about_objects_in_their_scopes_and_of_their_namespace() {
    let server = server().await;
    let hard = json!({"hard": {"pods": "0"}, "scopes": ["Terminating"]});
    quota(&server, "q", hard, json!({"pods": "0"})).await;
    let pod = |name: &str, more: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    assert_eq!(post(&server, "pods", pod("a", json!({}))).await.0, 201);
    let ending = json!({"activeDeadlineSeconds": 60});
    assert_eq!(post(&server, "pods", pod("b", ending.clone())).await.0, 403);
    // It would come into the scope.
    let path = format!("{SPACE}/pods/a");
    let patch = json!({"spec": ending});
    assert_eq!(send(&server, Method::PATCH, &path, patch).await.0, 403);
    let elsewhere = "/api/v1/namespaces/kube-public/pods";
    let object = pod("b", json!({"activeDeadlineSeconds": 60}));
    let made = send(&server, Method::POST, elsewhere, object).await;
    assert_eq!(made.0, 201, "{}", made.1);
}

#[tokio::test]
async fn who_counts_does_not_miss_what_came_meanwhile() {
    let server = server().await;
    let spec = json!({"hard": {"configmaps": "5"}});
    let object = json!({"metadata": {"name": "q"}, "spec": spec});
    let (_, begun) = post(&server, "resourcequotas", object).await;
    // It is not counted yet, and lets everything pass.
    assert_eq!(post(&server, "configmaps", map("a")).await.0, 201);
    let mut counted = begun.clone();
    if let Some(quota) = counted.as_object_mut() {
        let status = json!({"hard": spec["hard"], "used": {"configmaps": "0"}});
        quota.insert("status".to_owned(), status);
    }
    let path = format!("{SPACE}/resourcequotas/q/status");
    let (status, told) = send(&server, Method::PUT, &path, counted).await;
    assert_eq!(status, 409, "{told}");
}

#[tokio::test]
async fn a_namespace_has_so_many_quotas_and_leaves_nothing_behind() {
    let store = Store::ephemeral();
    let config = ApiServerConfig::default();
    let server = ApiServer::new(config, store.clone(), Arc::new(NoNodes));
    server.bootstrap(6443).await.expect("bootstrapped");
    let spaces = "/api/v1/namespaces";
    let space = json!({"metadata": {"name": "n"}});
    let (status, _) = send(&server, Method::POST, spaces, space.clone()).await;
    assert_eq!(status, 201);
    let path = format!("{spaces}/n/resourcequotas");
    for number in 0..=super::MOST {
        let object = json!({"metadata": {"name": format!("q-{number}")}});
        let (status, told) = send(&server, Method::POST, &path, object).await;
        let expected = if number < super::MOST { 201 } else { 403 };
        assert_eq!(status, expected, "{told}");
    }
    assert!(store.get(&super::rules("n")).is_some());
    let path = format!("{spaces}/n");
    assert_eq!(
        send(&server, Method::DELETE, &path, Value::Null).await.0,
        200
    );
    let path = format!("{path}/finalize");
    let (status, told) = send(&server, Method::PUT, &path, space).await;
    assert_eq!(status, 200, "{told}");
    assert!(store.get(&super::rules("n")).is_none());
}

/// Two servers over one store, as two members have them.
async fn servers() -> [ApiServer; 2] {
    let store = Store::ephemeral();
    let server = || {
        let config = ApiServerConfig::default();
        ApiServer::new(config, store.clone(), Arc::new(NoNodes))
    };
    let servers = [server(), server()];
    servers[0].bootstrap(6443).await.expect("bootstrapped");
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn of_writers_that_race_for_the_last_place_one_wins() {
    let [server, other] = servers().await;
    for round in 0..20 {
        let name = format!("q-{round}");
        let limit = json!({"hard": {"secrets": (round + 1).to_string()}});
        quota(&server, &name, limit, json!({"secrets": round.to_string()})).await;
        let secret = |writer: usize| json!({"metadata": {"name": format!("s-{round}-{writer}")}});
        let (first, second) = tokio::join!(
            post(&server, "secrets", secret(0)),
            post(&other, "secrets", secret(1)),
        );
        let mut statuses = [first.0, second.0];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 403], "{} {}", first.1, second.1);
        assert_eq!(
            used(&server, &name).await["secrets"],
            json!((round + 1).to_string())
        );
        let path = format!("{SPACE}/resourcequotas/{name}");
        assert_eq!(
            send(&server, Method::DELETE, &path, Value::Null).await.0,
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_fill_a_quota_to_the_last_place_and_no_further() {
    let [server, other] = servers().await;
    let hard = json!({"hard": {"configmaps": "50"}});
    quota(&server, "q", hard, json!({"configmaps": "0"})).await;
    let writes = (0..80).map(|number| {
        let server = if number % 2 == 0 { &server } else { &other };
        async move {
            post(server, "configmaps", map(&format!("m-{number}")))
                .await
                .0
        }
    });
    let made = join_all(writes).await;
    let made = made.into_iter().filter(|status| *status == 201).count();
    assert_eq!(made, 50);
    assert_eq!(used(&server, "q").await["configmaps"], "50");
}
