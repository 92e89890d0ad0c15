//! Reading a table piece by piece, as fast as a client takes it, at one revision.

use std::sync::Arc;
use std::time::Duration;

use gantry_store::{Entry, TableSnapshot};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::selection::Selection;

/// For how long a table is kept as it was for one reader. Later writes would otherwise keep every old object in memory
/// for one that does not read.
const LONGEST: Duration = Duration::from_secs(120);
/// Objects looked at in one go; whoever selects few lets others have their turn.
const STEP: usize = 1024;

/// Looks through a whole table for what is selected, a step at a time.
pub(crate) struct Walk<'a> {
    table: &'a TableSnapshot,
    namespace: Option<&'a str>,
    selection: &'a Selection,
    /// The last object that was looked at.
    cursor: Option<(Arc<str>, Arc<str>)>,
}

impl<'a> Walk<'a> {
    /// Of the objects behind `cursor`.
    pub(crate) fn new(
        table: &'a TableSnapshot,
        namespace: Option<&'a str>,
        selection: &'a Selection,
        cursor: Option<(Arc<str>, Arc<str>)>,
    ) -> Self {
        Self {
            table,
            namespace,
            selection,
            cursor,
        }
    }

    /// Looks at the next [`STEP`] objects and tells the namespace and name of those that are selected; false when there are
    /// no more objects. Between two steps, others have their turn.
    pub(crate) fn step(&mut self, mut found: impl FnMut(&Arc<str>, &Arc<str>)) -> bool {
        let cursor = self.cursor.take();
        let cursor = cursor.as_ref();
        let rows = self.table.range_after(
            self.namespace,
            cursor.map(|(namespace, name)| (&**namespace, &**name)),
        );
        let mut rows = rows.peekable();
        for (key, entry) in rows.by_ref().take(STEP) {
            if self.selection.matches(&key.0, &key.1, entry) {
                found(&key.0, &key.1);
            }
            self.cursor = Some(key.clone());
        }
        rows.peek().is_some()
    }
}

/// See the module.
pub(crate) struct Scan {
    table: Arc<Mutex<Option<TableSnapshot>>>,
    /// Takes the table away.
    timer: Option<AbortOnDropHandle<()>>,
    namespace: Option<String>,
    selection: Selection,
    /// The last object that was looked at.
    cursor: Option<(Arc<str>, Arc<str>)>,
    /// Objects still wanted.
    left: usize,
}

/// What a step found.
pub(crate) enum Step {
    /// Some objects, perhaps none, and more may follow.
    Some(Vec<Arc<Entry>>),
    /// The last.
    Last(Vec<Arc<Entry>>),
    /// The reader took too long.
    Expired,
}

impl Scan {
    /// Of the objects behind `cursor`, as many as are selected, up to `limit`; 0 for all.
    pub(crate) fn new(
        table: TableSnapshot,
        namespace: Option<String>,
        selection: Selection,
        cursor: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
    ) -> Self {
        Self {
            table: Arc::new(Mutex::new(Some(table))),
            timer: None,
            namespace,
            selection,
            cursor,
            left: if limit == 0 { usize::MAX } else { limit },
        }
    }

    /// Reads on until the values found have so many bytes, or enough was looked at for once.
    pub(crate) fn step(&mut self, bytes: usize) -> Step {
        let Some(table) = self.table.lock().clone() else {
            return Step::Expired;
        };
        let cursor = self.cursor.take();
        let cursor = cursor.as_ref();
        let rows = table.range_after(
            self.namespace.as_deref(),
            cursor.map(|(namespace, name)| (&**namespace, &**name)),
        );
        let (mut found, mut size, mut left) = (Vec::new(), 0, self.left);
        let (mut last, mut more) = (None, false);
        for (looked, (key, entry)) in rows.enumerate() {
            more = left > 0 && (size >= bytes || looked >= STEP);
            if more || left == 0 {
                break;
            }
            last = Some(key.clone());
            if self.selection.matches(&key.0, &key.1, entry) {
                size += entry.value.len();
                left -= 1;
                found.push(entry.clone());
            }
        }
        (self.cursor, self.left) = (last, left);
        if more {
            self.keep_for_a_while();
            return Step::Some(found);
        }
        self.table.lock().take();
        Step::Last(found)
    }

    fn keep_for_a_while(&mut self) {
        if self.timer.is_none() {
            let table = self.table.clone();
            self.timer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(LONGEST).await;
                table.lock().take();
            })));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gantry_store::{Index, Key, Operation, Store, Table, Transaction};

    use super::*;

    /// A table with objects `0000`, `0001` and so on, every other one of another namespace.
    async fn table(objects: usize) -> TableSnapshot {
        let store = Store::ephemeral();
        let table = Table("things".into());
        let put = |at: usize| Operation::Put {
            key: Key {
                table: table.clone(),
                namespace: (if at.is_multiple_of(2) { "a" } else { "b" }).into(),
                name: format!("{at:04}").as_str().into(),
            },
            value: "{}".into(),
            index: Index::default(),
        };
        let all = Transaction {
            guards: Vec::new(),
            operations: (0..objects).map(put).collect(),
        };
        store.propose(all).await.expect("written");
        store.snapshot(&table)
    }

    #[tokio::test]
    async fn a_walk_looks_at_no_more_than_a_step_at_once() {
        let table = table(2 * STEP + 2).await;
        let everything = Selection::default();
        let mut steps = Vec::new();
        let mut walk = Walk::new(&table, None, &everything, None);
        loop {
            let mut found = 0;
            let more = walk.step(|_, _| found += 1);
            steps.push((found, more));
            if !more {
                break;
            }
        }
        assert_eq!(steps, [(STEP, true), (STEP, true), (2, false)]);
    }

    #[tokio::test]
    async fn a_walk_keeps_to_its_namespace_and_goes_on_behind_a_cursor() {
        let table = table(2 * STEP).await;
        let everything = Selection::default();
        let mut of = BTreeMap::new();
        let mut walk = Walk::new(&table, Some("a"), &everything, None);
        let more = walk.step(|namespace, _| *of.entry(namespace.clone()).or_insert(0) += 1);
        assert!(!more, "whatever other namespaces hold");
        assert_eq!(of, BTreeMap::from([("a".into(), STEP)]));
        let cursor = ("b".into(), format!("{:04}", 2 * STEP - 3).as_str().into());
        let mut names = Vec::new();
        let mut walk = Walk::new(&table, None, &everything, Some(cursor));
        assert!(!walk.step(|_, name| names.push(name.to_string())));
        assert_eq!(names, [format!("{:04}", 2 * STEP - 1)]);
    }
}
