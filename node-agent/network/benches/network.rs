//! What a pod's attachment and a changed endpoint cost, against a real kernel (needs root).

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use gantry_network::{
    BridgeNetwork, Endpoint, NftServiceRules, PodNetwork, Protocol, ServiceChanges, ServicePort,
    ServiceRules,
};
use lab::{Lab, blocking_on_own_machine, service};
use tokio::runtime::Runtime;

fn attach_and_detach(criterion: &mut Criterion, lab: &Lab, runtime: &Runtime) {
    let network = BridgeNetwork::new(lab.node.clone()).expect("the network");
    let mut measure = |name: &str, of_attach: bool| {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for _ in 0..rounds {
                    let start = Instant::now();
                    runtime
                        .block_on(network.attach("pod", &[]))
                        .expect("attach");
                    let attached = start.elapsed();
                    runtime.block_on(network.detach("pod")).expect("detach");
                    total += if of_attach {
                        attached
                    } else {
                        start.elapsed() - attached
                    };
                }
                total
            });
        });
    };
    measure("pod/attach", true);
    measure("pod/detach", false);
}

/// Endpoints of each service.
const ENDPOINTS: u8 = 10;
/// Where a service with a real endpoint is.
const VIP: [u8; 4] = [10, 96, 200, 1];

fn many(count: u16, protocol: Protocol) -> ServiceChanges {
    let services = (0..count).map(|index| {
        let [high, low] = index.to_be_bytes();
        let endpoints = (0..ENDPOINTS)
            .map(|n| Endpoint {
                ip: Ipv4Addr::new(10, 200 + n, high, low).into(),
                port: 8080,
                local: n == 0,
            })
            .collect();
        let mut service = service([10, 97, high, low], endpoints);
        service.protocol = protocol;
        (lab::name(&format!("s{index}")), vec![service])
    });
    ServiceChanges {
        complete: true,
        services: services.collect(),
    }
}

/// One service of `all`, with something else about its endpoints at each turn.
fn alternate(
    all: &ServiceChanges,
    change: impl Fn(&mut ServicePort),
) -> impl FnMut() -> ServiceChanges {
    let (name, ports) = all
        .services
        .iter()
        .nth(all.services.len() / 2)
        .expect("a service");
    let one = |ports: &[ServicePort]| ServiceChanges {
        complete: false,
        services: [(name.clone(), ports.to_vec())].into(),
    };
    let before = one(ports);
    let mut ports = ports.clone();
    change(&mut ports[0]);
    let (mut now, mut next) = (before, one(&ports));
    move || {
        std::mem::swap(&mut now, &mut next);
        now.clone()
    }
}

fn service_rules(criterion: &mut Criterion, lab: &Lab, runtime: &Runtime, count: u16) {
    let mut group = criterion.benchmark_group("services");
    group.sample_size(10);
    let desired = many(count, Protocol::Tcp);
    group.bench_with_input(
        BenchmarkId::new("from scratch", count),
        &desired,
        |bencher, desired| {
            bencher.iter(|| {
                let rules = NftServiceRules::new(&lab.node).expect("nft");
                runtime
                    .block_on(rules.apply(desired.clone()))
                    .expect("apply");
            });
        },
    );
    group.sample_size(100);
    let rules = NftServiceRules::new(&lab.node).expect("nft");
    runtime
        .block_on(rules.apply(desired.clone()))
        .expect("apply");
    let mut measure = |name: &str, next: &mut dyn FnMut() -> ServiceChanges| {
        group.bench_function(BenchmarkId::new(name, count), |bencher| {
            bencher.iter(|| runtime.block_on(rules.apply(next())).expect("apply"));
        });
    };
    let mut replaced = alternate(&desired, |port| port.endpoints[1].port = 9090);
    measure("one endpoint replaced", &mut replaced);
    let mut gone = alternate(&desired, |port| {
        port.endpoints.pop();
    });
    measure("one endpoint gone or back", &mut gone);
    let udp = many(count, Protocol::Udp);
    runtime.block_on(rules.apply(udp.clone())).expect("apply");
    let mut gone = alternate(&udp, |port| port.endpoints[1].port = 9090);
    measure("one endpoint replaced, UDP", &mut gone);
    group.finish();
}

/// What the rules add to a connection: to a service, beside straight to its endpoint.
fn connections(criterion: &mut Criterion, lab: &Lab, runtime: &Runtime, count: u16) {
    let network = BridgeNetwork::new(lab.node.clone()).expect("the network");
    let pod = |name| runtime.block_on(lab.pod(&network, name, 8080));
    let (web, client) = (pod("web"), pod("client"));
    let rules = NftServiceRules::new(&lab.node).expect("nft");
    let mut all = many(count, Protocol::Tcp);
    let own = service(VIP, vec![web.endpoint(8080)]);
    all.services.insert(lab::name("web"), vec![own]);
    runtime.block_on(rules.apply(all)).expect("apply");
    let mut measure = |name: &str, address: SocketAddr| {
        criterion.bench_function(&format!("connect/{name}, {count} services"), |bencher| {
            bencher.iter_custom(|rounds| {
                lab.inside(&client.netns, || {
                    let mut total = Duration::ZERO;
                    for _ in 0..rounds {
                        let start = Instant::now();
                        let stream = TcpStream::connect(address).expect("connecting");
                        total += start.elapsed();
                        drop(stream);
                    }
                    total
                })
            });
        });
    };
    measure("service", (VIP, 80).into());
    measure("endpoint", (web.ip, 8080).into());
}

/// Pods of a node that are looked at every second.
const PODS: usize = 100;

fn traffic(criterion: &mut Criterion, lab: &Lab, runtime: &Runtime) {
    let network = BridgeNetwork::new(lab.node.clone()).expect("the network");
    for pod in 0..PODS {
        runtime
            .block_on(network.attach(&format!("pod-{pod}"), &[]))
            .expect("attach");
    }
    criterion.bench_function(&format!("traffic/{PODS} pods"), |bencher| {
        bencher.iter(|| {
            runtime
                .block_on(network.traffic())
                .expect("what has passed")
        });
    });
}

fn criterion() -> Criterion {
    Criterion::default().configure_from_args().without_plots()
}

fn main() {
    // A machine is a thread, and so is what measures on it.
    blocking_on_own_machine(|lab, runtime| attach_and_detach(&mut criterion(), lab, runtime));
    blocking_on_own_machine(|lab, runtime| traffic(&mut criterion(), lab, runtime));
    for count in [1_000, 10_000] {
        blocking_on_own_machine(|lab, runtime| {
            service_rules(&mut criterion(), lab, runtime, count);
        });
    }
    for count in [10, 1_000, 10_000] {
        blocking_on_own_machine(|lab, runtime| {
            connections(&mut criterion(), lab, runtime, count);
        });
    }
    criterion().final_summary();
}
