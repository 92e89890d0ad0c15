//! Which addresses services send new connections to.
//!
//! A pod that is to end asks when its address is [`withdrawn`](ReadyEndpoints::withdrawn): from then on, the rules of every
//! node that has programmed the revision it is told send nothing new to it.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;

use crate::services;

/// The ready endpoints of all EndpointSlices, by their addresses. Shared by what receives slices, what programs rules, and pods
/// that end.
#[derive(Debug)]
pub(crate) struct ReadyEndpoints {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many endpoints of slices offer an address as ready.
    offered: HashMap<IpAddr, usize>,
    /// Of the newest EndpointSlice that was received.
    received: u64,
    /// A server is sending everything anew: which revision the slices are of is not known until it has ended.
    receiving: bool,
}

impl Default for ReadyEndpoints {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
        }
    }
}

impl ReadyEndpoints {
    /// Resolves when no slice that this node knows offers one of the addresses as ready, with the revision of the newest
    /// EndpointSlice known then: the rules of a node that has programmed this revision do not choose them.
    pub(crate) async fn withdrawn(&self, addresses: &[IpAddr]) -> u64 {
        let mut state = self.state.subscribe();
        let withdrawn = |state: &State| {
            let offered = |address| state.offered.contains_key(address);
            !state.receiving && !addresses.iter().any(offered)
        };
        // The sender is ours: it cannot be gone.
        state
            .wait_for(withdrawn)
            .await
            .map_or(0, |state| state.received)
    }

    /// A slice was replaced at a revision; `None` for one that was not there before or is not any more. Who waits sees
    /// both or neither: an address that is gone by an older revision may be in the rules of a node that has programmed it.
    pub(crate) fn slice(
        &self,
        before: Option<&EndpointSlice>,
        after: Option<&EndpointSlice>,
        revision: u64,
    ) {
        self.state.send_modify(|state| {
            state.received = state.received.max(revision);
            for address in after.into_iter().flat_map(services::offered) {
                *state.offered.entry(address).or_default() += 1;
            }
            for address in before.into_iter().flat_map(services::offered) {
                if let Some(count) = state.offered.get_mut(&address) {
                    *count -= 1;
                    if *count == 0 {
                        state.offered.remove(&address);
                    }
                }
            }
        });
    }

    /// Everything is about to be received anew, or has been.
    pub(crate) fn receiving(&self, receiving: bool) {
        self.state.send_modify(|state| state.receiving = receiving);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use futures::FutureExt as _;
    use serde_json::json;

    use super::*;

    pub(crate) fn slice(address: &str, ready: bool) -> EndpointSlice {
        let value = json!({
            "metadata": {"name": "web-x", "namespace": "shop"}, "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}]
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_address_is_withdrawn_when_no_slice_offers_it_and_by_the_revision_of_then() {
        let ready_endpoints = ReadyEndpoints::default();
        let (address, other) = (["10.0.0.1".parse().unwrap()], ["10.0.0.2".parse().unwrap()]);
        let (ready, leaving) = (slice("10.0.0.1", true), slice("10.0.0.1", false));
        let now = |addresses: &[IpAddr]| ready_endpoints.withdrawn(addresses).now_or_never();
        ready_endpoints.slice(None, Some(&ready), 6);
        ready_endpoints.slice(None, Some(&ready), 7);
        assert_eq!((now(&address), now(&other)), (None, Some(7)));
        assert_eq!(now(&[other[0], address[0]]), None, "of a pod with two");
        ready_endpoints.slice(Some(&ready), Some(&leaving), 8);
        assert_eq!(now(&address), None, "another slice offers it");
        let mut waiting = Box::pin(ready_endpoints.withdrawn(&address));
        assert_eq!((&mut waiting).now_or_never(), None);
        ready_endpoints.slice(Some(&ready), None, 9);
        assert_eq!(waiting.now_or_never(), Some(9));
        ready_endpoints.receiving(true);
        assert_eq!(now(&address), None, "what is known may be old");
        ready_endpoints.slice(None, Some(&leaving), 12);
        ready_endpoints.receiving(false);
        assert_eq!(now(&address), Some(12));
    }
}
