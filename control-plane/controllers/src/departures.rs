//! Objects that are gone, of whatever kind: the garbage collector follows all of them, and tells who wants to know.

use parking_lot::RwLock;

use crate::resources::Resource;

/// What is told of the kind and the namespace of an object that is gone.
type Listener = Box<dyn Fn(&Resource, &str) + Send + Sync>;

/// Whoever wants to know.
#[derive(Default)]
pub(crate) struct Departures(RwLock<Vec<Listener>>);

impl Departures {
    /// Has the listener told of every object from now on.
    pub(crate) fn listen(&self, listener: Listener) {
        self.0.write().push(listener);
    }

    pub(crate) fn tell(&self, resource: &Resource, namespace: &str) {
        for listener in self.0.read().iter() {
            listener(resource, namespace);
        }
    }
}
