//! Another authority, with an overlap: from the first step on both are trusted and the new one signs, vouched for by the
//! old one, so that nobody needs to hear of it in time; the second step ends the trust in the old one.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use gantry_apiserver::node_keys;
use gantry_members::{Roster, ServerRecord};
use gantry_store::{Revision, Store};
use jiff::Timestamp;

use super::Certificates;
use super::authorities::Authorities;
use super::holders::{ADMINISTRATOR, PERSON, node_key};
use super::ledger::Line;

/// A node whose certificate is this old and that has not shown itself is gone.
const APPEARS: Duration = Duration::from_secs(60 * 60);
/// At most this many holders are named in a refusal.
const NAMED: usize = 5;

impl Certificates {
    /// A new authority signs; the one before is trusted until [`Certificates::finish`]. On the leader.
    pub(super) async fn rotate(&self) -> Result<()> {
        let known = self.latest().await?;
        let next = known.succeeded()?;
        next.write(&self.inner.store, Some(&known)).await?;
        tracing::info!(
            "a new authority signs; the one before is trusted until its replacement is finished"
        );
        Ok(())
    }

    /// Ends the trust in the authority before, once nothing needs it; with `force` in any case. On the leader.
    pub(super) async fn finish(&self, force: bool) -> Result<()> {
        let known = self.latest().await?;
        let next = known.alone()?;
        let signing = known.signing()?;
        let mut needing: Vec<String> = self
            .lines()
            .into_iter()
            .filter(|line| line.authority != signing)
            .map(|line| line.described())
            .collect();
        if !needing.is_empty() && !force {
            let more = needing.len().saturating_sub(NAMED);
            needing.truncate(NAMED);
            if more > 0 {
                needing.push(format!("{more} more"));
            }
            bail!(
                "these still have certificates of the old authority: {}. Servers and nodes that run get new ones within a minute or \
                 two; give people new ones with 'gantry user create'; remove what does not run any more with 'gantry member remove' or \
                 'gantry delete node', or lock it out with --force",
                needing.join(", ")
            );
        }
        next.write(&self.inner.store, Some(&known)).await?;
        tracing::info!("the old authority is not trusted any more");
        Ok(())
    }

    /// The authorities as they are now, on any server.
    pub(super) async fn latest(&self) -> Result<Authorities> {
        self.inner.store.read_barrier().await?;
        match Authorities::read(&self.inner.store)? {
            Some(known) => Ok(known),
            None => bail!("the cluster has no authority yet: try again in a moment"),
        }
    }

    /// The certificates that somebody may still use.
    pub(super) fn lines(&self) -> Vec<Line> {
        let servers = self.servers();
        let mut lines = self.inner.ledger.lines();
        lines.retain(|line| self.is_used(line, &servers));
        lines
    }

    fn servers(&self) -> Vec<ServerRecord> {
        Roster::new(self.inner.store.clone()).all()
    }

    fn is_used(&self, line: &Line, servers: &[ServerRecord]) -> bool {
        if let Some(node) = line.user.strip_prefix("system:node:") {
            let exists = self.inner.store.get(&node_key(node)).is_some();
            return exists || Timestamp::now() < line.issued + APPEARS;
        }
        if line.holder == PERSON {
            return true;
        }
        if line.user == ADMINISTRATOR.0 {
            let holder = line.holder.split(':').next();
            return servers
                .iter()
                .any(|server| Some(server.name.as_str()) == holder);
        }
        servers.iter().any(|server| server.name == line.holder)
    }

    /// On the leader, forgets certificates that nobody uses any more.
    pub(super) async fn tidy(&self) -> Result<()> {
        if !self.inner.store.leadership().borrow().is_leader {
            return Ok(());
        }
        let (now, servers) = (Timestamp::now(), self.servers());
        self.inner
            .ledger
            .forget(|line| line.expires > now && self.is_used(line, &servers))
            .await?;
        let store = &self.inner.store;
        let before = std::mem::take(&mut *self.inner.unexpected.lock());
        let unexpected = unexpected_names(store);
        // What has just been certified is in the ledger a moment later: only what was so a look ago is given up.
        for (node, row) in unexpected.intersection(&before) {
            node_keys::free(store, node, *row).await?;
            tracing::info!(node, "its machine has not appeared: the name is free");
        }
        *self.inner.unexpected.lock() = unexpected;
        Ok(())
    }
}

/// Names that have keys and nothing else, with the revisions of those. O(names).
fn unexpected_names(store: &Store) -> BTreeSet<(String, Revision)> {
    let held = node_keys::held(store).into_iter();
    held.filter(|(node, _)| !node_keys::is_expected(store, node))
        .collect()
}

impl Line {
    /// Who has it, for messages.
    fn described(&self) -> String {
        match self.holder.as_str() {
            "" | PERSON => self.user.clone(),
            holder => format!("{} on {holder}", self.user),
        }
    }
}
