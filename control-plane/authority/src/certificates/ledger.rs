//! Which certificates were issued last, to whom: what `gantry certs` lists, and what an authority is still needed for.

use anyhow::{Context, Result};
use gantry_apiserver::node_keys::LEDGER as TABLE;
use gantry_store::{Index, Key, Operation, Store, Table, Transaction};
use gantry_tls::Lifetime;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Lines that one change forgets.
const AT_ONCE: usize = 256;

/// What was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issued {
    /// The fingerprint of the authority that signed it.
    pub(super) authority: String,
    pub(super) lifetime: Lifetime,
}

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// The certificate's user.
    pub(super) user: String,
    /// Where it is kept, when the user does not say so.
    pub(super) holder: String,
    pub(super) authority: String,
    pub(super) issued: Timestamp,
    pub(super) expires: Timestamp,
}

/// The index of issued certificates, as other authorities call it.
#[derive(Clone)]
pub(super) struct Ledger {
    store: Store,
}

fn key(user: &str, holder: &str) -> Key {
    Key {
        table: Table(TABLE.into()),
        namespace: user.into(),
        name: holder.into(),
    }
}

impl Ledger {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Notes what was issued, unless that is noted already.
    pub(super) async fn enter(&self, user: &str, holder: &str, issued: Issued) -> Result<()> {
        let line = Line {
            user: user.to_owned(),
            holder: holder.to_owned(),
            authority: issued.authority,
            issued: issued.lifetime.issued,
            expires: issued.lifetime.expires,
        };
        let key = key(user, holder);
        let value = serde_json::to_vec(&line)?;
        if self
            .store
            .get(&key)
            .is_some_and(|known| known.value == value)
        {
            return Ok(());
        }
        let put = Operation::Put {
            key,
            value: value.into(),
            index: Index::default(),
        };
        self.change(vec![put]).await
    }

    fn all(&self) -> Vec<Line> {
        let table = self.store.snapshot(&Table(TABLE.into()));
        let lines = table
            .iter()
            .map(|(_, entry)| serde_json::from_slice::<Line>(&entry.value));
        // Only this module writes the table.
        lines.filter_map(Result::ok).collect()
    }

    /// All that is noted and not expired.
    pub(super) fn lines(&self) -> Vec<Line> {
        let now = Timestamp::now();
        let lines = self.all().into_iter();
        lines.filter(|line| line.expires > now).collect()
    }

    /// Forgets lines that are of no interest any more.
    pub(super) async fn forget(&self, wanted: impl Fn(&Line) -> bool) -> Result<()> {
        let unwanted = self.all().into_iter().filter(|line| !wanted(line));
        let deletes: Vec<Operation> = unwanted
            .map(|line| Operation::Delete {
                key: key(&line.user, &line.holder),
                last: None,
            })
            .collect();
        for deletes in deletes.chunks(AT_ONCE) {
            self.change(deletes.to_vec()).await?;
        }
        Ok(())
    }

    async fn change(&self, operations: Vec<Operation>) -> Result<()> {
        let transaction = Transaction {
            guards: Vec::new(),
            operations,
        };
        let written = self.store.propose(transaction).await;
        written
            .map(drop)
            .context("noting which certificates were issued")
    }
}
