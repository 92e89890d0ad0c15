use axum::body::Body;
use http::{Method, Request};

use super::*;

fn request(method: Method, uri: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(uri);
    request.body(Body::empty()).expect("a request")
}

fn gate(places: usize, queue: usize) -> Arc<Gate> {
    Arc::new(Gate {
        class: Class::Reads,
        places: Arc::new(Semaphore::new(places)),
        queue: Semaphore::new(queue),
    })
}

#[test]
fn requests_are_told_apart() {
    let user = Identity::new("somebody", &["system:authenticated"]);
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let node = Identity::new("system:node:one", &["system:nodes"]);
    let pods = "/api/v1/namespaces/default/pods";
    for (method, uri, identity, class) in [
        (Method::GET, pods, &user, Some(Class::Reads)),
        (Method::GET, pods, &administrator, Some(Class::Reads)),
        (Method::GET, "/openapi/v3", &user, Some(Class::Reads)),
        (Method::GET, "/readyz", &user, None),
        (Method::GET, "/metrics", &user, None),
        (Method::POST, pods, &user, Some(Class::Changes)),
        (
            Method::DELETE,
            pods,
            &administrator,
            Some(Class::Administration),
        ),
        (
            Method::GET,
            "/api/v1/pods?watch=1",
            &administrator,
            Some(Class::Watches),
        ),
        (
            Method::GET,
            "/api/v1/namespaces/a/pods/p/log?follow=true",
            &user,
            Some(Class::Watches),
        ),
        (
            Method::GET,
            "/api/v1/namespaces/a/pods/p/log",
            &user,
            Some(Class::Reads),
        ),
        (Method::GET, pods, &node, Some(Class::System)),
        (
            Method::PUT,
            "/api/v1/nodes/one/status",
            &node,
            Some(Class::System),
        ),
    ] {
        let of = Class::of(&request(method.clone(), uri), identity);
        assert_eq!(of, class, "{method} {uri} of {}", identity.user);
    }
}

#[test]
fn every_class_has_its_own_gate() {
    for (gate, class) in Limits::default().gates.iter().zip(Class::ALL) {
        assert_eq!(gate.class, class);
        assert_eq!(gate.class, Class::ALL[class as usize]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_class_queues_a_few_and_refuses_the_rest() {
    let gate = gate(1, 1);
    let first = gate.enter().await.expect("there is room");
    let waiting = tokio::spawn({
        let gate = gate.clone();
        async move { gate.enter().await }
    });
    while gate.queue.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let refused = gate.enter().await.expect_err("the queue is full");
    assert_eq!(refused.code(), 429);
    assert!(refused.message().contains("reads"), "{}", refused.message());
    drop(first);
    let second = waiting.await.expect("no panic").expect("its turn");
    // The clock is the test's: patience ends at once.
    let refused = gate.enter().await.expect_err("nobody leaves");
    assert_eq!(refused.code(), 429);
    drop(second);
    gate.enter().await.expect("there is room again");
    assert_eq!(gate.queue.available_permits(), 1);
}

#[tokio::test]
async fn a_watch_is_counted_until_its_answer_ends_and_others_are_not() {
    let limits = Limits::default();
    let left = |class: Class| limits.gates[class as usize].places.available_permits();
    for (class, held) in [(Class::Watches, 1), (Class::Reads, 0)] {
        let before = left(class);
        let place = limits.enter(class).await.expect("there is room");
        assert_eq!(left(class), before - 1);
        let response = place.keep(Response::new(Body::from("line")));
        assert_eq!(left(class), before - held, "{class:?}");
        drop(response);
        assert_eq!(left(class), before);
    }
}
