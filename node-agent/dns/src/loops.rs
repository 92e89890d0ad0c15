//! Whether a resolver that we forward to asks us in turn. Each question would then go round until everybody gives up.
//!
//! Each resolver is asked for a name that nobody else asks for. Should that question arrive here, the resolver loops, and
//! is not asked any more. (Until that is known, a question that comes back waits for itself, and fails: it is never sent
//! a second time.)

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::exchange;
use crate::health::Resolver;

/// How long a resolver has for the question to come back.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts at one that does not answer, at most: it may be a loop that begins later.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Names that are looked for on their way back.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    under_way: Mutex<Vec<(Name, Arc<Resolver>)>>,
}

impl Probes {
    /// Whether a question is one of ours that came back. Its resolver is left out from then on.
    pub(crate) fn caught(&self, query: &Query) -> bool {
        if query.query_type() != RecordType::HINFO {
            return false;
        }
        let under_way = self.under_way.lock();
        let Some((_, resolver)) = under_way.iter().find(|(name, _)| name == query.name()) else {
            return false;
        };
        if !resolver.is_looping() {
            tracing::error!(
                resolver = %resolver.address,
                "a resolver of this node forwards to this node's DNS, which would go on for ever: it is not asked any \
                 more; name another in the node's /etc/resolv.conf and restart the agent"
            );
            resolver.loops();
        }
        true
    }

    /// Asks one resolver until it answers or is found out.
    pub(crate) async fn look_at(self: Arc<Self>, resolver: Arc<Resolver>) {
        let random = RandomState::new();
        let name = format!(
            "{:x}.{:x}.",
            random.hash_one(resolver.address),
            random.hash_one(0)
        );
        let Ok(name) = Name::from_ascii(&name) else {
            return;
        };
        let query = Query::query(name.clone(), RecordType::HINFO);
        self.under_way
            .lock()
            .push((name.clone(), Arc::clone(&resolver)));
        let mut pause = Duration::from_secs(1);
        loop {
            let asked = exchange::ask(resolver.address, &query, false);
            let answered = timeout(PATIENCE, asked).await;
            if resolver.is_looping() || matches!(answered, Ok(Ok(_))) {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.under_way.lock().retain(|(probe, _)| *probe != name);
    }
}
