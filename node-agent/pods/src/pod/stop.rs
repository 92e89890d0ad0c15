//! Stopping a container: preStop hook, its turn, stop signal, grace period, SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hooks::{Action, Target};
use super::node::Node;
use crate::traits::Severity;

/// What even a hook that used up the grace period leaves to the process.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// How long to wait for the endpoint to leave the rules of every node, some of which may be dead or cut off.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// A killed process is gone at once; a file system that hangs may hold it.
const KILL_AGAIN: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

/// How to stop one container.
pub(crate) struct Stop {
    pub(crate) node: Arc<Node>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) target: Target,
    pub(crate) grace: Duration,
    /// Run the preStop hook.
    pub(crate) hook: bool,
    /// Wait until no new connections are sent to the pod.
    pub(crate) drain: bool,
    pub(crate) signal: i32,
    /// Cancelled when those have ended that end before it. It waits for them no longer than its grace period.
    pub(crate) turn: CancellationToken,
    /// Cancelled when the container has ended.
    pub(crate) ended: CancellationToken,
}

impl Stop {
    /// Returns when the container has ended.
    pub(crate) async fn run(self) {
        let deadline = Instant::now() + self.grace;
        if !self.grace.is_zero() {
            let polite = async {
                tokio::join!(self.pre_stop(), self.drained());
                self.turn.cancelled().await;
            };
            tokio::select! {
                _ = tokio::time::timeout_at(deadline, polite) => {}
                () = self.ended.cancelled() => return,
            }
            self.send(self.signal).await;
            let until = if self.hook {
                deadline.max(Instant::now() + LEAST_GRACE)
            } else {
                deadline
            };
            if tokio::time::timeout_at(until, self.ended.cancelled())
                .await
                .is_ok()
            {
                return;
            }
        }
        while !self.ended.is_cancelled() {
            self.send(SIGKILL).await;
            tokio::time::timeout(KILL_AGAIN, self.ended.cancelled())
                .await
                .ok();
        }
    }

    async fn pre_stop(&self) {
        let lifecycle = self.target.container.lifecycle.as_ref();
        let hook = lifecycle
            .and_then(|lifecycle| lifecycle.pre_stop.as_ref())
            .filter(|_| self.hook);
        let Some(action) = hook.and_then(Action::of_hook) else {
            return;
        };
        if let Err(failure) = action.run(&self.target, None).await {
            let text = format!("PreStopHook failed: {}", failure.message);
            let name = Some(self.target.id.name.as_str());
            self.node.reports.event(
                &self.pod,
                name,
                Severity::Warning,
                "FailedPreStopHook",
                &text,
            );
        }
    }

    /// Ready to stop means drained: the rules of no node choose the pod any more.
    async fn drained(&self) {
        if !self.drain || self.target.pod_ips.is_empty() {
            return;
        }
        let drained = self.node.drain.drained(&self.target.pod_ips);
        if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
            self.node.drain.given_up();
            tracing::warn!(
                pod = self.target.id.pod.0,
                "the pod may still be in the service rules of a node; stopping it anyway"
            );
        }
    }

    async fn send(&self, signal: i32) {
        if let Err(error) = self.target.runtime.kill(&self.target.id, signal).await {
            // It ended meanwhile, or its sandbox is gone: either is news that comes by itself.
            tracing::debug!(container = self.target.id.name, signal, %error, "sending a signal");
        }
    }
}

/// The number of a signal named as images and Kubernetes do (`SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`); SIGTERM for
/// what is unknown.
pub(crate) fn signal_number(name: Option<&str>) -> i32 {
    const TERM: i32 = 15;
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return TERM;
    };
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) {
            number
        } else {
            TERM
        };
    }
    let upper = name.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |number: Option<i32>| {
        number
            .filter(|number| (RTMIN..=RTMAX).contains(number))
            .unwrap_or(TERM)
    };
    let offset = |text: &str, sign: char| match text.strip_prefix(sign) {
        Some(digits) => digits.parse::<i32>().ok(),
        None => text.is_empty().then_some(0),
    };
    if let Some(text) = name.strip_prefix("RTMIN") {
        return real_time(offset(text, '+').and_then(|offset| RTMIN.checked_add(offset)));
    }
    if let Some(text) = name.strip_prefix("RTMAX") {
        return real_time(offset(text, '-').and_then(|offset| RTMAX.checked_sub(offset)));
    }
    let names = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let position = names.iter().position(|known| *known == name);
    position
        .and_then(|index| i32::try_from(index + 1).ok())
        .unwrap_or(TERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name() {
        let table = [
            (None, 15),
            (Some("SIGTERM"), 15),
            (Some("sigint"), 2),
            (Some("QUIT"), 3),
            (Some("SIGWINCH"), 28),
            (Some("9"), 9),
            (Some("SIGRTMIN+3"), 37),
            (Some("SIGRTMAX-1"), 63),
            (Some("SIGRTMIN"), 34),
            (Some("SIGRTMIN+2147483647"), 15),
            (Some("SIGRTMAX--2147483648"), 15),
            (Some("SIGRTMIN+31"), 15),
            (Some("nonsense"), 15),
            (Some("900"), 15),
        ];
        for (name, number) in table {
            assert_eq!(signal_number(name), number, "{name:?}");
        }
    }
}
