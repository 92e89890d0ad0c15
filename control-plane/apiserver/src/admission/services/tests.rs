//! Services of a cluster with two address families, through the API.

use http::Method;
use serde_json::{Value, json};

use crate::testing::{self, server_of};
use crate::{ApiServer, ApiServerConfig, Ranges};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

struct Bed(ApiServer);

impl Bed {
    async fn new(ranges: Ranges) -> Self {
        let config = ApiServerConfig {
            ranges,
            ..ApiServerConfig::default()
        };
        Self(server_of(config).await)
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        testing::send(&self.0, method, path, body).await
    }

    async fn create(&self, name: &str, spec: Value) -> (u16, Value) {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.send(Method::POST, SERVICES, object).await
    }

    async fn patch(&self, name: &str, spec: Value) -> (u16, Value) {
        let path = format!("{SERVICES}/{name}");
        self.send(Method::PATCH, &path, json!({"spec": spec})).await
    }

    /// Who has an address.
    async fn holder(&self, address: &str) -> Option<String> {
        let path = format!("{ADDRESSES}/{address}");
        let (_, object) = self.send(Method::GET, &path, Value::Null).await;
        let name = object["spec"]["parentRef"]["name"].as_str();
        name.map(str::to_owned)
    }
}

fn dual() -> Ranges {
    Ranges {
        service_cidr_v6: Some("fd00:10:96::/112".parse().expect("a range")),
        ..Ranges::default()
    }
}

#[tokio::test]
async fn a_service_of_two_families_has_two_addresses_until_it_wants_one() {
    let bed = Bed::new(dual()).await;
    let ports = json!([{"port": 80}]);
    let (status, made) = bed
        .create(
            "s",
            json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports}),
        )
        .await;
    assert_eq!(status, 201, "{made}");
    let address = |at: usize| {
        made["spec"]["clusterIPs"][at]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (first, second) = (address(0), address(1));
    assert_eq!(made["spec"]["clusterIP"], json!(first));
    assert!(second.starts_with("fd00:10:96::"), "{second}");
    for address in [&first, &second] {
        assert_eq!(bed.holder(address).await.as_deref(), Some("s"));
    }
    let (status, single) = bed
        .patch("s", json!({"ipFamilyPolicy": "SingleStack"}))
        .await;
    assert_eq!(status, 200, "{single}");
    assert_eq!(single["spec"]["clusterIPs"], json!([first]));
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(bed.holder(&second).await, None);
    let (_, again) = bed
        .patch("s", json!({"ipFamilyPolicy": "PreferDualStack"}))
        .await;
    assert_eq!(
        again["spec"]["clusterIPs"].as_array().map(Vec::len),
        Some(2)
    );
    let second = again["spec"]["clusterIPs"][1]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let (status, _) = bed
        .send(Method::DELETE, &format!("{SERVICES}/s"), Value::Null)
        .await;
    assert_eq!(status, 200);
    for address in [&first, &second] {
        assert_eq!(bed.holder(address).await, None);
    }
}

#[tokio::test]
async fn an_address_of_either_family_is_given_once() {
    let bed = Bed::new(dual()).await;
    let asks = json!({
        "clusterIP": "fd00:10:96::77", "clusterIPs": ["fd00:10:96::77"], "ports": [{"port": 80}]
    });
    let (status, made) = bed.create("a", asks.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv6"]));
    let (status, refused) = bed.create("b", asks).await;
    assert_eq!(status, 422);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("provided IP is already allocated"),
        "{message}"
    );
    // Nor is one that somebody has reserved by an object.
    let reserved = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.96.9.9"},
        "spec": {"parentRef": {"resource": "gateways", "group": "g.example", "name": "x"}}
    });
    assert_eq!(bed.send(Method::POST, ADDRESSES, reserved).await.0, 201);
    let asks = json!({"clusterIP": "10.96.9.9", "ports": [{"port": 80}]});
    assert_eq!(bed.create("c", asks).await.0, 422);
}

#[tokio::test]
async fn the_servers_range_is_told_of_and_others_say_that_they_do_not_serve() {
    let bed = Bed::new(dual()).await;
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    let (_, own) = bed
        .send(Method::GET, &format!("{path}/kubernetes"), Value::Null)
        .await;
    assert_eq!(
        own["spec"]["cidrs"],
        json!(["10.96.0.0/12", "fd00:10:96::/112"])
    );
    assert_eq!(own["status"]["conditions"][0]["status"], "True");
    let other = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "other"},
        "spec": {"cidrs": ["10.200.0.0/16"]}
    });
    let (status, other) = bed.send(Method::POST, path, other).await;
    assert_eq!(status, 201, "{other}");
    assert_eq!(other["status"]["conditions"][0]["reason"], "NotServed");
}

#[tokio::test]
async fn a_port_for_health_stays_with_its_service() {
    let bed = Bed::new(Ranges::default()).await;
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30900,
        "ports": [{"port": 53, "name": "t"}, {"port": 53, "name": "u", "protocol": "UDP"}]
    });
    let (status, made) = bed.create("a", spec).await;
    assert_eq!(status, 201, "{made}");
    let ports = &made["spec"]["ports"];
    assert_eq!(
        ports[0]["nodePort"], ports[1]["nodePort"],
        "one number, two protocols"
    );
    // A change of something else must not give it back.
    assert_eq!(
        bed.patch("a", json!({"sessionAffinity": "ClientIP"}))
            .await
            .0,
        200
    );
    let takes = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30900}]});
    assert_eq!(bed.create("b", takes.clone()).await.0, 422);
    let (status, changed) = bed
        .patch("a", json!({"externalTrafficPolicy": "Cluster"}))
        .await;
    assert_eq!(
        (status, &changed["spec"]["healthCheckNodePort"]),
        (200, &Value::Null)
    );
    assert_eq!(bed.create("b", takes).await.0, 201, "now it is free");
    let local =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let (_, made) = bed.create("c", local).await;
    assert!(
        made["spec"]["healthCheckNodePort"]
            .as_u64()
            .is_some_and(|port| port >= 30000)
    );
}

#[tokio::test]
async fn an_ingress_without_a_class_gets_the_default_one() {
    let bed = Bed::new(Ranges::default()).await;
    let class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "example.com/web"}
    });
    let path = "/apis/networking.k8s.io/v1/ingressclasses";
    assert_eq!(bed.send(Method::POST, path, class).await.0, 201);
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"},
        "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}
    });
    let path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let (status, made) = bed.send(Method::POST, path, ingress).await;
    assert_eq!(
        (status, &made["spec"]["ingressClassName"]),
        (201, &json!("web"))
    );
}
