use std::sync::Arc;

use gantry_store::Store;

use super::*;
use crate::server::ApiServerConfig;
use crate::streams::NoNodes;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
const NODE_CRITICAL: &str = "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical";

async fn cluster() -> (ApiServer, SocketAddr) {
    let config = ApiServerConfig::default();
    let server = ApiServer::new(config, Store::ephemeral(), Arc::new(NoNodes));
    run(&server, 6443).await.expect("the cluster's own objects");
    let address = SocketAddr::from(([192, 0, 2, 1], 6443));
    restore(&server, &[address]).await.expect("published");
    (server, address)
}

async fn found(server: &ApiServer, path: &str) -> Value {
    let found = read(server, path).await.expect("an answer");
    found.expect("it is there")
}

fn service(name: &str, address: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": address, "ports": [{"port": 80}]}})
}

#[tokio::test]
async fn what_is_deleted_is_back_with_the_same_address() {
    let (server, address) = cluster().await;
    let before = found(&server, SERVICE).await;
    let refused = call(&server, Method::DELETE, NODE_CRITICAL, &json!({})).await;
    let refused = refused.expect_err("it is kept");
    let expected = "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system priority class and cannot be deleted";
    assert!(refused.message().ends_with(expected), "{refused}");
    for (deleted, path) in [
        (SERVICE, SERVICE),
        (SLICE, SLICE),
        (ENDPOINTS, ENDPOINTS),
        // Who deletes all of them deletes these.
        (CLASSES, NODE_CRITICAL),
    ] {
        call(&server, Method::DELETE, deleted, &json!({}))
            .await
            .expect("deleted");
        assert_eq!(read(&server, path).await.expect("an answer"), None);
    }
    restore(&server, &[address]).await.expect("restored");
    let after = found(&server, SERVICE).await;
    assert_eq!(after["spec"], before["spec"]);
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    let slice = found(&server, SLICE).await;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.1"]));
    let endpoints = found(&server, ENDPOINTS).await;
    assert_eq!(
        endpoints["subsets"][0]["addresses"],
        json!([{"ip": "192.0.2.1"}])
    );
    assert!(own_objects().iter().all(|key| server.has(key)));
}

#[tokio::test]
async fn endpoints_that_somebody_changed_are_set_right_and_right_ones_are_not_written() {
    let (server, address) = cluster().await;
    let spoilt = [
        (
            SLICE,
            json!({"endpoints": [], "metadata": {"labels": {"kubernetes.io/service-name": "other"}}}),
        ),
        (
            ENDPOINTS,
            json!({"subsets": null, "metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": null}}}),
        ),
    ];
    for (path, change) in spoilt {
        let right = found(&server, path).await;
        call(&server, Method::PATCH, path, &change)
            .await
            .expect("spoilt");
        restore(&server, &[address]).await.expect("set right");
        let mended = found(&server, path).await;
        for field in ["endpoints", "ports", "subsets"] {
            assert_eq!(mended[field], right[field], "{path} {field}");
        }
        assert_eq!(mended["metadata"]["labels"], right["metadata"]["labels"]);
        restore(&server, &[address]).await.expect("as it was");
        let again = found(&server, path).await;
        assert_eq!(again, mended, "nothing was written");
    }
    // Addresses of another family cannot be changed into these.
    call(&server, Method::DELETE, SLICE, &json!({}))
        .await
        .expect("deleted");
    let other = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes"}, "addressType": "IPv6", "endpoints": []});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    create(&server, slices, &other).await.expect("another");
    restore(&server, &[address]).await.expect("set right");
    assert_eq!(found(&server, SLICE).await["addressType"], json!("IPv4"));
}

#[tokio::test]
async fn nobody_else_has_the_first_address_of_the_range() {
    let (server, address) = cluster().await;
    call(&server, Method::DELETE, SERVICE, &json!({}))
        .await
        .expect("deleted");
    let first = server.first_service_address().to_string();
    let asked = service("other", Some(&first));
    let refused = call(&server, Method::POST, SERVICES, &asked).await;
    let refused = refused.expect_err("it is taken");
    assert_eq!(refused.code(), 422);
    assert!(refused.message().contains("already allocated"), "{refused}");
    // Nor a service of that name elsewhere.
    let elsewhere = "/api/v1/namespaces/kube-system/services";
    let asked = service("kubernetes", Some(&first));
    let refused = call(&server, Method::POST, elsewhere, &asked).await;
    assert_eq!(refused.expect_err("it is taken").code(), 422);
    restore(&server, &[address]).await.expect("restored");
    let after = found(&server, SERVICE).await;
    assert_eq!(after["spec"]["clusterIP"], json!(first));
}
