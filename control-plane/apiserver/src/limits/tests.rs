use axum::body::Body;
use http::{Method, Request};

use super::*;
use crate::registry::Registry;
use crate::request::RequestInfo;

fn request(method: Method, uri: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(uri);
    request.body(Body::empty()).expect("a request")
}

fn gate(places: usize, queue: usize) -> Arc<Gate> {
    Arc::new(Gate::new(Class::Reads, places, queue))
}

#[test]
fn requests_are_told_apart() {
    let user = Identity::new("somebody", &["system:authenticated"]);
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let node = Identity::new("system:node:one", &["system:nodes"]);
    let pods = "/api/v1/namespaces/default/pods";
    let registry = Arc::new(Registry::built_in());
    for (method, uri, identity, class) in [
        (Method::GET, pods, &user, Some(Class::Reads)),
        (Method::GET, pods, &administrator, Some(Class::Reads)),
        (Method::GET, "/openapi/v3", &user, Some(Class::Reads)),
        (Method::GET, "/readyz", &user, None),
        (Method::GET, "/metrics", &user, None),
        (Method::GET, "/version/", &user, None),
        (Method::GET, "/versions", &user, Some(Class::Reads)),
        (
            Method::GET,
            "/healthz/of/everything",
            &user,
            Some(Class::Reads),
        ),
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
            "/api/v1/namespaces/a/pods/p?watch=true",
            &user,
            Some(Class::Reads),
        ),
        (
            Method::GET,
            "/api/v1/watch/namespaces/a/pods/p",
            &user,
            Some(Class::Watches),
        ),
        (
            Method::GET,
            "/api/v1/pods?fieldSelector=metadata.name%3Dp&watch=True",
            &user,
            Some(Class::Watches),
        ),
        (
            Method::HEAD,
            "/api/v1/pods?%77atch",
            &user,
            Some(Class::Watches),
        ),
        (
            Method::GET,
            "/api/v1/pods?watch=FALSE",
            &user,
            Some(Class::Reads),
        ),
        (
            Method::GET,
            "/api/v1/namespaces/a/pods/p/status?watch=1",
            &user,
            Some(Class::Reads),
        ),
        (
            Method::POST,
            "/api/v1/namespaces/a/pods?watch=1",
            &user,
            Some(Class::Changes),
        ),
        (
            Method::GET,
            "/api/v1/namespaces/a/pods/p/log?follow=true",
            &user,
            Some(Class::Streams),
        ),
        (
            Method::POST,
            "/api/v1/namespaces/a/pods/p/proxy/path",
            &user,
            Some(Class::Streams),
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
        let info = RequestInfo::of(&request(method.clone(), uri), registry.clone());
        let of = Class::of(&info, identity);
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
    let user = Identity::new("somebody", &["system:authenticated"]);
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let enter = || {
        gate.enter(&user, || {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        })
    };
    let first = enter().await.expect("there is room");
    let waiting = tokio::spawn({
        let (gate, user) = (gate.clone(), user.clone());
        async move { gate.enter(&user, || {}).await }
    });
    while gate.queue.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let refused = enter().await.expect_err("the queue is full");
    // Room is made for those in the queue, but not by each of a flood that cannot wait.
    enter().await.expect_err("it still is");
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(refused.code(), 429);
    assert!(refused.message().contains("reads"), "{}", refused.message());
    drop(first);
    let second = waiting.await.expect("no panic").expect("its turn");
    // The clock is the test's: patience ends at once.
    let refused = enter().await.expect_err("nobody leaves");
    assert_eq!(refused.code(), 429);
    // Who waits asks for room, once.
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2);
    drop(second);
    enter().await.expect("there is room again");
    assert_eq!(gate.queue.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_user_has_all_places_and_the_anonymous_the_fewest() {
    let gate = Gate::new(Class::Reads, 512, 0);
    let anonymous = Identity::anonymous();
    let user = Identity::new("somebody", &["system:authenticated"]);
    let other = Identity::new("another", &["system:authenticated"]);
    let mut held = Vec::new();
    for (identity, share) in [(&anonymous, 32), (&user, 384)] {
        let before = held.len();
        while let Ok(place) = gate.enter(identity, || {}).await {
            held.push(place);
        }
        assert_eq!(held.len() - before, share, "{}", identity.user);
    }
    held.push(gate.enter(&other, || {}).await.expect("some are left"));
    held.clear();
    // Who has nothing under way is not remembered.
    drop(gate.enter(&Identity::new("fourth", &[]), || {}).await);
    assert_eq!(gate.users.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_room_for_a_user_that_has_too_many_itself() {
    let gate = Gate::new(Class::Reads, 512, 8);
    let anonymous = Identity::anonymous();
    let mut held = Vec::new();
    for _ in 0..Class::Reads.share(&anonymous).0 {
        held.push(gate.enter(&anonymous, || {}).await.expect("its share"));
    }
    // The clock is the test's: patience ends at once.
    let refused = gate.enter(&anonymous, || panic!("there is room for others"));
    assert_eq!(refused.await.expect_err("it has its share").code(), 429);
}

/// So many requests of somebody that wait for a place.
async fn waiting(
    gate: &Arc<Gate>,
    identity: &Identity,
    count: usize,
) -> Vec<tokio::task::JoinHandle<Result<Place, StatusError>>> {
    let queue = gate.share(identity).queue;
    let left = queue.available_permits() - count;
    let spawn = |_| {
        let (gate, identity) = (gate.clone(), identity.clone());
        tokio::spawn(async move { gate.enter(&identity, || {}).await })
    };
    let waiting = (0..count).map(spawn).collect();
    while queue.available_permits() > left {
        tokio::task::yield_now().await;
    }
    waiting
}

#[tokio::test(start_paused = true)]
async fn nobody_stands_in_line_behind_a_user_that_has_too_many() {
    let gate = gate(512, 8);
    let greedy = Identity::new("greedy", &["system:authenticated"]);
    let other = Identity::new("another", &["system:authenticated"]);
    let mut held = Vec::new();
    for _ in 0..Class::Reads.share(&greedy).0 {
        held.push(gate.enter(&greedy, || {}).await.expect("its share"));
    }
    let waiting = waiting(&gate, &greedy, 20).await;
    assert_eq!(gate.queue.available_permits(), 8);
    while gate.places.available_permits() > 0 {
        held.push(gate.enter(&other, || {}).await.expect("there is room"));
    }
    let (mut asked, began) = (false, Instant::now());
    let refused = gate.enter(&other, || asked = true).await;
    assert_eq!(refused.expect_err("nobody leaves").code(), 429);
    assert!(asked && began.elapsed() >= PATIENCE, "it has waited");
    for late in waiting {
        let late = late.await.expect("no panic");
        assert_eq!(late.expect_err("nobody leaves").code(), 429);
    }
}

#[tokio::test(start_paused = true)]
async fn of_one_user_only_so_many_wait() {
    let gate = gate(512, 1024);
    let anonymous = Identity::anonymous();
    let (places, queue) = Class::Reads.share(&anonymous);
    let mut held = Vec::new();
    for _ in 0..places {
        held.push(gate.enter(&anonymous, || {}).await.expect("its share"));
    }
    let waiting = waiting(&gate, &anonymous, queue).await;
    let began = Instant::now();
    let refused = gate.enter(&anonymous, || {}).await;
    assert_eq!(refused.expect_err("too many wait").code(), 429);
    assert_eq!(began.elapsed(), Duration::ZERO);
    // Each has its turn when one leaves.
    held.clear();
    for turn in waiting {
        held.push(turn.await.expect("no panic").expect("its turn"));
        held.clear();
    }
    assert_eq!(gate.share(&anonymous).queue.available_permits(), queue);
}
