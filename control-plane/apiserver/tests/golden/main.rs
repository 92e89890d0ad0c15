//! The contract with Kubernetes 1.36: recorded requests, replayed through the real HTTPS stack, and the recorded
//! answers, compared with ours.
//!
//! Each file under an area's folder is one case (its form: [`case`]). Each case gets a cluster of its own
//! ([`cluster`]): an API server over an ephemeral store, controllers, and, where it needs them, scheduler and nodes.
//! So cases cannot disturb each other, whatever runs beside them.
//!
//! `not-passing.txt` lists the cases that do not pass yet. It only shrinks: a case that fails and is not listed fails
//! the test, and so does one that is listed and passes.
//!
//! - `UPDATE_GOLDEN=1` writes the list anew;
//! - `GOLDEN=area/name` (or the beginning of it) runs those cases alone and prints what differs.

mod case;
mod client;
mod cluster;
mod compare;
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use tokio::time::Instant;

use case::Case;
use cluster::Setting;

/// Cases under way at once: most of their time is spent waiting for something to come about.
const CONCURRENCY: usize = 8;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// All cases, in the order of their names.
fn load() -> Vec<Case> {
    let mut cases = Vec::new();
    for area in fs::read_dir(root()).expect("the corpus") {
        let area = area.expect("a folder").path();
        if !area.is_dir() || area.ends_with("fixtures") {
            continue;
        }
        for file in fs::read_dir(&area).expect("an area") {
            let path = file.expect("a file").path();
            let text = fs::read_to_string(&path).expect("a case is UTF-8");
            let case: Case = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            cases.push(case);
        }
    }
    cases.sort_by_key(Case::id);
    cases
}

fn listed() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("not-passing.txt")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Runs cases and returns what is wrong with each that does not pass.
async fn run(cases: &[Case]) -> BTreeMap<String, Vec<String>> {
    let setting = Arc::new(Setting::new());
    futures::stream::iter(cases)
        .map(|case| {
            let setting = setting.clone();
            async move {
                let cluster = setting.cluster(case).await;
                let wrong = replay::run(case, &cluster).await;
                cluster.stop().await;
                (case.id(), wrong)
            }
        })
        .buffer_unordered(CONCURRENCY)
        .filter(|(_, wrong)| std::future::ready(!wrong.is_empty()))
        .collect()
        .await
}

fn print_counts(cases: &[Case], failed: &BTreeMap<String, Vec<String>>) {
    let mut areas: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for case in cases {
        let (passed, all) = areas.entry(&case.group).or_default();
        *all += 1;
        *passed += usize::from(!failed.contains_key(&case.id()));
    }
    for (area, (passed, all)) in &areas {
        println!("{area} {passed}/{all}");
    }
    println!("all {}/{}", cases.len() - failed.len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_cases_answer_as_kubernetes_does() {
    let started = Instant::now();
    let only = std::env::var("GOLDEN").ok();
    let mut cases = load();
    assert!(cases.len() > 400, "the corpus lost cases");
    if let Some(only) = &only {
        cases.retain(|case| case.id().starts_with(only.as_str()));
        assert!(!cases.is_empty(), "no case is called {only}");
    }
    let failed = run(&cases).await;
    print_counts(&cases, &failed);
    println!("{:.1} s", started.elapsed().as_secs_f32());
    if only.is_some() {
        for (id, wrong) in &failed {
            println!("{id}\n  {}", wrong.join("\n  "));
        }
        assert!(failed.is_empty(), "{} cases differ", failed.len());
        return;
    }
    let failed_ids: BTreeSet<String> = failed.keys().cloned().collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let list: String = failed_ids.iter().map(|id| format!("{id}\n")).collect();
        fs::write(root().join("not-passing.txt"), list).expect("the list is written");
        return;
    }
    let listed = listed();
    for id in failed_ids.difference(&listed) {
        println!(
            "fails, and is not listed: {id}\n  {}",
            failed[id].join("\n  ")
        );
    }
    for id in listed.difference(&failed_ids) {
        println!("is listed, and passes (or is gone): {id}: take it off the list");
    }
    assert!(
        failed_ids == listed,
        "the list of cases that do not pass is not true; see above"
    );
}
