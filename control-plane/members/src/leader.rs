//! Whether this server asks another one for what the leader alone knows.

use std::time::Duration;

use gantry_store::Store;

/// A leader that takes longer is not going to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The server that leads; none where that is this one, or nobody knows of any.
pub(crate) fn elsewhere(store: &Store) -> Option<u64> {
    let leadership = store.leadership();
    let state = leadership.borrow();
    state.leader.filter(|_| !state.is_leader)
}
