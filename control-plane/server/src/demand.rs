//! What idling goes by: the connections that nodes which are linked to this server count, and those that they hold.

use std::sync::Arc;
use std::time::Instant;

use gantry_controllers::demand::{Connections, Demand, Wake, Wanted};
use gantry_nodes::Hub;
use gantry_usage::Figures;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

/// As nodes tell of it.
pub(crate) struct OfNodes {
    pub(crate) hub: Arc<Hub>,
    pub(crate) figures: Arc<Figures>,
}

impl Demand for OfNodes {
    fn connections(&self, pod_uid: &str) -> Option<Connections> {
        let known = self.figures.connections(pod_uid, Instant::now())?;
        Some(Connections {
            open: known.connections.open,
            opened: known.connections.opened,
        })
    }

    fn subscribe(&self, stop: &CancellationToken, wake: Wake) {
        let (stop, mut wakes) = (stop.clone(), self.hub.wakes());
        tokio::spawn(async move {
            loop {
                match stop.run_until_cancelled(wakes.recv()).await {
                    Some(Ok(wanted)) => wake(Wanted {
                        namespace: &wanted.service.namespace,
                        service: &wanted.service.name,
                        node: &wanted.node,
                    }),
                    // What was missed and is still wanted is told again within a second.
                    Some(Err(RecvError::Lagged(_))) => {}
                    Some(Err(RecvError::Closed)) | None => return,
                }
            }
        });
    }
}
