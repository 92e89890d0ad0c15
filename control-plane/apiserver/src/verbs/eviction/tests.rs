use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::testing::{self, send};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

async fn done(server: &ApiServer, method: Method, uri: &str, body: Value) -> Value {
    let (status, answer) = send(server, method, uri, body).await;
    assert!((200..300).contains(&status), "{answer}");
    answer
}

/// A pod of `app=web` that runs on a node, and is ready or not.
async fn run(server: &ApiServer, name: &str, ready: bool) {
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}
    });
    done(server, Method::POST, PODS, pod).await;
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {
        "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]
    }});
    let uri = format!("{PODS}/{name}/status");
    done(server, Method::PATCH, &uri, status).await;
}

async fn budget(server: &ApiServer, name: &str, more: Value) {
    let mut spec = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    for (field, value) in more.as_object().expect("an object") {
        spec[field] = value.clone();
    }
    let budget = json!({"metadata": {"name": name}, "spec": spec});
    done(server, Method::POST, BUDGETS, budget).await;
}

/// What the controller would say.
async fn counted(server: &ApiServer, name: &str, allowed: i32, healthy: i32, desired: i32) {
    let status = json!({"status": {
        "observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": desired,
        "expectedPods": healthy,
    }});
    let uri = format!("{BUDGETS}/{name}/status");
    done(server, Method::PATCH, &uri, status).await;
}

async fn evict(server: &ApiServer, name: &str, options: Value) -> (u16, Value) {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options,
    });
    let uri = format!("{PODS}/{name}/eviction");
    send(server, Method::POST, &uri, eviction).await
}

async fn get(server: &ApiServer, uri: &str) -> Value {
    done(server, Method::GET, uri, Value::Null).await
}

fn target(pod: &Value) -> Option<&Value> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == "DisruptionTarget")
}

#[tokio::test]
async fn a_pod_goes_by_its_budget_and_says_why() {
    let server = testing::server().await;
    budget(&server, "b", json!({})).await;
    run(&server, "a", true).await;
    run(&server, "z", true).await;
    // Nobody has counted yet.
    let (status, answer) = evict(&server, "a", json!({})).await;
    assert_eq!(status, 429, "{answer}");
    assert_eq!(answer["details"]["retryAfterSeconds"], 10);
    assert_eq!(answer["details"]["causes"][0]["reason"], "DisruptionBudget");
    counted(&server, "b", 1, 2, 1).await;
    let uri = format!("{BUDGETS}/b");
    // A dry run takes nothing and says nothing.
    let before = get(&server, &uri).await;
    let (status, answer) = evict(&server, "a", json!({"dryRun": ["All"]})).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!(get(&server, &uri).await, before);
    let pod = get(&server, &format!("{PODS}/a")).await;
    assert_eq!(target(&pod), None);
    let (status, answer) = evict(&server, "a", json!({})).await;
    assert_eq!((status, &answer["status"]), (201, &json!("Success")));
    let pod = get(&server, &format!("{PODS}/a")).await;
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod}");
    let told = target(&pod).expect("it says why");
    assert_eq!(told["status"], "True");
    assert_eq!(told["reason"], "EvictionByEvictionAPI");
    assert_eq!(told["message"], "Eviction API: evicting");
    let after = get(&server, &uri).await;
    assert_eq!(after["status"]["disruptionsAllowed"], 0);
    assert!(after["status"]["disruptedPods"]["a"].is_string(), "{after}");
    assert_eq!(
        after["status"]["conditions"][0]["reason"],
        "InsufficientPods"
    );
    assert_eq!(after["metadata"]["generation"], 1);
    // The other one stays, also in a dry run; that which goes already may be told again.
    for options in [json!({}), json!({"dryRun": ["All"]})] {
        assert_eq!(evict(&server, "z", options).await.0, 429);
    }
    assert_eq!(evict(&server, "a", json!({})).await.0, 201);
}

#[tokio::test]
async fn who_counts_for_nothing_goes_without_a_budget() {
    let server = testing::server().await;
    budget(&server, "b", json!({})).await;
    let uri = format!("{PODS}/p");
    for phase in ["Pending", "Succeeded", "Failed"] {
        run(&server, "p", false).await;
        let status = json!({"status": {"phase": phase}});
        done(&server, Method::PATCH, &format!("{uri}/status"), status).await;
        assert_eq!(evict(&server, "p", json!({})).await.0, 201, "{phase}");
        let (status, _) = send(
            &server,
            Method::DELETE,
            &format!("{uri}?gracePeriodSeconds=0"),
            Value::Null,
        )
        .await;
        assert!([200, 404].contains(&status));
    }
}

#[tokio::test]
async fn unready_pods_go_as_the_budgets_policy_says() {
    let server = testing::server().await;
    budget(&server, "b", json!({})).await;
    run(&server, "p", false).await;
    counted(&server, "b", 0, 1, 2).await;
    assert_eq!(evict(&server, "p", json!({})).await.0, 429);
    counted(&server, "b", 0, 2, 2).await;
    assert_eq!(evict(&server, "p", json!({})).await.0, 201);
    let budget = get(&server, &format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"]["disruptedPods"], Value::Null);
    counted(&server, "b", 0, 0, 2).await;
    run(&server, "q", false).await;
    let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    done(&server, Method::PATCH, &format!("{BUDGETS}/b"), always).await;
    assert_eq!(evict(&server, "q", json!({})).await.0, 201);
}

#[tokio::test]
async fn two_budgets_of_one_pod_are_no_budget_to_go_by() {
    let server = testing::server().await;
    budget(&server, "b", json!({})).await;
    budget(&server, "c", json!({"selector": {}})).await;
    run(&server, "p", true).await;
    let (status, answer) = evict(&server, "p", json!({})).await;
    assert_eq!(status, 500);
    assert_eq!(answer["message"], super::MORE_THAN_ONE);
    done(
        &server,
        Method::DELETE,
        &format!("{BUDGETS}/c"),
        Value::Null,
    )
    .await;
    counted(&server, "b", 1, 1, 0).await;
    // The version that the client means is kept to.
    let other = json!({"preconditions": {"resourceVersion": "1"}});
    assert_eq!(evict(&server, "p", other).await.0, 409);
}

#[tokio::test]
async fn as_many_go_at_once_as_there_are_to_take() {
    let server = testing::server().await;
    budget(&server, "b", json!({})).await;
    let names: Vec<String> = (0..40).map(|number| format!("p-{number}")).collect();
    for name in &names {
        run(&server, name, true).await;
    }
    counted(&server, "b", 13, 40, 27).await;
    let evictions = names.iter().map(|name| evict(&server, name, json!({})));
    let answers = join_all(evictions).await;
    let with = |code: u16| answers.iter().filter(|(status, _)| *status == code).count();
    assert_eq!((with(201), with(429)), (13, 27));
    let budget = get(&server, &format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    let taken = budget["status"]["disruptedPods"].as_object();
    assert_eq!(taken.map(|taken| taken.len()), Some(13));
}

#[tokio::test]
async fn the_request_and_its_body_ask_for_the_same_dry_run() {
    let server = testing::server().await;
    run(&server, "p", true).await;
    let ask = async |query: &str, options: Value| {
        let uri = format!("{PODS}/p/eviction{query}");
        let eviction = json!({"metadata": {"name": "p"}, "deleteOptions": options});
        send(&server, Method::POST, &uri, eviction).await
    };
    let all = json!({"dryRun": ["All"]});
    assert_eq!(ask("?dryRun=All", all.clone()).await.0, 201);
    assert_eq!(ask("?dryRun=All", json!({})).await.0, 201);
    let twice = json!({"dryRun": ["All", "All"]});
    let (status, answer) = ask("?dryRun=All", twice).await;
    assert_eq!(status, 500);
    assert_eq!(
        answer["message"],
        "Non-matching dry-run options in request and content: [All] and [All All]"
    );
    let ignoring = json!({"ignoreStoreReadErrorWithClusterBreakingPotential": true});
    assert_eq!(ask("", ignoring).await.0, 422);
    get(&server, &format!("{PODS}/p")).await;
}
