//! Tokens of pods, for their nodes: so many of them in a time, and only those that a node's own pods name.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gantry_apiserver::ApiServer;
use gantry_apiserver::service_accounts;
use gantry_base::status::StatusError;
use gantry_rpc::node::{PodTokenAnswer, PodTokenRequest};
use parking_lot::Mutex;
use tonic::Status;

use super::reports::{Allowance, Rate};

/// Tokens of one node: one for each pod that it can have, after a restart of it, and many more than are due at once then.
const TOKENS: Rate = Rate {
    burst: 1024,
    refill: 20,
    per: Duration::from_secs(1),
};
/// Nodes that are remembered before those are forgotten that have asked for nothing of late.
const REMEMBERED: usize = 256;

/// How many tokens each node may still have.
#[derive(Default)]
pub(crate) struct TokenAllowances(Mutex<Buckets>);

/// A token bucket for each node.
#[derive(Default)]
struct Buckets {
    nodes: BTreeMap<String, Allowance>,
    /// So many nodes are looked through for those that may be forgotten.
    full: usize,
}

impl TokenAllowances {
    fn take(&self, node: &str, now: Instant) -> bool {
        let mut buckets = self.0.lock();
        if buckets.nodes.len() >= buckets.full.max(REMEMBERED) {
            buckets
                .nodes
                .retain(|_, allowance| !allowance.is_whole(now));
            // Looking through them costs each of those that come in between the same, however many there are.
            buckets.full = 2 * buckets.nodes.len();
        }
        let allowance = buckets.nodes.entry(node.to_owned());
        allowance
            .or_insert_with(|| Allowance::new(TOKENS))
            .take(now)
    }
}

/// Answers a node.
pub(super) async fn answer(
    api: &ApiServer,
    allowances: &TokenAllowances,
    node: &str,
    asked: PodTokenRequest,
) -> Result<PodTokenAnswer, Status> {
    if !allowances.take(node, Instant::now()) {
        return Err(Status::resource_exhausted(format!(
            "node \"{node}\" has asked for too many tokens: one more is made every {} ms",
            TOKENS.per.as_millis() / u128::from(TOKENS.refill)
        )));
    }
    let asked = service_accounts::PodTokenRequest {
        node: node.to_owned(),
        namespace: asked.namespace,
        pod: asked.pod,
        uid: asked.pod_uid,
        audience: asked.audience,
        expiration_seconds: asked.expiration_seconds,
    };
    let issued = api.pod_token(&asked).await;
    let issued = issued.map_err(|error| refused(&error))?;
    Ok(PodTokenAnswer {
        token: issued.token,
        valid_seconds: issued.life,
    })
}

fn refused(error: &StatusError) -> Status {
    let message = error.message();
    match error.code() {
        404 => Status::not_found(message),
        403 => Status::permission_denied(message),
        _ => Status::unavailable(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_has_so_many_and_others_have_theirs() {
        let allowances = TokenAllowances::default();
        let now = Instant::now();
        let taken = (0..10_000).filter(|_| allowances.take("one", now)).count();
        assert_eq!(taken, TOKENS.burst as usize);
        assert!(allowances.take("two", now));
        let later = now + Duration::from_secs(2);
        assert!(allowances.take("one", later), "they come back");
        for number in 0..REMEMBERED {
            allowances.take(&number.to_string(), later);
        }
        let much_later = now + Duration::from_secs(3600);
        for number in 0..3 * REMEMBERED {
            allowances.take(&format!("later-{number}"), much_later);
        }
        let buckets = allowances.0.lock();
        assert!(
            !buckets.nodes.contains_key("0"),
            "nobody is remembered in vain"
        );
    }
}
