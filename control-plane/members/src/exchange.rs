//! Single requests between servers, each in its own name: it has looked at who asked it.

use std::net::SocketAddr;

use anyhow::Result;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use gantry_base::status::StatusError;
use gantry_store::Store;
use http::{Method, StatusCode};
use http_body_util::Full;
use rustls::ClientConfig;

use crate::administration::refuse;
use crate::peers::Peers;

/// How a server asks the others.
#[derive(Clone)]
pub struct Exchange {
    /// Who leads.
    pub store: Store,
    /// Where the others are.
    pub peers: Peers,
}

impl Exchange {
    /// Where the leader listens, when that is another server.
    pub fn elsewhere(&self) -> Option<SocketAddr> {
        let leadership = self.store.leadership();
        let state = leadership.borrow();
        match state.leader {
            Some(leader) if !state.is_leader => self.peers.address_of(leader),
            _ => None,
        }
    }

    /// Sends a request to a server.
    pub async fn send(
        &self,
        server: SocketAddr,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes)> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.into()))?;
        let tls = ClientConfig::clone(&self.peers.tls());
        Ok(gantry_tls::request(server, tls, request).await?)
    }

    /// Passes a request on to the leader, and its answer back.
    pub async fn ask(
        &self,
        leader: SocketAddr,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Response {
        match self.send(leader, method, path, body).await {
            Ok((status, body)) => (status, body).into_response(),
            Err(error) => refuse(&StatusError::service_unavailable(format!(
                "the leader cannot be asked: {error:#}"
            ))),
        }
    }
}
