//! The container runtime interface (Kubernetes' CRI), and beside it the interfaces of a pod's network (CNI) and of the
//! cluster's DNS: what pod workers ask of a node, whoever does it.
//!
//! Each part has a trait, the plain types of its questions and answers, an error that is worded for a pod's Events, and an
//! implementation in memory that tests use. The real ones are `gantry-runtime`, `gantry-image`, `gantry-network` and
//! `gantry-dns`, which keep the contract that their tests also hold the fakes to.
//!
//! Depends on no implementation, so that who asks is built without libcontainer, registries or netlink; must never know the
//! API's objects, the node link or the kernel.

pub mod dns;
pub mod image;
pub mod network;
pub mod runtime;

/// Which Service something belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
}

/// An error with its sources, as Events and logs say it.
pub fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
}
