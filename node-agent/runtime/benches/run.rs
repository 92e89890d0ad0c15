//! `true` in a container, from nothing to its exit: through our runtime, and through `crun run` of the same bundle
//! where crun is installed. crun gets no system call filter (ours is not part of the bundle) and writes no log.
//!
//! crun refuses hosts with both cgroup versions, so the whole benchmark runs in a mount namespace in which the second
//! one is covered.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;

use criterion::{Criterion, criterion_group};
use gantry_runtime::*;
use support::*;

const COVERED: &str = "GANTRY_BENCH_COVERED";

fn run(criterion: &mut Criterion) {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let node = executor.block_on(async { Node::new() });
    let mut group = criterion.benchmark_group("run true");
    group.sample_size(30);
    let mut attempt = 0;
    executor
        .block_on(node.runtime.start_sandbox(node.sandbox("pod")))
        .unwrap();
    group.bench_function("gantry, in a running pod", |bencher| {
        bencher.iter(|| {
            executor.block_on(async {
                attempt += 1;
                let mut spec = node.container("pod", &["/bin/true"]);
                spec.id.attempt = attempt;
                let id = spec.id.clone();
                assert_eq!(node.run(spec).await.code, 0);
                node.runtime.remove_container(&id).await.unwrap();
            });
        });
    });
    group.bench_function("gantry, a pod of its own", |bencher| {
        bencher.iter(|| {
            executor.block_on(async {
                node.runtime
                    .start_sandbox(node.sandbox("own"))
                    .await
                    .unwrap();
                assert_eq!(
                    node.run(node.container("own", &["/bin/true"])).await.code,
                    0
                );
                node.runtime
                    .remove_sandbox(&PodUid("own".to_owned()))
                    .await
                    .unwrap();
            });
        });
    });
    if Command::new("crun").arg("--version").output().is_ok() {
        executor.block_on(node.run(node.container("pod", &["/bin/true"])));
        let ours = node.config.run_dir.join("pod/c/main-0/config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(ours).unwrap()).unwrap();
        let bundle = node.dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        config["linux"]["cgroupsPath"] = serde_json::json!(node.config.cgroup_root.join("crun"));
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let name = format!("gantry-bench-{}", std::process::id());
        group.bench_function("crun", |bencher| {
            bencher.iter(|| {
                let ran = Command::new("crun")
                    .arg("run")
                    .arg("-b")
                    .arg(&bundle)
                    .arg(&name)
                    .output()
                    .unwrap();
                assert!(
                    ran.status.success(),
                    "{}",
                    String::from_utf8_lossy(&ran.stderr)
                );
            });
        });
    } else {
        eprintln!("crun is not installed: nothing to compare with");
    }
    group.finish();
    executor
        .block_on(node.runtime.remove_sandbox(&PodUid("pod".to_owned())))
        .unwrap();
}

criterion_group!(benches, run);

fn main() {
    if std::env::var_os(COVERED).is_none() {
        let script = r#"if [ -d /sys/fs/cgroup/unified ]; then mount -t tmpfs none /sys/fs/cgroup/unified; fi; exec "$@""#;
        let status = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args().skip(1))
            .env(COVERED, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
