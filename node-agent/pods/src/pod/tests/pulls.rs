//! Who may use an image that another pod has pulled.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_cri::image::{Credentials, Images as _};
use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::pod::pull;

const IMAGE: &str = "r.example/team/app:1";

/// A node whose registry lets nobody pull the image but who has the password "right", and the Secrets of some who have it.
fn private() -> Bed {
    let bed = Bed::new();
    bed.images.offer(IMAGE, ImageConfig::default());
    let credentials = Credentials {
        username: "user".to_owned(),
        password: "right".to_owned(),
    };
    bed.images.protect(IMAGE, &credentials);
    for (name, password) in [("own", "right"), ("same", "right"), ("wrong", "wrong")] {
        put_secret(&bed, name, password);
    }
    bed
}

fn put_secret(bed: &Bed, name: &str, password: &str) {
    let config = json!({"auths": {"r.example": {"username": "user", "password": password}}});
    let config = STANDARD.encode(config.to_string());
    let secret = json!({"metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}")},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": config}});
    bed.objects
        .apply(&change(Resource::Secret, &secret))
        .unwrap();
}

/// What a pod with these Secrets gets: the image, or a reason why not.
async fn asks(node: &Node, policy: &str, secrets: &[&str]) -> Result<(), &'static str> {
    let secrets = secrets.iter().map(|name| json!({"name": name}));
    let secrets: Vec<Value> = secrets.collect();
    let container = json!({"name": "c", "image": IMAGE, "imagePullPolicy": policy});
    let pod = pod(json!({"containers": [container], "imagePullSecrets": secrets}));
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let found = pull::image(node, &pod, container).await;
    found.map(drop).map_err(|missing| missing.reason)
}

const REFUSED: Result<(), &str> = Err("ErrImagePull");
const NEVER: Result<(), &str> = Err("ErrImageNeverPull");

#[tokio::test(start_paused = true)]
async fn a_private_image_is_for_those_who_may_pull_it() {
    let bed = private();
    let node = bed.node();
    assert_eq!(asks(&node, "IfNotPresent", &[]).await, REFUSED);
    assert_eq!(asks(&node, "IfNotPresent", &["own"]).await, Ok(()));
    let pulls = bed.images.pulls();
    // The same pod again, and another with the same credentials, ask nobody.
    for secret in ["own", "same"] {
        for policy in ["IfNotPresent", "Never"] {
            assert_eq!(asks(&node, policy, &[secret]).await, Ok(()));
        }
    }
    assert_eq!(bed.images.pulls(), pulls);
    for secrets in [&[][..], &["wrong"], &["missing"]] {
        assert_eq!(asks(&node, "IfNotPresent", secrets).await, REFUSED);
        assert_eq!(asks(&node, "Never", secrets).await, NEVER);
    }
    assert!(bed.images.pulls() > pulls, "the registry was asked");
    // Without a registry, and for another agent.
    bed.images.withdraw();
    let node = bed.node();
    for secret in ["own", "same"] {
        assert_eq!(asks(&node, "IfNotPresent", &[secret]).await, Ok(()));
    }
    assert_eq!(asks(&node, "IfNotPresent", &[]).await, REFUSED);
    // A Secret whose password was changed is still that Secret.
    put_secret(&bed, "own", "new");
    assert_eq!(asks(&node, "Never", &["own"]).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_anybody_may_pull_or_an_administrator_brought_is_for_all() {
    let bed = Bed::new();
    bed.images.offer(IMAGE, ImageConfig::default());
    let node = bed.node();
    assert_eq!(asks(&node, "IfNotPresent", &[]).await, Ok(()));
    bed.images.withdraw();
    assert_eq!(asks(&node, "Never", &[]).await, Ok(()));

    let bed = private();
    bed.images.preload(IMAGE);
    let node = bed.node();
    assert_eq!(asks(&node, "Never", &[]).await, Ok(()));
    assert_eq!(bed.images.pulls(), 0);
    // Since then it is somebody's.
    assert_eq!(asks(&node, "Always", &["own"]).await, Ok(()));
    assert_eq!(asks(&node, "Never", &[]).await, NEVER);
    // What is gone is forgotten, and may be brought again.
    bed.images.remove(IMAGE).await.unwrap();
    node.pulls.prune(&*bed.images).await.unwrap();
    bed.images.preload(IMAGE);
    assert_eq!(asks(&node, "Never", &[]).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn nobody_uses_an_image_in_the_moment_before_it_is_known_who_may() {
    let bed = private();
    let node = bed.node();
    let intent = node.pulls.intend(IMAGE).await.unwrap();
    // The pull has listed it.
    bed.images.preload(IMAGE);
    assert_eq!(asks(&node, "Never", &[]).await, NEVER);
    // The agent ends here, and never hears how it went.
    std::mem::forget(intent);
    for _ in 0..2 {
        let node = bed.node();
        assert_eq!(asks(&node, "Never", &["own"]).await, NEVER);
        node.pulls.settle(&*bed.images).await.unwrap();
        assert_eq!(asks(&node, "Never", &["own"]).await, NEVER);
    }
    let node = bed.node();
    assert_eq!(asks(&node, "IfNotPresent", &["own"]).await, Ok(()));
    // One that failed leaves what was there to all.
    let bed = private();
    bed.images.preload(IMAGE);
    let node = bed.node();
    assert_eq!(asks(&node, "Always", &["wrong"]).await, REFUSED);
    assert_eq!(asks(&node, "Never", &[]).await, Ok(()));
}
