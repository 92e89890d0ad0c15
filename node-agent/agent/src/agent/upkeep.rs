//! What the agent does now and then for as long as it runs: the node's status, images, checkpoints.

use std::sync::Arc;
use std::time::Duration;

use gantry_image::ImageStore;
use gantry_pods::image_gc::{self, ImageCollector};
use gantry_pods::pull_records::PullRecords;
use gantry_rpc::node::Welcome;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::desired::Desired;
use crate::node_status::{self, NodeStatus};
use crate::policies::Policies;
use crate::reports::{Reports, Severity};

/// Changes that come together are one checkpoint.
const CHECKPOINT_DELAY: Duration = Duration::from_secs(1);

/// Forgets who may use images that are gone.
pub(super) async fn forget_pulls(pulls: Arc<PullRecords>, images: Arc<ImageStore>) {
    let mut ticks = every(image_gc::PERIOD);
    loop {
        ticks.tick().await;
        if let Err(error) = pulls.prune(&*images).await {
            tracing::warn!(
                error = gantry_cri::words(&error),
                "forgetting who may use images that are gone"
            );
        }
    }
}

/// Keeps what the server knows of the node's images and conditions up to date, and their heartbeat times recent.
pub(super) async fn watch_node(node_status: Arc<NodeStatus>, reports: Arc<Reports>) {
    let mut ticks = every(node_status::PERIOD);
    let mut told = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node_status.found() => {}
        }
        if node_status.refresh().await || told.elapsed() >= node_status::REPORT {
            reports.node_status(node_status.status());
            told = Instant::now();
        }
    }
}

/// Removes images when they fill the disk, and those that nobody uses when it is asked to.
pub(super) async fn collect_images(
    mut collector: ImageCollector,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    reports: Arc<Reports>,
) {
    let mut ticks = every(image_gc::PERIOD);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(done) = asked.recv() => {
                match collector.remove_unused().await {
                    Ok(collected) => tracing::info!(
                        freed = collected.freed,
                        images = ?collected.removed,
                        "unused images were removed from a disk that is nearly full"
                    ),
                    Err(error) => tracing::warn!(
                        error = gantry_cri::words(&error),
                        "removing unused images"
                    ),
                }
                // The one who asked may have gone.
                done.send(()).ok();
                continue;
            }
        }
        match collector.look().await {
            Ok(collected) if collected.wanted == 0 => {}
            Ok(collected) if collected.freed < collected.wanted => {
                let message = format!(
                    "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {} bytes eligible to free.",
                    collected.wanted, collected.freed
                );
                tracing::warn!(removed = ?collected.removed, "{message}");
                reports.node_event(Severity::Warning, "FreeDiskSpaceFailed", &message);
            }
            Ok(collected) => tracing::info!(
                freed = collected.freed,
                images = ?collected.removed,
                "unused images were removed"
            ),
            Err(error) => tracing::warn!(
                error = gantry_cri::words(&error),
                "looking after the images"
            ),
        }
    }
}

/// Ticks once a period, the first time at once; those that were missed are not made up for.
pub(super) fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// Writes what is known to the checkpoint, a moment after it has changed.
pub(super) async fn keep_checkpoint(
    checkpoint: Checkpoint,
    desired: Arc<Desired>,
    policies: Arc<Policies>,
    changed: Arc<Notify>,
) {
    loop {
        changed.notified().await;
        tokio::time::sleep(CHECKPOINT_DELAY).await;
        let (checkpoint, desired, policies) =
            (checkpoint.clone(), desired.clone(), policies.clone());
        let saved = tokio::task::spawn_blocking(move || checkpoint.save(&desired, &policies)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, "writing the checkpoint");
        }
    }
}

/// Remembers the cluster's facts, above all where its servers are, for the next start.
pub(super) async fn keep_facts(
    checkpoint: Checkpoint,
    mut welcomed: watch::Receiver<Option<Welcome>>,
) {
    while welcomed.changed().await.is_ok() {
        let Some(facts) = welcomed.borrow_and_update().clone() else {
            continue;
        };
        let checkpoint = checkpoint.clone();
        let saved = tokio::task::spawn_blocking(move || checkpoint.save_welcome(&facts)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, "writing the checkpoint of the cluster's facts");
        }
    }
}
