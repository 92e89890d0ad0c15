//! What the bytes of nodes meet, for the fuzzer; no interface of the crate.

use std::sync::Arc;

use gantry_rpc::node::agent_message::Message;
use gantry_usage::PodName;
use k8s_openapi::api::core::v1 as core;

use crate::addresses::addresses;
use crate::restrictions::{check_labels, check_pod_addresses, keep_own_addresses};
use crate::said::{self, NodeName, PodRef};

/// A message of a node: everything that is done to it before anything is looked up for it.
pub fn node_message(message: Message) {
    match message {
        Message::Hello(hello) => {
            if let (Ok(name), Ok(node)) =
                (NodeName::new(hello.node_name.clone()), said::node(&hello))
            {
                drop(check_labels(name.as_str(), &node));
                let status = core::PodStatus {
                    pod_ip: Some("10.0.0.1".to_owned()),
                    ..core::PodStatus::default()
                };
                drop(check_pod_addresses(false, &status, &node));
            }
        }
        Message::PodStatuses(statuses) => {
            for status in statuses.statuses {
                let read =
                    said::pod_status(&status).and_then(|(_, status)| said::read_pod_status(status));
                if let Ok(status) = read {
                    drop(check_pod_addresses(true, &status, &core::Node::default()));
                }
            }
        }
        Message::PodTerminated(pod) => drop(said::pod_terminated(pod)),
        Message::Event(event) => drop(said::event(&event)),
        Message::NodeStatus(status) => {
            if let Ok(mut status) = said::node_status(&status) {
                drop(keep_own_addresses("a", &mut status));
                drop(addresses(Some(&status)));
            }
        }
        Message::Wake(wake) => drop(said::wake(wake)),
        Message::Usage(usage) => {
            drop(said::usage::node(&usage));
            drop(said::usage::held(usage.held));
            for said in usage.pods {
                if let Ok(pod) = said::usage::pod_of(&said) {
                    drop(said::usage::pod(said, pod_name(&pod)));
                }
            }
        }
        Message::Scraped(scraped) => {
            drop(said::scraped::check_pods(scraped.pods.len()));
            for said in scraped.pods {
                if let Ok(pod) = said::scraped::pod_of(&said) {
                    drop(said::scraped::pod(said, pod_name(&pod)));
                }
            }
        }
        Message::Heartbeat(_) | Message::ServicesProgrammed(_) | Message::AwaitServices(_) => {}
    }
}

fn pod_name(pod: &PodRef) -> Arc<PodName> {
    Arc::new(PodName {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        uid: pod.uid().to_owned(),
    })
}
