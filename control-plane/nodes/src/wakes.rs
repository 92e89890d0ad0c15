//! What nodes say is wanted: Services that nothing serves, and that connections are held to. Handed on at once to whoever can
//! bring something back that serves them.

use std::sync::Arc;

use gantry_usage::ServiceName;
use tokio::sync::broadcast;

/// Wakes that wait for who listens. Of those that are missed a node says again, a second later, what is still wanted.
const WAITING: usize = 1024;

/// A node holds connections to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The node.
    pub node: Arc<str>,
    /// The Service. Whether there is one of that name is not known here.
    pub service: ServiceName,
}

/// Hands them on.
pub(crate) struct Wakes(broadcast::Sender<Wanted>);

impl Default for Wakes {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Wakes {
    /// Tells who listens.
    pub(crate) fn tell(&self, node: &str, service: ServiceName) {
        let wanted = Wanted {
            node: node.into(),
            service,
        };
        // On a server that is about to lead nobody listens yet.
        self.0.send(wanted).ok();
    }

    /// What is wanted from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Wanted> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_hears_what_is_wanted_from_then_on() {
        let wakes = Wakes::default();
        let service = |name: &str| ServiceName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        };
        wakes.tell("one", service("before"));
        let (mut one, mut other) = (wakes.subscribe(), wakes.subscribe());
        wakes.tell("one", service("web"));
        for hears in [&mut one, &mut other] {
            let wanted = hears.try_recv().expect("told");
            assert_eq!((&*wanted.node, wanted.service), ("one", service("web")));
            assert!(hears.try_recv().is_err());
        }
    }
}
