//! Whole clusters under a seed: members on a virtual network, disk and clock, with everything going wrong.
//!
//! A run is a function of its seed. Three or five members serve clients that write, compare-and-swap, delete and read,
//! while messages are dropped, repeated, reordered and delayed, links fail in one direction, members crash and lose what
//! was not synced, disks stall, fail and are lost in part or whole, clocks run unevenly, members join and leave, states travel in chunks, and sometimes all members but
//! one are lost for good and that one goes on alone. Then everything heals, and these must hold:
//!
//! - what clients saw is linearizable, key by key ([`linear`]); an outcome that was unknown may have happened or not;
//! - an acknowledged write is in the history at its revision, no write is there twice, and no term has two leaders;
//! - fenced writes of an older term never follow those of a newer one;
//! - watches deliver each event after their start once, in order, without gaps, across members ([`watchers`]);
//! - states are equal (by hash) wherever the applied log entry is;
//! - the healed cluster serves writes at every member, and all states become equal.
//!
//! `SEED=n` replays one run, `SEEDS=n` runs that many. The mutations break a rule each; that each of them is found
//! proves that the simulation can see.

mod clients;
mod disk;
mod faults;
mod history;
mod linear;
mod network;
mod random;
mod watchers;
mod world;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

pub(crate) use disk::SimDisk;
pub(crate) use random::Random;
use world::World;

/// A rule that a test breaks on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Log writes are not synced before they are acknowledged.
    AcknowledgeBeforeSync,
    /// A term guard always holds.
    SkipTermFence,
    /// Entries that are committed together are applied in another order.
    ApplyOutOfOrder,
}

/// How many seeds a normal test run covers.
const SEEDS: u64 = 2_000;

/// What a run did, and a hash of everything that happened in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Report {
    acknowledged: u64,
    unknown: u64,
    reads: u64,
    events: u64,
    elections: u64,
    crashes: u64,
    states_taken_over: u64,
    membership_changes: u64,
    recoveries: u64,
    disks_filled: u64,
    written_when_full: u64,
    disks_lost: u64,
    trace: u64,
}

fn run(seed: u64, mutation: Option<Mutation>) -> Result<Report, String> {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| World::new(seed, mutation).run()));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// Runs the seeds on every core until one fails; the lowest failing one, with why.
fn search(
    seeds: std::ops::Range<u64>,
    mutation: Option<Mutation>,
) -> (Report, Option<(u64, String)>) {
    let next = AtomicU64::new(seeds.start);
    let last = AtomicU64::new(seeds.end);
    let failures = Mutex::new(BTreeMap::new());
    let total = Mutex::new(Report::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last.load(Ordering::Relaxed) {
                return;
            }
            match run(seed, mutation) {
                Ok(report) => add(&mut total.lock().expect("no thread panics"), &report),
                Err(reason) => {
                    last.fetch_min(seed, Ordering::Relaxed);
                    failures
                        .lock()
                        .expect("no thread panics")
                        .insert(seed, reason);
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    let total = total.into_inner().expect("no thread panics");
    (total, failures.into_iter().next())
}

fn add(total: &mut Report, report: &Report) {
    total.acknowledged += report.acknowledged;
    total.unknown += report.unknown;
    total.reads += report.reads;
    total.events += report.events;
    total.elections += report.elections;
    total.crashes += report.crashes;
    total.states_taken_over += report.states_taken_over;
    total.membership_changes += report.membership_changes;
    total.recoveries += report.recoveries;
    total.disks_filled += report.disks_filled;
    total.disks_lost += report.disks_lost;
    total.written_when_full = total.written_when_full.max(report.written_when_full);
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[test]
fn nothing_acknowledged_is_lost_under_any_seed() {
    let begun = Instant::now();
    if let Some(seed) = number("SEED") {
        match run(seed, None) {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(reason) => panic!("seed {seed}: {reason}"),
        }
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let (total, failed) = search(1..seeds + 1, None);
    if let Some((seed, reason)) = failed {
        panic!(
            "seed {seed}: {reason}\nreplay it with: SEED={seed} cargo test -p gantry-store --lib nothing_acknowledged"
        );
    }
    let rate = seeds as f64 / begun.elapsed().as_secs_f64();
    println!("{seeds} seeds, {rate:.0} per second: {total:?}");
    let happened = [
        total.acknowledged,
        total.unknown,
        total.reads,
        total.events,
        total.elections,
        total.crashes,
        total.states_taken_over,
        total.membership_changes,
    ];
    assert!(
        happened.iter().all(|count| *count > seeds.min(100)),
        "too little happened: {total:?}"
    );
    assert!(
        seeds < 100 || total.recoveries > 0,
        "nobody was recovered: {total:?}"
    );
    assert!(
        seeds < 100 || total.disks_lost > 0,
        "nobody lost a disk: {total:?}"
    );
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 7, 42] {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

fn is_found(mutation: Mutation) {
    let begun = Instant::now();
    let (_, found) = search(1..SEEDS + 1, Some(mutation));
    let (seed, reason) =
        found.unwrap_or_else(|| panic!("{mutation:?} was not noticed within {SEEDS} seeds"));
    println!(
        "{mutation:?} was noticed by seed {seed} after {:?}: {reason}",
        begun.elapsed()
    );
    assert!(
        run(seed, None).is_ok(),
        "seed {seed} fails without {mutation:?} too"
    );
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    is_found(Mutation::AcknowledgeBeforeSync);
}

#[test]
fn skipping_the_term_fence_is_noticed() {
    is_found(Mutation::SkipTermFence);
}

#[test]
fn applying_out_of_order_is_noticed() {
    is_found(Mutation::ApplyOutOfOrder);
}
