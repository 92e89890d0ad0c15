//! Which addresses services send new connections to, and up to which revision this node's rules follow them.
//!
//! A pod that is to end asks when its address is [`withdrawn`](Routed::withdrawn): from then on, the rules of every
//! node that has programmed the revision it is told send nothing new to it.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;

use crate::services;

/// Shared by what receives slices, what programs rules, and pods that end.
#[derive(Debug)]
pub(crate) struct Routed {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many endpoints of slices offer an address as ready.
    offered: HashMap<IpAddr, usize>,
    /// Of the last Service or EndpointSlice that was received.
    received: u64,
    /// Everything up to here is in this node's rules.
    programmed: u64,
    /// A server is sending everything anew: which revision the slices are of is not known until it has ended.
    receiving: bool,
}

impl Default for Routed {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
        }
    }
}

impl Routed {
    /// Resolves when no slice that this node knows offers the address as ready, with the revision of the newest
    /// Service or EndpointSlice known then: the rules of a node that has programmed this revision do not choose it.
    pub(crate) async fn withdrawn(&self, address: IpAddr) -> u64 {
        let mut state = self.state.subscribe();
        let withdrawn = |state: &State| !state.receiving && !state.offered.contains_key(&address);
        // The sender is ours: it cannot be gone.
        state
            .wait_for(withdrawn)
            .await
            .map_or(0, |state| state.received)
    }

    /// Resolves when everything up to the revision is in this node's rules.
    pub(crate) async fn programmed(&self, revision: u64) {
        let mut state = self.state.subscribe();
        state
            .wait_for(|state| state.programmed >= revision)
            .await
            .ok();
    }

    /// A slice was replaced; `None` for one that was not there before or is not any more.
    pub(crate) fn slice(&self, before: Option<&EndpointSlice>, after: Option<&EndpointSlice>) {
        self.state.send_modify(|state| {
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

    /// A Service or EndpointSlice of this revision was received, and all before it.
    pub(crate) fn received(&self, revision: u64) {
        self.state
            .send_modify(|state| state.received = state.received.max(revision));
    }

    /// Everything is about to be received anew, or has been.
    pub(crate) fn receiving(&self, receiving: bool) {
        self.state.send_modify(|state| state.receiving = receiving);
    }

    /// Everything up to the revision is in this node's rules.
    pub(crate) fn set_programmed(&self, revision: u64) {
        self.state
            .send_modify(|state| state.programmed = state.programmed.max(revision));
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
        let routed = Routed::default();
        let (address, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let (ready, leaving) = (slice("10.0.0.1", true), slice("10.0.0.1", false));
        let now = |address| routed.withdrawn(address).now_or_never();
        routed.slice(None, Some(&ready));
        routed.slice(None, Some(&ready));
        routed.received(7);
        assert_eq!((now(address), now(other)), (None, Some(7)));
        routed.slice(Some(&ready), Some(&leaving));
        routed.received(8);
        assert_eq!(now(address), None, "another slice offers it");
        let mut waiting = Box::pin(routed.withdrawn(address));
        assert_eq!((&mut waiting).now_or_never(), None);
        routed.slice(Some(&ready), None);
        routed.received(9);
        assert_eq!(waiting.now_or_never(), Some(9));
        routed.receiving(true);
        assert_eq!(now(address), None, "not while everything is sent anew");
        routed.received(12);
        routed.receiving(false);
        assert_eq!(now(address), Some(12));
        routed.set_programmed(9);
        assert_eq!(routed.programmed(9).now_or_never(), Some(()));
        assert_eq!(routed.programmed(10).now_or_never(), None);
    }
}
