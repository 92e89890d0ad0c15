//! `gantry-bench-store [puts|large]`: the store beside etcd, both driven by the same clients in the same run.
//!
//! `puts` prints writes per second and latencies at several numbers of clients, on one member and on three, and the
//! ratio. `large` prints how long a member takes to serve again with 200,000 objects, and what handing those to a new
//! member costs the writers.
//!
//! Gantry's members are processes of this program, each with a store on disk behind the same small gRPC service that
//! etcd offers; neither side uses TLS. What no Kubernetes has is measured too: the store's own API, which servers call in
//! their own process, where others ask etcd over the network. Environment: `BENCH_DIR` (where the data goes, by default the current directory),
//! `BENCH_SECONDS` (per figure), `BENCH_ROUNDS`.

mod cluster;
mod large;
mod load;
mod member;
mod puts;
mod transport;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod rpc {
    pub mod bench {
        tonic::include_proto!("gantry.bench.v1");
    }
    pub mod kv {
        tonic::include_proto!("etcdserverpb");
    }
}

/// What memory is to `statfs`.
const TMPFS: i64 = 0x0102_1994;

/// How and where to measure.
#[derive(Clone, Debug)]
struct Plan {
    directory: PathBuf,
    measured: Duration,
    rounds: usize,
}

impl Plan {
    fn from_environment() -> Result<Self> {
        let directory: PathBuf = setting("BENCH_DIR", PathBuf::from("."))?;
        let filesystem = rustix::fs::statfs(&directory)
            .with_context(|| format!("looking at {}", directory.display()))?;
        let kind = filesystem.f_type as i64;
        ensure!(
            kind != TMPFS,
            "{} is memory, which needs no syncs: set BENCH_DIR to a directory on a disk",
            directory.display()
        );
        Ok(Self {
            directory,
            measured: Duration::from_secs(setting("BENCH_SECONDS", 5)?),
            rounds: setting("BENCH_ROUNDS", 1)?,
        })
    }
}

fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => match text.parse() {
            Ok(value) => Ok(value),
            Err(_) => bail!("{name}={text} cannot be used: unset it or give a number or a path"),
        },
        Err(_) => Ok(default),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [member::COMMAND, own] => member::serve(&member::MemberConfig::parse(own)?).await,
        ["puts"] => puts::run(&Plan::from_environment()?).await,
        ["large"] => large::run(&Plan::from_environment()?).await,
        [] => {
            let plan = Plan::from_environment()?;
            puts::run(&plan).await?;
            large::run(&plan).await
        }
        _ => bail!("usage: gantry-bench-store [puts|large]"),
    }
}
