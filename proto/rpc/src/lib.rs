//! The contracts between Gantry's processes: `node.proto` (agent and server), `raft.proto` (server and server),
//! `shim.proto` (agent and pod shim) and `image.proto` (CLI and agent), and the tonic/prost code generated from them.
//!
//! Depends on nothing above it and must never hold logic: a message's meaning is documented in its `.proto` file.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// CLI and agent: the node's images.
pub mod image {
    tonic::include_proto!("gantry.image.v1");
}

/// Agent and server: the node link.
pub mod node {
    tonic::include_proto!("gantry.node.v1");
}

/// Server and server: Raft.
pub mod raft {
    tonic::include_proto!("gantry.raft.v1");
}

/// Agent and pod shim.
pub mod shim {
    tonic::include_proto!("gantry.shim.v1");
}
