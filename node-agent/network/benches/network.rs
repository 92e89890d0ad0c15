//! What a pod's attachment and a changed endpoint cost, against a real kernel (needs root).

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use gantry_network::{
    BridgeNetwork, Endpoint, NftServiceRules, PodNetwork, ServicePort, ServiceRules,
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

fn services(count: u16) -> Vec<ServicePort> {
    (0..count)
        .map(|index| {
            let [high, low] = index.to_be_bytes();
            let endpoints = (0..3)
                .map(|n| Endpoint {
                    ip: Ipv4Addr::new(10, 244 + n, high, low),
                    port: 8080,
                    local: n == 0,
                })
                .collect();
            service(&format!("s{index}"), [10, 97, high, low], endpoints)
        })
        .collect()
}

fn service_rules(criterion: &mut Criterion, lab: &Lab, runtime: &Runtime, count: u16) {
    let mut group = criterion.benchmark_group("services");
    group.sample_size(10);
    let desired = services(count);
    group.bench_with_input(
        BenchmarkId::new("from scratch", count),
        &desired,
        |bencher, desired| {
            bencher.iter(|| {
                let rules = NftServiceRules::new(&lab.node).expect("nft");
                runtime.block_on(rules.sync(desired.clone())).expect("sync");
            });
        },
    );
    let rules = NftServiceRules::new(&lab.node).expect("nft");
    runtime.block_on(rules.sync(desired.clone())).expect("sync");
    let mut changed = desired.clone();
    changed[usize::from(count) / 2].endpoints[1].port = 9090;
    let mut turn = false;
    group.bench_function(BenchmarkId::new("one endpoint changed", count), |bencher| {
        bencher.iter(|| {
            turn = !turn;
            let next = if turn {
                changed.clone()
            } else {
                desired.clone()
            };
            runtime.block_on(rules.sync(next)).expect("sync");
        });
    });
    group.finish();
}

fn criterion() -> Criterion {
    Criterion::default().configure_from_args().without_plots()
}

fn main() {
    // A machine is a thread, and so is what measures on it.
    blocking_on_own_machine(|lab, runtime| attach_and_detach(&mut criterion(), lab, runtime));
    for count in [1_000, 10_000] {
        blocking_on_own_machine(|lab, runtime| {
            service_rules(&mut criterion(), lab, runtime, count);
        });
    }
    criterion().final_summary();
}
