//! Writes per second and latencies, beside etcd's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::Plan;
use crate::cluster::{Cluster, System};
use crate::load::{self, Latencies, Shape};

const MEMBERS: [u64; 2] = [1, 3];
const CLIENTS: [usize; 4] = [1, 32, 256, 1_000];
const VALUE: usize = 1 << 10;
const KEYS: usize = 10_000;
/// To every member.
const CONNECTIONS: usize = 2;
const WARM_UP: Duration = Duration::from_secs(2);

/// What is measured of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// etcd, through its own API: gRPC.
    Etcd,
    /// Gantry's store behind the same gRPC call.
    Grpc,
    /// Gantry's store through its own API, in the members' processes, where servers use it.
    Own,
}

/// Prints one line per figure. Systems take turns, each in a fresh cluster.
pub(crate) async fn run(plan: &Plan) -> Result<()> {
    println!(
        "puts of {VALUE} bytes over {KEYS} keys, synced, {:?} each; gantry behind the same gRPC call as etcd, and through its \
         store's own API as its servers use it",
        plan.measured
    );
    println!(
        "{:<7} {:>7} | {:>8} {:>7} {:>7} | {:>8} {:>7} {:>7} {:>6} | {:>8} {:>7} {:>7} {:>6}",
        "members",
        "clients",
        "etcd/s",
        "p50 ms",
        "p99 ms",
        "gRPC/s",
        "p50 ms",
        "p99 ms",
        "ratio",
        "own/s",
        "p50 ms",
        "p99 ms",
        "ratio"
    );
    for members in MEMBERS {
        for clients in CLIENTS {
            for round in 0..plan.rounds {
                print_row(plan, members, clients, round).await?;
            }
        }
    }
    Ok(())
}

async fn print_row(plan: &Plan, members: u64, clients: usize, round: usize) -> Result<()> {
    let mut paths = [Path::Etcd, Path::Grpc, Path::Own];
    paths.rotate_left(round % 3);
    let mut found = BTreeMap::new();
    for path in paths {
        found.insert(path as u8, measure(plan, path, members, clients).await?);
    }
    let [etcd, grpc, own] = [Path::Etcd, Path::Grpc, Path::Own].map(|path| &found[&(path as u8)]);
    let figures = |latencies: &Latencies| {
        format!(
            "{:>8.0} {:>7.2} {:>7.2}",
            latencies.per_second(),
            latencies.percentile(50),
            latencies.percentile(99)
        )
    };
    let ratio = |latencies: &Latencies| latencies.per_second() / etcd.per_second();
    println!(
        "{members:<7} {clients:>7} | {} | {} {:>5.2}x | {} {:>5.2}x",
        figures(etcd),
        figures(grpc),
        ratio(grpc),
        figures(own),
        ratio(own),
    );
    Ok(())
}

async fn measure(plan: &Plan, path: Path, members: u64, clients: usize) -> Result<Latencies> {
    let system = match path {
        Path::Etcd => System::Etcd,
        Path::Grpc | Path::Own => System::Gantry,
    };
    let cluster = Cluster::start(system, members, &plan.directory).await?;
    let shape = Shape {
        keys: KEYS,
        bytes: VALUE,
        warm_up: WARM_UP,
        measured: plan.measured,
    };
    if path == Path::Own {
        return cluster.driven(clients, shape).await;
    }
    let connections = cluster.connections(CONNECTIONS).await?;
    load::over_grpc(&connections, clients, shape).await
}
