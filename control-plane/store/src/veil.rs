//! Values that only those with a key can read: sealed before they leave memory, opened when they come back.
//!
//! In memory the state holds plain values. Log entries, forwarded proposals, rows on disk, chunks of states and backups
//! hold sealed ones, each record saying so: what was written before a [`Veil`] was configured stays readable.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{Key, Table};

/// Keeps the values of some tables unreadable on disk, between members and in backups.
///
/// Every member needs one that opens what the others seal. It is called on several threads at once.
pub trait Veil: Send + Sync + fmt::Debug {
    /// Whether the values of a table are sealed.
    fn covers(&self, table: &Table) -> bool;
    /// The value as it is written. `context` tells which object it is of: another's sealed value must not open in its
    /// place.
    fn seal(&self, context: &[u8], value: &[u8]) -> Vec<u8>;
    /// What [`Veil::seal`] was given, on this member or another.
    fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, VeilError>;
}

/// A sealed value cannot be opened. The message says why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct VeilError(pub String);

/// The veil of a member, or none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cover {
    veil: Option<Arc<dyn Veil>>,
}

impl Cover {
    pub(crate) fn new(veil: Option<Arc<dyn Veil>>) -> Cover {
        Cover { veil }
    }

    pub(crate) fn covers(&self, table: &Table) -> bool {
        self.veil.as_ref().is_some_and(|veil| veil.covers(table))
    }

    /// The value as it is written, and whether it is sealed.
    pub(crate) fn seal(&self, key: &Key, value: &Bytes) -> (Bytes, bool) {
        match self.veil.as_ref().filter(|veil| veil.covers(&key.table)) {
            Some(veil) => (veil.seal(&context(key), value).into(), true),
            None => (value.clone(), false),
        }
    }

    /// What was given to [`Cover::seal`].
    pub(crate) fn open(&self, key: &Key, value: Bytes, sealed: bool) -> Result<Bytes, VeilError> {
        if !sealed {
            return Ok(value);
        }
        let name = || format!("{} {}/{}", key.table.0, key.namespace, key.name);
        let veil = self.veil.as_ref().ok_or_else(|| {
            VeilError(format!(
                "{} is encrypted, and this server has no key: give it the cluster's encryption key",
                name()
            ))
        })?;
        let opened = veil.open(&context(key), &value);
        opened
            .map(Bytes::from)
            .map_err(|VeilError(reason)| VeilError(format!("{}: {reason}", name())))
    }
}

/// Names hold no zero byte, so that no two keys have the same context.
fn context(key: &Key) -> Vec<u8> {
    let parts = [&key.table.0, &key.namespace, &key.name];
    parts.map(|part| part.as_bytes()).join(&0)
}

#[cfg(test)]
pub(crate) mod toy;

#[cfg(test)]
mod tests;
