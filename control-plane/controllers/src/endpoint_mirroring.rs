//! Endpoints that a user keeps for a service without selector, told again as slices: what routes traffic reads slices.

mod plan;

use std::sync::Arc;

use gantry_informer::{Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use self::plan::{MANAGER, PER_SUBSET, is_mirrored};
use crate::context::Context;
use crate::endpoint_slice::carry_out;
use crate::endpoint_slice::plan::{Plan, manager};
use crate::error::Result;
use crate::selection::{service_of, slices_of};

pub(crate) const COMPONENT: &str = "endpoint-slice-mirroring-controller";

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, recorder: Recorder) {
    let queue = Arc::new(Queue::<Key>::default());
    // The three have one name: a service's.
    context.services.subscribe(Box::new({
        let (queue, endpoints) = (queue.clone(), context.endpoints.clone());
        move |change| {
            let selects = change.new.map(|service| has_selector(service));
            if change
                .old
                .is_some_and(|old| Some(has_selector(old)) == selects)
            {
                return;
            }
            let key = change.last().map(|service| Key::of(&service.metadata));
            if let Some(key) = key.filter(|key| endpoints.get(key).is_some()) {
                queue.add(key);
            }
        }
    }));
    context.endpoints.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            let states = change.old.into_iter().chain(change.new);
            for endpoints in states.filter(|endpoints| is_mirrored(endpoints)) {
                queue.add(Key::of(&endpoints.metadata));
            }
        }
    }));
    context.slices.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(slice) = change.last()
                && manager(slice) == Some(MANAGER)
                && let Some(service) = service_of(slice)
            {
                queue.add(service);
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("endpoint-mirroring", queue, 8, stop, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        async move { reconcile(&context, &recorder, &key).await }
    })
    .await;
}

fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty())
}

/// The slices that mirror the endpoints of a service.
fn mirrors(context: &Context, key: &Key) -> Vec<Arc<EndpointSlice>> {
    let mut slices = slices_of(&context.slices, key);
    slices.retain(|slice| {
        manager(slice) == Some(MANAGER) && slice.metadata.deletion_timestamp.is_none()
    });
    slices
}

async fn reconcile(context: &Context, recorder: &Recorder, key: &Key) -> Result<Next> {
    let existing = mirrors(context, key);
    let service = context.services.get(key);
    let bare = service.is_some_and(|service| !has_selector(&service));
    let endpoints = context.endpoints.get(key).filter(|endpoints| {
        bare && is_mirrored(endpoints) && endpoints.metadata.deletion_timestamp.is_none()
    });
    let Some(endpoints) = endpoints else {
        let gone = Plan {
            delete: existing.iter().map(|slice| (**slice).clone()).collect(),
            ..Plan::default()
        };
        return carry_out(context, key, &gone).await;
    };
    let (plan, skipped) = plan::plan(&endpoints, &existing);
    if skipped > 0 && plan != Plan::default() {
        recorder.warning(
            Reference::to(&*endpoints),
            "TooManyAddressesToMirror",
            format!(
                "A max of {PER_SUBSET} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            ),
        );
    }
    carry_out(context, key, &plan).await
}
