use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use gantry_store::{Index, Operation, Transaction};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::verify::{INVALIDATED, Refused};
use super::*;
use crate::streams::NoNodes;
use crate::{ApiServer, ApiServerConfig, Identity};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// 2026-01-01T00:00:00Z, in seconds.
const START: i64 = 1_767_225_600;

/// A cluster with the account `sa` in `default`, and a clock that tests move.
struct World {
    server: ApiServer,
    store: Store,
    now: Arc<AtomicI64>,
    accounts: ServiceAccounts,
}

impl World {
    async fn new() -> Self {
        let (store, now) = (Store::ephemeral(), Arc::new(AtomicI64::new(START)));
        let clock = Clock::new({
            let now = now.clone();
            move || now.load(Ordering::Relaxed) * NANOS
        });
        let config = ApiServerConfig {
            clock: clock.clone(),
            ..ApiServerConfig::default()
        };
        let server = ApiServer::new(config, store.clone(), Arc::new(NoNodes));
        server.bootstrap(6443).await.expect("bootstrapped");
        let accounts = ServiceAccounts::new(store.clone(), clock, ISSUER.to_owned());
        let world = Self {
            server,
            store,
            now,
            accounts,
        };
        world
            .put(
                "serviceaccounts",
                "sa",
                json!({"metadata": {"uid": "sa-1"}}),
            )
            .await;
        world
    }

    /// Stores an object as it is.
    async fn put(&self, plural: &str, name: &str, object: Value) {
        let put = Operation::Put {
            key: self.key(plural, name),
            value: object.to_string().into(),
            index: Index::default(),
        };
        self.propose(put).await;
    }

    async fn remove(&self, plural: &str, name: &str) {
        let key = self.key(plural, name);
        self.propose(Operation::Delete { key, last: None }).await;
    }

    async fn propose(&self, operation: Operation) {
        let transaction = Transaction {
            guards: Vec::new(),
            operations: vec![operation],
        };
        self.store.propose(transaction).await.expect("written");
    }

    fn key(&self, plural: &str, name: &str) -> Key {
        Key {
            table: table("", plural),
            namespace: if plural == "nodes" { "" } else { "default" }.into(),
            name: name.into(),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .expect("a request");
        let Ok(response) = self
            .server
            .local_service(administrator)
            .oneshot(request)
            .await;
        let status = response.status().as_u16();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("whole")
            .to_bytes();
        (status, serde_json::from_slice(&bytes).expect("JSON"))
    }

    async fn ask(&self, spec: Value) -> (u16, Value) {
        let path = "/api/v1/namespaces/default/serviceaccounts/sa/token";
        self.call(Method::POST, path, json!({"spec": spec})).await
    }

    async fn token(&self, spec: Value) -> String {
        let (status, answer) = self.ask(spec).await;
        assert_eq!(status, 201, "{answer}");
        answer["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    async fn review(&self, token: &str, audiences: &[&str]) -> Value {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let asked = json!({"spec": {"token": token, "audiences": audiences}});
        let (status, answer) = self.call(Method::POST, path, asked).await;
        assert_eq!(status, 201, "{answer}");
        answer["status"].clone()
    }

    fn later(&self, seconds: i64) {
        self.now.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn pod(&self, deleted: Option<i64>) {
        let mut pod = json!({
            "metadata": {"uid": "pod-1"},
            "spec": {
                "nodeName": "one", "serviceAccountName": "sa",
                "volumes": [
                    {"name": "plain", "emptyDir": {}},
                    {"name": "api", "projected": {"sources": [
                        {"configMap": {"name": "kube-root-ca.crt"}},
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                        {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
                    ]}},
                ],
            },
        });
        if let (Some(at), Some(metadata)) = (deleted, pod.pointer_mut("/metadata")) {
            let stamp = gantry_api::time::seconds(at * NANOS);
            *metadata = json!({"uid": "pod-1", "deletionTimestamp": stamp});
        }
        self.put("pods", "p", pod).await;
    }
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("three parts");
    let payload = URL_SAFE_NO_PAD.decode(payload).expect("base64url");
    serde_json::from_slice(&payload).expect("JSON")
}

fn bound(kind: &str, name: &str) -> Value {
    json!({"expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}})
}

#[tokio::test]
async fn a_token_stands_for_its_account_while_it_lasts() {
    let world = World::new().await;
    let (_, answer) = world.ask(json!({})).await;
    assert_eq!(answer["kind"], "TokenRequest");
    let metadata = json!({"name": "sa", "namespace": "default", "uid": "sa-1", "creationTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(answer["metadata"], metadata);
    let spec = json!({"audiences": [ISSUER], "expirationSeconds": 3600, "boundObjectRef": null});
    assert_eq!(answer["spec"], spec);
    assert_eq!(
        answer["status"]["expirationTimestamp"],
        "2026-01-01T01:00:00Z"
    );
    let token = answer["status"]["token"].as_str().expect("a token");
    let says = claims(token);
    let id = says["jti"].as_str().expect("an id");
    let expected = json!({
        "aud": [ISSUER], "exp": START + 3600, "iat": START, "nbf": START, "iss": ISSUER, "jti": id,
        "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "sa", "uid": "sa-1"}},
        "sub": "system:serviceaccount:default:sa",
    });
    assert_eq!(says, expected);
    let status = world.review(token, &[]).await;
    let expected = json!({
        "authenticated": true, "audiences": [ISSUER],
        "user": {
            "username": "system:serviceaccount:default:sa", "uid": "sa-1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
            "extra": {"authentication.kubernetes.io/credential-id": [format!("JTI={id}")]},
        },
    });
    assert_eq!(status, expected);
    world.later(3600 + 60);
    assert!(
        world.accounts.identity(token).is_some(),
        "clocks may differ"
    );
    world.later(1);
    let status = world.review(token, &[]).await;
    let why = "[invalid bearer token, service account token has expired]";
    assert_eq!(status, json!({"user": {}, "error": why}));
    world.later(-4000);
    let early = world.accounts.verify(token, &world.accounts.audiences());
    assert!(matches!(early, Err(Refused::Invalid(why)) if why.contains("not valid yet")));
}

#[tokio::test]
async fn a_token_counts_for_its_audiences_alone() {
    let world = World::new().await;
    let token = world.token(json!({"audiences": ["vault", "other"]})).await;
    assert!(world.accounts.identity(&token).is_none());
    assert!(
        !world.accounts.may_be_behind(&token),
        "nothing would change that"
    );
    let status = world.review(&token, &["x", "vault"]).await;
    assert_eq!(status["audiences"], json!(["vault"]));
    assert_eq!(
        world.review(&token, &[]).await["error"],
        format!(
            "[invalid bearer token, token audiences [\"vault\" \"other\"] is invalid for the target audiences [\"{ISSUER}\"]]"
        )
    );
}

#[tokio::test]
async fn reviews_say_why_a_token_counts_no_more_in_kubernetes_words() {
    let world = World::new().await;
    let account =
        |metadata: Value| world.put("serviceaccounts", "sa", json!({"metadata": metadata}));
    let deleted = gantry_api::time::seconds((START - 3600) * NANOS);
    let why = async |token: &str| {
        let error = world.review(token, &[]).await["error"].clone();
        let error = error.as_str().unwrap_or_default();
        let error = error.strip_prefix("[invalid bearer token, ");
        let error = error.and_then(|error| error.strip_suffix(']'));
        error.unwrap_or_default().to_owned()
    };
    let token = world.token(json!({})).await;
    account(json!({"uid": "sa-1", "deletionTimestamp": deleted})).await;
    assert_eq!(
        why(&token).await,
        "service account default/sa has been deleted"
    );
    account(json!({"uid": "sa-2"})).await;
    assert_eq!(
        why(&token).await,
        "service account UID (sa-2) does not match claim (sa-1)"
    );
    world.remove("serviceaccounts", "sa").await;
    assert_eq!(why(&token).await, "serviceaccounts \"sa\" not found");
    account(json!({"uid": "sa-1"})).await;
    for (kind, plural, what) in [
        ("Secret", "secrets", "secret"),
        ("Pod", "pods", "pod"),
        ("Node", "nodes", "node"),
    ] {
        let object = |metadata: Value| {
            let object = json!({"metadata": metadata, "spec": {"serviceAccountName": "sa"}});
            world.put(plural, "x", object)
        };
        object(json!({"uid": "one"})).await;
        let token = world.token(bound(kind, "x")).await;
        object(json!({"uid": "two"})).await;
        assert_eq!(
            why(&token).await,
            format!("{what} UID (two) does not match service account {what} ref claim (one)")
        );
        object(json!({"uid": "one", "deletionTimestamp": deleted})).await;
        assert_eq!(why(&token).await, INVALIDATED, "{kind}");
        world.remove(plural, "x").await;
        assert_eq!(why(&token).await, INVALIDATED, "{kind}");
    }
    let server = &world.server;
    let token = server.secret_token("default", "t", "sa", "sa-1");
    let token = token.expect("there are keys");
    assert_eq!(why(&token).await, "Token has been invalidated");
    let other = json!({"metadata": {"uid": "s"}, "data": {"token": STANDARD.encode("x")}});
    world.put("secrets", "t", other).await;
    assert_eq!(why(&token).await, "Token does not match server's copy");
    let secret = json!({"metadata": {"uid": "s"}, "data": {"token": STANDARD.encode(&token)}});
    world.put("secrets", "t", secret).await;
    account(json!({"uid": "sa-2"})).await;
    assert_eq!(
        why(&token).await,
        "ServiceAccount UID (sa-2) does not match claim (sa-1)"
    );
    account(json!({"uid": "sa-1", "deletionTimestamp": deleted})).await;
    assert_eq!(
        why(&token).await,
        "ServiceAccount default/sa has been deleted"
    );
}

#[tokio::test]
async fn an_account_of_the_same_name_is_another() {
    let world = World::new().await;
    let token = world.token(json!({})).await;
    world
        .put(
            "serviceaccounts",
            "sa",
            json!({"metadata": {"uid": "sa-2"}}),
        )
        .await;
    let found = || world.accounts.verify(&token, &world.accounts.audiences());
    assert!(matches!(found(), Err(Refused::Unknown(_))));
    assert!(
        world.accounts.may_be_behind(&token),
        "another server may know it"
    );
    assert!(
        !world.accounts.may_be_behind(&token),
        "that is not asked again at once"
    );
    world.remove("serviceaccounts", "sa").await;
    assert!(matches!(found(), Err(Refused::Unknown(_))));
}

#[tokio::test]
async fn a_pods_token_says_where_it_runs_and_ends_with_it() {
    let world = World::new().await;
    world.pod(None).await;
    world
        .put("nodes", "one", json!({"metadata": {"uid": "node-1"}}))
        .await;
    let token = world.token(bound("Pod", "p")).await;
    let says = claims(&token);
    assert_eq!(says["exp"], START + 365 * 24 * 3600, "{says}");
    let about = json!({
        "namespace": "default", "serviceaccount": {"name": "sa", "uid": "sa-1"}, "warnafter": START + 3607,
        "pod": {"name": "p", "uid": "pod-1"}, "node": {"name": "one", "uid": "node-1"},
    });
    assert_eq!(says["kubernetes.io"], about);
    let known = world.accounts.identity(&token).expect("it counts");
    for (name, value) in [
        ("pod-name", "p"),
        ("pod-uid", "pod-1"),
        ("node-name", "one"),
        ("node-uid", "node-1"),
    ] {
        let name = format!("authentication.kubernetes.io/{name}");
        assert_eq!(known.extra.get(&name), Some(&vec![value.to_owned()]));
    }
    world.remove("nodes", "one").await;
    assert!(
        world.accounts.identity(&token).is_some(),
        "the pod is there"
    );
    world.pod(Some(START)).await;
    world.later(60);
    assert!(world.accounts.identity(&token).is_some(), "it is ending");
    world.later(1);
    assert!(world.accounts.identity(&token).is_none());
    world.remove("pods", "p").await;
    assert!(world.accounts.identity(&token).is_none());
    // Of another audience or life nothing is extended.
    world.pod(None).await;
    let mut other = bound("Pod", "p");
    other["audiences"] = json!(["vault"]);
    let says = claims(&world.token(other).await);
    assert_eq!(says["exp"], START + 61 + 3607);
    assert!(says["kubernetes.io"]["warnafter"].is_null());
}

#[tokio::test]
async fn nodes_and_secrets_bind_too_and_nothing_else() {
    let world = World::new().await;
    world
        .put("nodes", "one", json!({"metadata": {"uid": "node-1"}}))
        .await;
    world
        .put("secrets", "s", json!({"metadata": {"uid": "secret-1"}}))
        .await;
    for (kind, plural, name) in [("Node", "nodes", "one"), ("Secret", "secrets", "s")] {
        let token = world.token(bound(kind, name)).await;
        let says = claims(&token);
        assert_eq!(says["exp"], START + 3607, "only of pods");
        assert_eq!(says["kubernetes.io"][kind.to_lowercase()]["name"], name);
        assert!(world.accounts.identity(&token).is_some());
        world.remove(plural, name).await;
        assert!(world.accounts.identity(&token).is_none());
        let (status, answer) = world.ask(bound(kind, name)).await;
        let message = format!("{plural} \"{name}\" not found");
        assert_eq!(
            (status, answer["message"].as_str()),
            (404, Some(message.as_str()))
        );
    }
    let (status, answer) = world.ask(bound("ConfigMap", "m")).await;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(
        answer["message"],
        "cannot bind token to object of type /v1, Kind=ConfigMap"
    );
    world.pod(None).await;
    let mut other = bound("Pod", "p");
    other["boundObjectRef"]["uid"] = json!("pod-0");
    assert_eq!(world.ask(other).await.0, 409);
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (status, answer) = world
        .call(Method::POST, path, json!({"spec": bound("Pod", "p")}))
        .await;
    assert_eq!(status, 400, "another account's pod: {answer}");
    let path = "/api/v1/namespaces/default/serviceaccounts/none/token";
    assert_eq!(world.call(Method::POST, path, json!({})).await.0, 404);
    let path = "/api/v1/namespaces/default/serviceaccounts/sa/token";
    assert_eq!(world.call(Method::GET, path, json!({})).await.0, 405);
    let named = json!({"metadata": {"name": "other"}});
    assert_eq!(world.call(Method::POST, path, named).await.0, 422);
    // It is read as every object is.
    for elsewhere in [
        json!({"metadata": {"namespace": "other"}}),
        json!({"kind": "ConfigMap", "apiVersion": "v1"}),
    ] {
        let (status, answer) = world.call(Method::POST, path, elsewhere).await;
        assert_eq!(status, 400, "{answer}");
    }
    let strictly = format!("{path}?fieldValidation=Strict");
    let unknown = json!({"spec": {"bogus": 1}});
    assert_eq!(world.call(Method::POST, &strictly, unknown).await.0, 400);
}

#[tokio::test]
async fn who_means_an_account_of_before_gets_no_token_of_the_one_that_is_there() {
    let world = World::new().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/sa/token";
    let meaning = |uid: &str| json!({"metadata": {"uid": uid}});
    assert_eq!(world.call(Method::POST, path, meaning("sa-1")).await.0, 201);
    let (status, answer) = world.call(Method::POST, path, meaning("sa-0")).await;
    let message = "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"sa\": the UID in the token request (sa-0) does not match the UID of the service account (sa-1)";
    assert_eq!(
        (status, answer["message"].as_str()),
        (409, Some(message)),
        "{answer}"
    );
}

#[tokio::test]
async fn no_token_counts_for_longer_than_a_year_whatever_is_asked_for() {
    let world = World::new().await;
    let year: i64 = 365 * 24 * 3600;
    for (asked, given) in [(year, year), (year + 1, year), (1 << 32, year)] {
        let (status, answer) = world.ask(json!({"expirationSeconds": asked})).await;
        assert_eq!(status, 201, "{answer}");
        assert_eq!(answer["spec"]["expirationSeconds"], given);
        let token = answer["status"]["token"].as_str().expect("a token");
        assert_eq!(claims(token)["exp"], START + given);
    }
    // Its key goes when the last of its tokens has ended.
    let next = keys::add(&world.store, START).await.expect("another key");
    let signs = keys::sign_with(&world.store, &next, START).await;
    signs.expect("it signs");
    let listed = keys::list(&world.store);
    let until = listed.iter().find_map(|key| key.until);
    let leeway = 2 * keys::LEEWAY;
    assert_eq!(until, Some(START + year + leeway), "{listed:?}");
    let over = START + year + leeway;
    let forgotten = keys::forget(&world.store, over, false).await;
    assert!(forgotten.expect("written"));
}

#[tokio::test]
async fn a_pod_has_no_token_that_nobody_would_read() {
    let world = World::new().await;
    let audience = "x".repeat(20_000);
    let pod = json!({
        "metadata": {"uid": "pod-1"},
        "spec": {"nodeName": "one", "serviceAccountName": "sa", "volumes": [
            {"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "audience": audience, "expirationSeconds": 4_000_000_000_i64}},
                {"serviceAccountToken": {"path": "u", "expirationSeconds": 4_000_000_000_i64}},
            ]}},
        ]},
    });
    world.put("pods", "p", pod).await;
    let mut asked = PodTokenRequest {
        node: "one".to_owned(),
        namespace: "default".to_owned(),
        pod: "p".to_owned(),
        uid: "pod-1".to_owned(),
        audience,
        expiration_seconds: 4_000_000_000,
    };
    let refused = world.server.pod_token(&asked).await;
    assert_eq!(refused.expect_err("too long").code(), 400);
    asked.audience = String::new();
    let issued = world.server.pod_token(&asked).await.expect("a token");
    assert_eq!(issued.life, 365 * 24 * 3600, "the node asks again in time");
}

#[tokio::test]
async fn a_node_has_the_tokens_that_its_own_pods_name() {
    let world = World::new().await;
    world.pod(None).await;
    let good = PodTokenRequest {
        node: "one".to_owned(),
        namespace: "default".to_owned(),
        pod: "p".to_owned(),
        uid: "pod-1".to_owned(),
        audience: String::new(),
        expiration_seconds: 3607,
    };
    let issued = world.server.pod_token(&good).await.expect("its own");
    assert_eq!(issued.expires, START + 3607);
    let known = world.accounts.identity(&issued.token).expect("it counts");
    assert_eq!(known.user, "system:serviceaccount:default:sa");
    let vault = PodTokenRequest {
        audience: "vault".to_owned(),
        expiration_seconds: 3600,
        ..good.clone()
    };
    let issued = world.server.pod_token(&vault).await.expect("it is named");
    assert_eq!(claims(&issued.token)["aud"], json!(["vault"]));
    let wrong: [fn(&mut PodTokenRequest); 6] = [
        |asked| asked.node = "two".to_owned(),
        |asked| asked.uid = "pod-0".to_owned(),
        |asked| asked.pod = "q".to_owned(),
        |asked| asked.namespace = "kube-system".to_owned(),
        |asked| asked.audience = "elsewhere".to_owned(),
        |asked| asked.expiration_seconds = 1 << 32,
    ];
    for (number, spoil) in wrong.into_iter().enumerate() {
        let mut asked = good.clone();
        spoil(&mut asked);
        let refused = world
            .server
            .pod_token(&asked)
            .await
            .expect_err("not its own");
        assert!([403, 404].contains(&refused.code()), "{number}: {refused}");
    }
}

#[tokio::test]
async fn a_secrets_token_counts_while_the_secret_holds_it() {
    let world = World::new().await;
    let server = &world.server;
    let token = server
        .secret_token("default", "t", "sa", "sa-1")
        .expect("there are keys");
    assert!(server.is_current_token(&token) && !server.is_current_token("x"));
    assert!(
        world.accounts.identity(&token).is_none(),
        "no Secret holds it"
    );
    let secret =
        |token: &str| json!({"metadata": {"uid": "s"}, "data": {"token": STANDARD.encode(token)}});
    world.put("secrets", "t", secret(&token)).await;
    let known = world.accounts.identity(&token).expect("it counts");
    assert_eq!(
        (known.user.as_str(), known.uid.as_str()),
        ("system:serviceaccount:default:sa", "sa-1")
    );
    world.later(10 * 365 * 24 * 3600);
    assert!(world.accounts.identity(&token).is_some(), "it does not end");
    let mut marked = secret(&token);
    marked["metadata"]["labels"] =
        json!({"kubernetes.io/legacy-token-invalid-since": "2026-01-01"});
    world.put("secrets", "t", marked).await;
    let error = world.review(&token, &[]).await["error"].to_string();
    assert!(error.contains("has been marked invalid"), "{error}");
    let next = server
        .secret_token("default", "t", "sa", "sa-1")
        .expect("signed");
    world.put("secrets", "t", secret(&next)).await;
    assert!(
        world.accounts.identity(&token).is_none(),
        "another is there"
    );
    let of_another = server
        .secret_token("default", "t", "sa", "sa-0")
        .expect("signed");
    world.put("secrets", "t", secret(&of_another)).await;
    assert!(world.accounts.identity(&of_another).is_none());
}

#[tokio::test]
async fn other_clusters_read_the_keys() {
    let world = World::new().await;
    let token = world.token(json!({})).await;
    let (status, found) = world
        .call(Method::GET, "/.well-known/openid-configuration", json!({}))
        .await;
    assert_eq!((status, found["issuer"].as_str()), (200, Some(ISSUER)));
    let uri = found["jwks_uri"].as_str().expect("a URL");
    assert!(uri.ends_with("/openid/v1/jwks"), "{uri}");
    let (_, keys) = world.call(Method::GET, "/openid/v1/jwks", json!({})).await;
    let header = token.split('.').next().expect("a header");
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).expect("base64url")).expect("JSON");
    let key = &keys["keys"][0];
    assert_eq!(key["kid"], header["kid"]);
    let part = |name: &str| {
        URL_SAFE_NO_PAD
            .decode(key[name].as_str().expect("text"))
            .expect("base64url")
    };
    let point = [vec![4], part("x"), part("y")].concat();
    let (signed, signature) = token.rsplit_once('.').expect("three parts");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let key =
        ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
    key.verify(signed.as_bytes(), &signature)
        .expect("it is ours");
}
