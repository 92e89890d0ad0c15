//! What nodes, servers, registries, resolvers, containers and sources of metrics send, and what is around a request's body.

use std::sync::LazyLock;
use std::time::Duration;

use gantry_authority::pki::Authority;
use gantry_rpc::node::{AgentMessage, PodTokenRequest, ServerMessage, StreamFrame};
use prost::Message;

pub(crate) fn uri(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    gantry_apiserver::fuzzing::uri(&text);
    gantry_apiserver::fuzzing::accept(bytes);
    gantry_apiserver::fuzzing::token(&text);
}

pub(crate) fn spdy(bytes: &[u8]) {
    gantry_apiserver::fuzzing::spdy(bytes);
}

pub(crate) fn proxied_page(bytes: &[u8]) {
    gantry_apiserver::fuzzing::proxied_page(bytes);
}

pub(crate) fn node_message(bytes: &[u8]) {
    if let Ok(AgentMessage {
        message: Some(message),
    }) = AgentMessage::decode(bytes)
    {
        gantry_nodes::fuzzing::node_message(message);
    }
    drop(PodTokenRequest::decode(bytes));
    drop(ServerMessage::decode(bytes));
    drop(StreamFrame::decode(bytes));
}

pub(crate) fn join_request(bytes: &[u8]) {
    gantry_authority::fuzzing::granting_request(bytes);
    gantry_server::fuzzing::join_request(bytes);
}

pub(crate) fn raft_packet(bytes: &[u8]) {
    gantry_store::fuzzing::packet(bytes);
}

pub(crate) fn certificate_request(bytes: &[u8]) {
    static AUTHORITY: LazyLock<Option<Authority>> =
        LazyLock::new(|| Authority::create(Duration::from_secs(3600)).ok());
    if let Some(authority) = &*AUTHORITY {
        let text = String::from_utf8_lossy(bytes);
        gantry_authority::fuzzing::certificate_request(authority, &text);
    }
}

pub(crate) fn image_manifest(bytes: &[u8]) {
    gantry_image::fuzzing::manifest(bytes);
    gantry_image::fuzzing::config(bytes);
    drop(gantry_image::normalise(&String::from_utf8_lossy(bytes)));
}

pub(crate) fn registry_challenge(bytes: &[u8]) {
    gantry_image::fuzzing::challenge(&String::from_utf8_lossy(bytes));
}

/// A layer in a directory that is inside another one: nothing beside it may appear.
pub(crate) fn image_layer(bytes: &[u8]) {
    let Ok(around) = tempfile::tempdir() else {
        return;
    };
    let root = around.path().join("root");
    if std::fs::create_dir(&root).is_err() {
        return;
    }
    drop(gantry_image::fuzzing::layer(bytes, &root));
    let beside = std::fs::read_dir(around.path()).map_or(0, Iterator::count);
    assert_eq!(beside, 1, "an entry of the layer is outside of it");
}

pub(crate) fn logged_packet(bytes: &[u8]) {
    gantry_network::fuzzing::logged_packet(bytes);
}

pub(crate) fn dns(bytes: &[u8]) {
    drop(gantry_dns::fuzzing::packet(bytes));
}

pub(crate) fn log_line(bytes: &[u8]) {
    gantry_pods::logs::fuzz(bytes);
}

pub(crate) fn exposition(bytes: &[u8]) {
    gantry_agent::fuzzing::exposition(bytes);
}

pub(crate) fn external_answer(bytes: &[u8]) {
    gantry_external::fuzzing::answer(bytes);
}
