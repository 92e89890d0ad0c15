//! Lines in which writes of one server wait for each other that change the same thing beside their own objects.
//!
//! Without them all is as correct, by the guards of transactions, but of many such writes at once one would succeed at a time
//! and all others begin anew. Writes of other servers meet at the guards.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Line, OwnedMutexGuard};

type All = Mutex<HashMap<Arc<str>, Arc<Line<()>>>>;

/// A line for each name that somebody waits for.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<All>);

/// A place in a line, which is left with it.
pub(crate) struct Place {
    lines: Lines,
    name: Arc<str>,
    line: Arc<Line<()>>,
    first: Option<OwnedMutexGuard<()>>,
}

impl Lines {
    /// Enters the line of a name, at its end.
    pub(crate) fn enter(&self, name: &str) -> Place {
        let name: Arc<str> = name.into();
        let line = self.0.lock().entry(name.clone()).or_default().clone();
        Place {
            lines: self.clone(),
            name,
            line,
            first: None,
        }
    }
}

impl Place {
    /// Waits until all before it have left.
    pub(crate) async fn wait(&mut self) {
        if self.first.is_none() {
            self.first = Some(self.line.clone().lock_owned().await);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.first = None;
        let mut all = self.lines.0.lock();
        // Nobody enters meanwhile: one is the map's, the other this one's.
        if Arc::strong_count(&self.line) == 2 {
            all.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_of_a_name_is_first_and_no_line_outlives_who_waits_in_it() {
        let lines = Lines::default();
        let (mut first, mut second) = (lines.enter("a"), lines.enter("a"));
        let mut other = lines.enter("b");
        first.wait().await;
        other.wait().await;
        assert!(second.wait().now_or_never().is_none());
        drop(first);
        second.wait().await;
        drop((second, other));
        assert!(lines.0.lock().is_empty());
        let (mut first, second) = (lines.enter("a"), lines.enter("a"));
        first.wait().await;
        drop(first);
        drop(second);
        assert!(lines.0.lock().is_empty(), "one that gave up waiting leaves");
    }
}
