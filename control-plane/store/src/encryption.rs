//! Encryption at rest, as Kubernetes calls it: values that only those with a key can read are sealed before they leave
//! memory, and opened when they come back.
//!
//! In memory the state holds plain values. Log entries, forwarded proposals, rows on disk, chunks of states and backups
//! hold sealed ones, each record saying so: what was written before a [`Transformer`] was configured stays readable.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{Key, Table};

/// Kubernetes' storage transformer: keeps the values of some tables unreadable on disk, between members and in backups.
///
/// Every member needs one that opens what the others seal. It is called on several threads at once.
pub trait Transformer: Send + Sync + fmt::Debug {
    /// Whether the values of a table are sealed.
    fn covers(&self, table: &Table) -> bool;
    /// The value as it is written. `context` tells which object it is of: another's sealed value must not open in its
    /// place.
    fn seal(&self, context: &[u8], value: &[u8]) -> Vec<u8>;
    /// What [`Transformer::seal`] was given, on this member or another.
    fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, TransformError>;
}

/// A sealed value cannot be opened. The message says why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransformError(pub String);

/// What a member encrypts with, or nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encryption {
    transformer: Option<Arc<dyn Transformer>>,
}

impl Encryption {
    pub(crate) fn new(transformer: Option<Arc<dyn Transformer>>) -> Encryption {
        Encryption { transformer }
    }

    pub(crate) fn covers(&self, table: &Table) -> bool {
        self.transformer
            .as_ref()
            .is_some_and(|transformer| transformer.covers(table))
    }

    /// The value as it is written, and whether it is sealed.
    pub(crate) fn seal(&self, key: &Key, value: &Bytes) -> (Bytes, bool) {
        match self
            .transformer
            .as_ref()
            .filter(|transformer| transformer.covers(&key.table))
        {
            Some(transformer) => (transformer.seal(&context(key), value).into(), true),
            None => (value.clone(), false),
        }
    }

    /// What was given to [`Encryption::seal`].
    pub(crate) fn open(
        &self,
        key: &Key,
        value: Bytes,
        sealed: bool,
    ) -> Result<Bytes, TransformError> {
        if !sealed {
            return Ok(value);
        }
        let name = || format!("{} {}/{}", key.table.0, key.namespace, key.name);
        let transformer = self.transformer.as_ref().ok_or_else(|| {
            TransformError(format!(
                "{} is encrypted, and this server has no key: give it the cluster's encryption key",
                name()
            ))
        })?;
        let opened = transformer.open(&context(key), &value);
        opened
            .map(Bytes::from)
            .map_err(|TransformError(reason)| TransformError(format!("{}: {reason}", name())))
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
