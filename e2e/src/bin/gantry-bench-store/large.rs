//! A store of 200,000 objects: how long a restart takes, and what handing it to a new member costs the writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;

use crate::Plan;
use crate::cluster::{Cluster, System};
use crate::load::{self, Latencies};

const OBJECTS: usize = 200_000;
const VALUE: usize = 2 << 10;
const MEMBERS: u64 = 3;
const NEWCOMER: u64 = MEMBERS + 1;
const RATE: u32 = 1_000;

/// Prints one line per figure.
pub(crate) async fn run(plan: &Plan) -> Result<()> {
    println!(
        "{OBJECTS} objects of {VALUE} bytes on one member, killed, until it takes a write again"
    );
    for system in [System::Gantry, System::Etcd] {
        let mut cluster = Cluster::start(system, 1, &plan.directory).await?;
        load::fill(&cluster.connections(4).await?, OBJECTS, VALUE).await?;
        let running = mebibytes(cluster.peak_memory(1)?);
        let (seconds, memory) = restart(&mut cluster, 1).await?;
        println!(
            "{system:<8} {seconds:>6.2} s   peak memory {memory:>5.0} MiB, before the kill {running:.0} MiB"
        );
    }
    let mut cluster = Cluster::start(System::Gantry, MEMBERS, &plan.directory).await?;
    load::fill(&cluster.connections(2).await?, OBJECTS, VALUE).await?;
    let leader = cluster.leader().await?;
    let follower = leader % MEMBERS + 1;
    let (seconds, memory) = restart(&mut cluster, follower).await?;
    println!("one of {MEMBERS}: {seconds:.2} s   peak memory {memory:.0} MiB");
    hand_over(plan, &mut cluster).await
}

async fn restart(cluster: &mut Cluster, id: u64) -> Result<(f64, f64)> {
    cluster.kill(id)?;
    let begun = Instant::now();
    cluster.launch(id)?;
    cluster.serving(id).await?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok((seconds, mebibytes(cluster.peak_memory(id)?)))
}

/// The whole state to an empty member, under writes.
async fn hand_over(plan: &Plan, cluster: &mut Cluster) -> Result<()> {
    println!(
        "{RATE} writes/s over {MEMBERS} members while a fourth, empty one is given the objects"
    );
    let connections = cluster.connections(2).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let begin = || {
        let (connections, stop) = (connections.clone(), Arc::clone(&stop));
        tokio::spawn(load::steady(connections, RATE, OBJECTS, VALUE, stop))
    };
    let writers = begin();
    tokio::time::sleep(plan.measured).await;
    stop.store(true, Ordering::Relaxed);
    print_latencies("without", &writers.await??);

    stop.store(false, Ordering::Relaxed);
    let writers = begin();
    let begun = Instant::now();
    cluster.admit(NEWCOMER).await?;
    cluster.voting(NEWCOMER).await?;
    let taken = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    print_latencies("with", &writers.await??);
    println!(
        "{:<8} {:.2} s from an empty directory to a vote, its peak memory {:.0} MiB",
        "newcomer",
        taken.as_secs_f64(),
        mebibytes(cluster.peak_memory(NEWCOMER)?)
    );
    Ok(())
}

fn print_latencies(what: &str, latencies: &Latencies) {
    println!(
        "{what:<8} {:>6.0} /s   p50 {:>7.2} ms   p99 {:>7.2} ms   slowest {:>7.2} ms",
        latencies.per_second(),
        latencies.percentile(50),
        latencies.percentile(99),
        latencies.percentile(100)
    );
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
