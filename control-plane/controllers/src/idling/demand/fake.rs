//! Demand that a test says.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Connections, Demand, Wake, Wanted};

/// The demand; see the module's documentation.
#[derive(Default)]
pub struct FakeDemand {
    /// Of pods that were said nothing of.
    others: Mutex<Option<Connections>>,
    said: Mutex<HashMap<String, Connections>>,
    wakes: Mutex<Vec<(CancellationToken, Wake)>>,
}

impl FakeDemand {
    /// The connections of a pod, by its uid.
    pub fn say(&self, pod_uid: &str, connections: Connections) {
        self.said.lock().insert(pod_uid.to_owned(), connections);
    }

    /// The connections of all pods of which nothing else is said.
    pub fn say_of_others(&self, connections: Connections) {
        *self.others.lock() = Some(connections);
    }

    /// Tells whoever has subscribed that something is wanted.
    pub fn want(&self, wanted: Wanted<'_>) {
        for (stop, wake) in self.wakes.lock().iter() {
            if !stop.is_cancelled() {
                wake(wanted);
            }
        }
    }
}

impl Demand for FakeDemand {
    fn connections(&self, pod_uid: &str) -> Option<Connections> {
        let said = self.said.lock().get(pod_uid).copied();
        said.or(*self.others.lock())
    }

    fn subscribe(&self, stop: &CancellationToken, wake: Wake) {
        self.wakes.lock().push((stop.clone(), wake));
    }
}
