//! `gantry rollout status`: a live picture on a terminal, and elsewhere kubectl's lines.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::jiff::Timestamp;
use rustix::termios::tcgetwinsize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Deployment;
use super::picture::{Screen, picture};
use super::progress::{Progress, progress};
use super::seen::{Seen, read};
use crate::client::{Call, Change, Cluster, watch};
use crate::output;

/// The seconds in the picture go on though nothing else changes.
const TICK: Duration = Duration::from_secs(1);
/// Changes that come together are shown together.
const TOGETHER: Duration = Duration::from_millis(50);
/// Rows of a terminal that does not say how many it has.
const ROWS: usize = 24;

impl Deployment {
    /// Waits for the end of the rollout; an end that is no success, and too long a wait, are errors.
    pub(super) async fn status(
        &self,
        cluster: &Cluster,
        timeout: Duration,
        once: bool,
        revision: Option<i64>,
    ) -> Result<()> {
        let is_live = !once && std::io::stdout().is_terminal();
        let waiting = async {
            match is_live {
                true => self.draw(cluster, revision).await,
                false => self.tell(cluster, once, revision).await,
            }
        };
        if timeout.is_zero() {
            return waiting.await;
        }
        match tokio::time::timeout(timeout, waiting).await {
            Ok(result) => result,
            Err(_) => bail!("timed out waiting for the condition"),
        }
    }

    /// What is waited for, or how the rollout has ended well. All other ends are errors.
    fn state(
        &self,
        deployment: &apps::Deployment,
        revision: Option<i64>,
    ) -> Result<ControlFlow<String, String>> {
        let spec = deployment.spec.as_ref();
        if spec.and_then(|spec| spec.paused) == Some(true) {
            bail!(
                "{} is paused: resume it with 'gantry rollout resume deploy/{}'",
                self.mapping.display(&self.name),
                self.name
            );
        }
        match progress(deployment, revision) {
            Progress::Done(line) => Ok(ControlFlow::Break(line)),
            Progress::Waiting(line) => Ok(ControlFlow::Continue(line)),
            Progress::Failed(line) => bail!("{line}"),
        }
    }

    /// Prints a line for each state that the rollout goes through, or only for the first.
    async fn tell(&self, cluster: &Cluster, once: bool, revision: Option<i64>) -> Result<()> {
        let first = cluster.call(Call::get(&self.path)).await?;
        let mut shown = String::new();
        let mut show = |deployment| -> Result<ControlFlow<()>> {
            let (line, is_over) = match self.state(&read(deployment)?, revision)? {
                ControlFlow::Break(line) => (line, true),
                ControlFlow::Continue(line) => (line, once),
            };
            if shown != line {
                output::print(&format!("{line}\n"))?;
                shown = line;
            }
            Ok(match is_over {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        };
        if show(first)?.is_break() {
            return Ok(());
        }
        let (path, named) = self.watched(cluster);
        let query = [("fieldSelector", named.as_str())];
        watch(cluster, &path, &query, |change| match change {
            Change::Is(deployment) => show(deployment),
            Change::All(deployments) => match deployments.into_iter().next() {
                Some(deployment) => show(deployment),
                None => bail!("object has been deleted"),
            },
            Change::Gone(_) => bail!("object has been deleted"),
        })
        .await
    }

    /// The collection that it is in, and the field selector that finds it there.
    fn watched(&self, cluster: &Cluster) -> (String, String) {
        let path = self.mapping.path(Some(&cluster.namespace), None);
        (path, format!("metadata.name={}", self.name))
    }

    /// Draws the rollout as it goes on.
    async fn draw(&self, cluster: &Cluster, revision: Option<i64>) -> Result<()> {
        let known = Seen::of(cluster.call(Call::get(&self.path)).await?)?;
        let labels = known.selector();
        let labelled = [("labelSelector", labels.as_str())];
        let (path, named) = self.watched(cluster);
        let by_name = [("fieldSelector", named.as_str())];
        let of_namespace = async |word: &str| {
            let mapping = cluster.mapping(word).await?;
            Ok::<_, anyhow::Error>(mapping.path(Some(&cluster.namespace), None))
        };
        let sets = of_namespace("replicasets.apps").await?;
        let pods = of_namespace("pods").await?;
        let (seen, changed) = (&RefCell::new(known), &Notify::new());
        let hear = |take: fn(&mut Seen, Change) -> Result<()>| {
            move |change| -> Result<ControlFlow<()>> {
                take(&mut seen.borrow_mut(), change)?;
                changed.notify_one();
                Ok(ControlFlow::Continue(()))
            }
        };
        tokio::select! {
            ended = watch(cluster, &path, &by_name, hear(Seen::take_deployment)) => ended,
            ended = watch(cluster, &sets, &labelled, hear(Seen::take_sets)) => ended,
            ended = watch(cluster, &pods, &labelled, hear(Seen::take_pods)) => ended,
            ended = self.redraw(seen, changed, revision) => ended,
        }
    }

    /// Draws what is known, whenever that changes, until the rollout has ended.
    async fn redraw(
        &self,
        seen: &RefCell<Seen>,
        changed: &Notify,
        revision: Option<i64>,
    ) -> Result<()> {
        let began = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        let mut screen = Screen::default();
        loop {
            tokio::select! {
                () = changed.notified() => tokio::time::sleep(TOGETHER).await,
                _ = tick.tick() => {}
            }
            let seen = seen.borrow();
            if !seen.is_whole() {
                continue;
            }
            let state = self.state(&seen.deployment, revision);
            let waiting = match &state {
                Ok(ControlFlow::Continue(line)) => Some(line.as_str()),
                _ => None,
            };
            let lines = picture(&seen, began.elapsed(), Timestamp::now(), waiting);
            output::print(&screen.frame(&lines, rows()))?;
            if let ControlFlow::Break(line) = state? {
                return output::print(&format!("{line}\n"));
            }
        }
    }
}

/// The rows of the terminal.
fn rows() -> usize {
    let size = tcgetwinsize(std::io::stdout());
    size.ok()
        .map(|size| usize::from(size.ws_row))
        .filter(|rows| *rows > 0)
        .unwrap_or(ROWS)
}
