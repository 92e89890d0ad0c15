//! One member of Gantry's store, as a process of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use gantry_store::{
    Index, Key, MemberRole, Operation, ProposeError, Store, StoreConfig, Table, Transaction,
};
use serde::{Deserialize, Serialize};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::load::{self, Shape};
use crate::rpc::bench::member_server::{Member, MemberServer};
use crate::rpc::bench::{Answered, Newcomer, Nothing, Orders, Packets, Standing};
use crate::rpc::kv::kv_server::{Kv, KvServer};
use crate::rpc::kv::{PutRequest, PutResponse, ResponseHeader};
use crate::transport::{Lanes, MESSAGE};

/// The program's first argument; the second says who it is.
pub(crate) const COMMAND: &str = "member";

/// Who a member is and where everybody listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemberConfig {
    pub(crate) id: u64,
    pub(crate) directory: PathBuf,
    pub(crate) members: BTreeMap<u64, SocketAddr>,
    /// Whether it waits to be admitted, instead of founding the cluster with the others.
    pub(crate) joins: bool,
}

impl MemberConfig {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("reading who the member is")
    }
}

/// Runs until it is killed.
pub(crate) async fn serve(own: &MemberConfig) -> Result<()> {
    let address = own.members.get(&own.id).context("a member's own address")?;
    let lanes = Lanes::new(own.members.clone());
    let config = StoreConfig {
        data_dir: own.directory.clone(),
        member_id: own.id,
        voters: match own.joins {
            true => Vec::new(),
            false => own.members.keys().copied().collect(),
        },
        ..StoreConfig::default()
    };
    let store = Store::open(config, Arc::new(lanes.clone())).await?;
    lanes.attach(store.clone());
    let service = Service {
        store,
        lanes,
        table: Table("bench".into()),
        no_namespace: "".into(),
    };
    let members = MemberServer::new(service.clone()).max_decoding_message_size(MESSAGE);
    Server::builder()
        .tcp_nodelay(true)
        .add_service(KvServer::new(service))
        .add_service(members)
        .serve(*address)
        .await
        .context("serving")
}

#[derive(Clone)]
struct Service {
    store: Store,
    lanes: Lanes,
    table: Table,
    no_namespace: Arc<str>,
}

impl Service {
    fn transaction(&self, name: &str, value: Bytes) -> Transaction {
        let put = Operation::Put {
            key: Key {
                table: self.table.clone(),
                namespace: self.no_namespace.clone(),
                name: name.into(),
            },
            value,
            index: Index::default(),
        };
        Transaction {
            guards: Vec::new(),
            operations: vec![put],
        }
    }
}

fn refusal(error: ProposeError) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl Kv for Service {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let PutRequest { key, value } = request.into_inner();
        let name = std::str::from_utf8(&key)
            .map_err(|_| Status::invalid_argument("the key is not UTF-8"))?;
        let transaction = self.transaction(name, value);
        let revision = self.store.propose(transaction).await.map_err(refusal)?;
        let header = ResponseHeader {
            revision: revision.0 as i64,
            ..ResponseHeader::default()
        };
        Ok(Response::new(PutResponse {
            header: Some(header),
        }))
    }
}

#[tonic::async_trait]
impl Member for Service {
    async fn deliver(
        &self,
        request: Request<Streaming<Packets>>,
    ) -> Result<Response<Nothing>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            for packet in &batch.packets {
                self.store
                    .deliver(packet)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
            }
        }
        Ok(Response::new(Nothing {}))
    }

    async fn admit(&self, request: Request<Newcomer>) -> Result<Response<Nothing>, Status> {
        let Newcomer { id, address } = request.into_inner();
        let address = address
            .parse()
            .map_err(|_| Status::invalid_argument("the address is none"))?;
        self.lanes.learn(id, address);
        self.store
            .add_learner(id)
            .await
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(Nothing {}))
    }

    async fn drive(&self, request: Request<Orders>) -> Result<Response<Answered>, Status> {
        let orders = request.into_inner();
        let shape = Shape {
            keys: orders.keys as usize,
            bytes: orders.value_bytes as usize,
            warm_up: Duration::from_millis(orders.warm_up_millis),
            measured: Duration::from_millis(orders.measured_millis),
        };
        let clients = (0..orders.clients).map(|at| (orders.first + at * orders.step) as usize);
        let service = self.clone();
        let latencies = load::closed_loop(clients, shape, move |_, key, value| {
            let (store, transaction) = (service.store.clone(), service.transaction(&key, value));
            async move {
                store.propose(transaction).await?;
                Ok(())
            }
        });
        let latencies = latencies.await;
        let latencies = latencies.map_err(|error| Status::unavailable(error.to_string()))?;
        let micros = |latency: &Duration| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        Ok(Response::new(Answered {
            latencies: latencies.iter().map(micros).collect(),
        }))
    }

    async fn report(&self, _: Request<Nothing>) -> Result<Response<Standing>, Status> {
        let members = self.store.members().await;
        let voters = members
            .iter()
            .filter(|member| member.role == MemberRole::Voter)
            .map(|member| member.id)
            .collect();
        Ok(Response::new(Standing {
            leads: self.store.leadership().borrow().is_leader,
            voters,
            applied: self.store.fingerprint().0,
        }))
    }
}
