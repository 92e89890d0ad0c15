//! The clients: the same for both systems.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::rpc::kv::PutRequest;
use crate::rpc::kv::kv_client::KvClient;

/// What a measurement said: latencies in order, over this long.
#[derive(Default)]
pub(crate) struct Latencies {
    sorted: Vec<Duration>,
    over: Duration,
}

impl Latencies {
    pub(crate) fn new(mut latencies: Vec<Duration>, over: Duration) -> Self {
        latencies.sort_unstable();
        Self {
            sorted: latencies,
            over,
        }
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.over.as_secs_f64().max(f64::EPSILON)
    }

    /// In milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.sorted.len() * percent / 100).min(self.sorted.len().saturating_sub(1));
        self.sorted
            .get(at)
            .copied()
            .unwrap_or_default()
            .as_secs_f64()
            * 1e3
    }
}

fn value(bytes: usize) -> Bytes {
    // Not compressible away, not worth generating anew.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(byte).collect()
}

/// What is written, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Keys, which are overwritten again and again.
    pub(crate) keys: usize,
    /// Bytes of a value.
    pub(crate) bytes: usize,
    /// Answers count from then on.
    pub(crate) warm_up: Duration,
    /// So long.
    pub(crate) measured: Duration,
}

/// As [`closed_loop`], by gRPC. Requests go to all connections in turn, so that every client asks every member.
pub(crate) async fn over_grpc(
    connections: &[Channel],
    clients: usize,
    shape: Shape,
) -> Result<Latencies> {
    let connections: Arc<[_]> = connections.iter().cloned().map(KvClient::new).collect();
    let latencies = closed_loop(0..clients, shape, move |turn, key, value| {
        let mut connection = connections[turn % connections.len()].clone();
        async move {
            let put = PutRequest {
                key: key.into(),
                value,
            };
            connection.put(put).await.context("a put failed")?;
            Ok(())
        }
    });
    Ok(Latencies::new(latencies.await?, shape.measured))
}

/// Overwrites keys, as clients of these numbers, each of which waits for its answer. `put` is given a number to take turns
/// by, the key and the value. Tells how long those took that were answered after the warm-up and before the end.
pub(crate) async fn closed_loop<F>(
    clients: impl Iterator<Item = usize>,
    shape: Shape,
    put: impl Fn(usize, String, Bytes) -> F + Clone + Send + 'static,
) -> Result<Vec<Duration>>
where
    F: Future<Output = Result<()>> + Send,
{
    let value = value(shape.bytes);
    let from = Instant::now() + shape.warm_up;
    let until = from + shape.measured;
    let mut tasks = JoinSet::new();
    for client in clients {
        let (value, put) = (value.clone(), put.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            for number in 0.. {
                let key = format!("objects/{:08}", (client * 7_919 + number * 31) % shape.keys);
                let sent = Instant::now();
                put(client + number, key, value.clone()).await?;
                let now = Instant::now();
                if now >= until {
                    break;
                }
                if now >= from {
                    latencies.push(now - sent);
                }
            }
            Ok::<_, anyhow::Error>(latencies)
        });
    }
    let mut all = Vec::new();
    while let Some(latencies) = tasks.join_next().await {
        all.extend(latencies??);
    }
    Ok(all)
}

/// Creates `count` objects, with as many clients as fill the store fastest.
pub(crate) async fn fill(connections: &[Channel], count: usize, bytes: usize) -> Result<()> {
    const CLIENTS: usize = 128;
    let value = value(bytes);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let mut connection = KvClient::new(connections[client % connections.len()].clone());
        let (value, next) = (value.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(());
                }
                let put = PutRequest {
                    key: format!("objects/{number:08}").into(),
                    value: value.clone(),
                };
                connection.put(put).await.context("a put failed")?;
            }
        });
    }
    while let Some(filled) = tasks.join_next().await {
        filled??;
    }
    Ok(())
}

/// Starts `rate` puts per second, whether or not earlier ones are answered, until `stop` says so. Latencies count from
/// when a put was due.
pub(crate) async fn steady(
    connections: Vec<Channel>,
    rate: u32,
    keys: usize,
    bytes: usize,
    stop: Arc<AtomicBool>,
) -> Result<Latencies> {
    let value = value(bytes);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    let mut number = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let due = begun + Duration::from_secs(1) / rate * number as u32;
        tokio::time::sleep_until(due.into()).await;
        let mut connection = KvClient::new(connections[number % connections.len()].clone());
        let put = PutRequest {
            key: format!("objects/{:08}", number * 31 % keys).into(),
            value: value.clone(),
        };
        tasks.spawn(async move {
            connection.put(put).await.context("a put failed")?;
            Ok::<_, anyhow::Error>(due.elapsed())
        });
        number += 1;
    }
    let over = begun.elapsed();
    let mut all = Vec::new();
    while let Some(latency) = tasks.join_next().await {
        all.push(latency??);
    }
    Ok(Latencies::new(all, over))
}
