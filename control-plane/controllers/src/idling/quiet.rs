//! Since when a Deployment has had no connections, by what is seen of it every now and then.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::demand::Connections;

/// The connections of the pods that a Deployment has, by uid; of some of them nothing may be known.
pub(super) type Pods = BTreeMap<String, Option<Connections>>;

/// What was seen when it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quiet {
    /// What was wished for. Whatever changes of it, the time begins anew.
    generation: Option<i64>,
    /// How many connections each pod had seen.
    opened: BTreeMap<String, u64>,
    is_open: bool,
    /// There has been no connection since then.
    since: Instant,
}

impl Quiet {
    /// What is seen now, after what was seen `before`. Nothing is, where anything is unknown of any pod.
    ///
    /// It is quiet since now while connections are open, when there were any at the last look, and when any was opened in
    /// between: however rarely it is looked at, the time never begins before a connection's end.
    pub(super) fn seen(
        before: Option<&Self>,
        generation: Option<i64>,
        pods: &Pods,
        now: Instant,
    ) -> Option<Self> {
        let (mut opened, mut is_open) = (BTreeMap::new(), false);
        for (uid, connections) in pods {
            let connections = (*connections)?;
            is_open |= connections.open > 0;
            opened.insert(uid.clone(), connections.opened);
        }
        let went_on = before.filter(|before| {
            let same = before.generation == generation && before.opened == opened;
            same && !before.is_open && !is_open
        });
        let since = went_on.map_or(now, |before| before.since);
        Some(Self {
            generation,
            opened,
            is_open,
            since,
        })
    }

    /// Since when there has been no connection.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}
