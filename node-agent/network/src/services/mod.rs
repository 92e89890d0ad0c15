//! Services in nftables: a pure [`plan`] of what should be there, a [`script`] of the difference, one transaction.
//!
//! ```text
//! prerouting / output
//!   from outside?  -> outside_address / outside_port   externalTrafficPolicy: Local: local endpoints, source kept
//!   (daddr, proto, dport) -> service_address ----+
//!   (proto, dport) to a local address            |     verdict maps: which chain balances this frontend
//!                  -> service_port --------------+
//!                                                v
//!   chain <shape>_K   one per protocol, kind of frontend, affinity and *number of endpoints*:
//!       dnat to (frontend, random mod K) map @<shape>_K
//! ```
//!
//! The number of rules and chains depends on how many different endpoint counts there are, never on the number of
//! services: a changed endpoint is a handful of map elements.

mod plan;
mod script;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::bridge::blocking;
use crate::names::Names;
use crate::nft::{Nft, shortened};
use crate::nft_session::{LONGEST_SCRIPT, Refusal, Session};
use crate::{NetworkError, NodeNetwork, ServicePort, ServiceRules};

use plan::Plan;
use script::{Programmed, Skeleton};

/// How long a session waits for the next change before its memory is given back.
const IDLE: Duration = Duration::from_secs(10);

/// Programs the node's services into the table `<prefix>-services`.
///
/// Session affinity hashes the client's address over the endpoints: a client stays with its endpoint while the set of
/// endpoints is unchanged; the configured timeout has no effect on that.
pub struct NftServiceRules {
    kernel: Arc<Mutex<Kernel>>,
}

/// The kernel's table, as far as we know it.
struct Kernel {
    nft: Nft,
    skeleton: Skeleton,
    /// `None` when it has to be set up from scratch.
    programmed: Option<Programmed>,
    session: Option<Session>,
    last_change: Instant,
    /// A task waits for the session to become idle.
    retiring: bool,
}

impl NftServiceRules {
    /// Finds `nft`. The kernel is touched by the first [`ServiceRules::sync`], which replaces our own table (and
    /// nothing else) in one transaction, so that services keep working while the agent restarts.
    pub fn new(node: &NodeNetwork) -> Result<Self, NetworkError> {
        let names = Names::new(node)?;
        let skeleton = Skeleton {
            table: names.service_table(),
            pod_cidr: node.pod_cidr.trunc(),
            service_cidr: node.service_cidr.trunc(),
        };
        let kernel = Kernel {
            nft: Nft::find()?,
            skeleton,
            programmed: None,
            session: None,
            last_change: Instant::now(),
            retiring: false,
        };
        Ok(Self {
            kernel: Arc::new(Mutex::new(kernel)),
        })
    }
}

#[async_trait]
impl ServiceRules for NftServiceRules {
    async fn sync(&self, desired: Vec<ServicePort>) -> Result<(), NetworkError> {
        let mut kernel = Arc::clone(&self.kernel).lock_owned().await;
        let mut kernel = blocking(move || {
            kernel.program(&Plan::new(&desired))?;
            Ok(kernel)
        })
        .await?;
        if kernel.session.is_some() && !kernel.retiring {
            kernel.retiring = true;
            tokio::spawn(retire(Arc::clone(&self.kernel)));
        }
        Ok(())
    }
}

impl Kernel {
    /// Makes the table equal to the plan: by the difference when what is there is known, from scratch otherwise.
    fn program(&mut self, plan: &Plan) -> Result<(), NetworkError> {
        if let Some(now) = self.programmed.take() {
            let (script, next) = script::difference(&self.skeleton, &now, plan);
            if script.is_empty() {
                self.programmed = Some(now);
                return Ok(());
            }
            match self.apply(&script) {
                Ok(()) => {
                    self.programmed = Some(next);
                    return Ok(());
                }
                // Somebody else flushed or changed our table (a firewall that was restarted, for instance).
                Err(NetworkError::Nft(words)) => {
                    tracing::warn!(
                        words,
                        table = self.skeleton.table,
                        "the table of services is not as it was left"
                    );
                }
                Err(other) => return Err(other),
            }
        }
        let (script, next) = script::from_scratch(&self.skeleton, plan);
        self.nft.set_up(&script)?;
        tracing::info!(
            table = self.skeleton.table,
            elements = plan.len(),
            "services programmed from scratch"
        );
        self.programmed = Some(next);
        Ok(())
    }

    /// Applies a small script through the session, a large one by a program of its own.
    fn apply(&mut self, script: &str) -> Result<(), NetworkError> {
        self.last_change = Instant::now();
        if script.len() > LONGEST_SCRIPT {
            return self.nft.apply(script);
        }
        let mut session = match self.session.take().filter(|session| !session.is_worn()) {
            Some(session) => session,
            None => self.nft.session()?,
        };
        match session.apply(script) {
            Ok(()) => {
                self.session = Some(session);
                Ok(())
            }
            Err(Refusal::Refused(words)) => {
                self.session = Some(session);
                Err(NetworkError::Nft(shortened(&words)))
            }
            // Whether it was applied is unknown, which is as good as a table that somebody changed.
            Err(Refusal::Broken(error)) => {
                Err(NetworkError::Nft(format!("the nft session broke: {error}")))
            }
        }
    }
}

/// Ends the session once nothing has changed for a while.
async fn retire(kernel: Arc<Mutex<Kernel>>) {
    loop {
        let idle_at = kernel.lock().await.last_change + IDLE;
        tokio::time::sleep_until(idle_at).await;
        let mut kernel = kernel.lock().await;
        if kernel.last_change + IDLE <= Instant::now() {
            kernel.retiring = false;
            let session = kernel.session.take();
            drop(kernel);
            // Its end waits for the kernel to clean up.
            if let Err(error) = tokio::task::spawn_blocking(move || drop(session)).await {
                tracing::warn!(%error, "ending an idle nft session");
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Endpoint, Protocol, ServicePort};

    pub(super) fn endpoint(number: u16) -> Endpoint {
        let [high, low] = number.to_be_bytes();
        Endpoint {
            ip: [10, 244, high, low].into(),
            port: 8080,
            local: true,
        }
    }

    pub(super) fn service(name: &str, address: u16, endpoints: &[u16]) -> ServicePort {
        let [high, low] = address.to_be_bytes();
        ServicePort {
            namespace: "default".into(),
            service: name.into(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
            cluster_ip: Some([10, 96, high, low].into()),
            external_ips: vec![],
            port: 80,
            node_port: None,
            client_ip_affinity: None,
            external_local: false,
            internal_local: false,
            endpoints: endpoints.iter().map(|&number| endpoint(number)).collect(),
        }
    }
}
