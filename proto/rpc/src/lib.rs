//! The contracts between Gantry's processes: `node.proto` (agent and server), `raft.proto` (server and server),
//! `shim.proto` (agent and pod shim) and `image.proto` (CLI and agent), and the tonic/prost code generated from them.
//!
//! Depends on nothing above it and must never hold logic: a message's meaning is documented in its `.proto` file.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// As the generated code refers to it across packages.
mod gantry {
    pub mod image {
        pub mod v1 {
            tonic::include_proto!("gantry.image.v1");
        }
    }
    pub mod node {
        pub mod v1 {
            tonic::include_proto!("gantry.node.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("gantry.raft.v1");
        }
    }
    pub mod shim {
        pub mod v1 {
            tonic::include_proto!("gantry.shim.v1");
        }
    }
}

/// CLI and agent: the node's images.
pub use gantry::image::v1 as image;
/// Agent and server: the node link.
pub use gantry::node::v1 as node;
/// Server and server: Raft, and streams to nodes that another server is linked to.
pub use gantry::raft::v1 as raft;
/// Agent and pod shim.
pub use gantry::shim::v1 as shim;

/// The gRPC metadata of a refused node link that says where the leader listens, `ip:port`.
pub const LEADER_METADATA: &str = "gantry-leader";
