//! What runs for as long as a server does.

use gantry_tasks::supervised;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of a server, and their end.
#[derive(Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs a task that ends when it is told to stop, and is not begun anew.
    pub(crate) fn run<F>(&self, begin: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(begin(self.stop.clone()));
    }

    /// Runs a task for as long as the server does, whatever happens to it.
    pub(crate) fn keep_running<F>(
        &self,
        name: &'static str,
        mut begin: impl FnMut(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            supervised(name, &stop, || begin(stop.clone())).await;
        });
    }

    /// Tells all of them to stop, and returns when they have.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
