//! What the worker keeps beside each container's record: back-offs, deadlines and the tasks that serve the attempt.

use gantry_cri::runtime::ContainerExit;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::backoff::Backoff;

/// What the worker keeps beside a record.
pub(super) struct Control {
    pub(super) restarts: Backoff,
    pub(super) pulls: Backoff,
    /// Not started before.
    pub(super) retry_at: Option<Instant>,
    /// When a failed pull's words change to those of its back-off.
    pub(super) back_off_at: Option<Instant>,
    /// The task that stops it.
    pub(super) stopping: Option<AbortHandle>,
    pub(super) probes: Vec<AbortHandle>,
    /// Cancelled when its turn to end has come, as the pod ends.
    pub(super) turn: CancellationToken,
    /// Cancelled when the attempt ends.
    pub(super) ended: CancellationToken,
    pub(super) stop_signal: Option<String>,
    /// It ended before its start was known.
    pub(super) early: Option<(u32, ContainerExit)>,
}

impl Control {
    pub(super) fn new(failures: u32, stop_signal: Option<String>) -> Self {
        Self {
            restarts: Backoff::resumed(failures),
            pulls: Backoff::default(),
            retry_at: None,
            back_off_at: None,
            stopping: None,
            probes: Vec::new(),
            turn: CancellationToken::new(),
            ended: CancellationToken::new(),
            stop_signal,
            early: None,
        }
    }

    pub(super) fn end_tasks(&mut self) {
        for probe in self.probes.drain(..) {
            probe.abort();
        }
        self.ended.cancel();
    }
}
