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
