//! Writes per second and latencies, beside etcd's.

use std::time::Duration;

use anyhow::Result;

use crate::Plan;
use crate::cluster::{Cluster, System};
use crate::load::{self, Latencies};

const MEMBERS: [u64; 2] = [1, 3];
const CLIENTS: [usize; 4] = [1, 32, 256, 1_000];
const VALUE: usize = 1 << 10;
const KEYS: usize = 10_000;
/// To every member.
const CONNECTIONS: usize = 2;
const WARM_UP: Duration = Duration::from_secs(2);

/// Prints one line per figure. Systems take turns, each in a fresh cluster.
pub(crate) async fn run(plan: &Plan) -> Result<()> {
    println!(
        "puts of {VALUE} bytes over {KEYS} keys, synced, {:?} each",
        plan.measured
    );
    println!(
        "{:<8} {:>7} | {:>9} {:>8} {:>8} | {:>9} {:>8} {:>8} | {:>7} {:>9}",
        "members",
        "clients",
        "gantry/s",
        "p50 ms",
        "p99 ms",
        "etcd/s",
        "p50 ms",
        "p99 ms",
        "ratio",
        "p50 ratio"
    );
    for members in MEMBERS {
        for clients in CLIENTS {
            for round in 0..plan.rounds {
                let first = match round % 2 {
                    0 => System::Gantry,
                    _ => System::Etcd,
                };
                print_row(plan, members, clients, first).await?;
            }
        }
    }
    Ok(())
}

async fn print_row(plan: &Plan, members: u64, clients: usize, first: System) -> Result<()> {
    let (gantry, etcd) = match first {
        System::Gantry => {
            let gantry = measure(plan, System::Gantry, members, clients).await?;
            (gantry, measure(plan, System::Etcd, members, clients).await?)
        }
        System::Etcd => {
            let etcd = measure(plan, System::Etcd, members, clients).await?;
            (measure(plan, System::Gantry, members, clients).await?, etcd)
        }
    };
    println!(
        "{members:<8} {clients:>7} | {:>9.0} {:>8.2} {:>8.2} | {:>9.0} {:>8.2} {:>8.2} | {:>6.2}x {:>8.2}x",
        gantry.per_second(),
        gantry.percentile(50),
        gantry.percentile(99),
        etcd.per_second(),
        etcd.percentile(50),
        etcd.percentile(99),
        gantry.per_second() / etcd.per_second(),
        etcd.percentile(50) / gantry.percentile(50),
    );
    Ok(())
}

async fn measure(plan: &Plan, system: System, members: u64, clients: usize) -> Result<Latencies> {
    let cluster = Cluster::start(system, members, &plan.directory).await?;
    let connections = cluster.connections(CONNECTIONS).await?;
    load::closed_loop(&connections, clients, KEYS, VALUE, WARM_UP, plan.measured).await
}
