//! Runs the steps of a case.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::case::{Case, Step};
use super::client::{Client, Variables};
use super::cluster::Cluster;
use super::compare::{Answer, differences, dig};

/// How long a step marked `eventually` is repeated.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// No request takes longer: watches name a shorter time themselves.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a case and returns what is wrong; nothing when it passes.
pub(crate) async fn run(case: &Case, cluster: &Cluster) -> Vec<String> {
    let mut client = cluster.client();
    let mut variables = Variables::new();
    let mut wrong = Vec::new();
    for (number, step) in case.steps.iter().enumerate() {
        // Every case has a cluster of its own: nothing is left for anybody to stumble over.
        let trailing = case.steps[number..].iter().all(|step| step.cleanup);
        if trailing {
            break;
        }
        // The recorder's caches needed this time; here it only keeps the order of timestamps.
        tokio::time::sleep(Duration::from_secs_f64(step.delay_seconds)).await;
        let patience = match step.eventually {
            true => PATIENCE.max(Duration::from_secs(step.timeout_seconds)),
            false => Duration::ZERO,
        };
        let deadline = Instant::now() + patience;
        let found = loop {
            let found = attempt(&mut client, step, &mut variables).await;
            if found.is_empty() || Instant::now() >= deadline {
                break found;
            }
            tokio::time::sleep(PAUSE).await;
        };
        if found.is_empty() || step.cleanup {
            continue;
        }
        let request = &step.request;
        wrong.push(format!(
            "step {number}: {} {}",
            request.method, request.path
        ));
        wrong.extend(found.into_iter().map(|line| format!("  {line}")));
        if step.setup {
            break;
        }
    }
    wrong
}

/// One try of a step.
async fn attempt(client: &mut Client, step: &Step, variables: &mut Variables) -> Vec<String> {
    let sent = client.send(&step.request, variables);
    let raw = match tokio::time::timeout(LIMIT, sent).await {
        Ok(Ok(raw)) => raw,
        Ok(Err(error)) => return vec![error],
        Err(_) => return vec![format!("no answer within {LIMIT:?}")],
    };
    let answer = Answer::from_raw(&raw, step.response.events.is_some());
    let content = answer.content();
    let mut missing = Vec::new();
    for (name, path) in &step.capture {
        let value = content.and_then(|content| dig(content, path));
        let text = match value {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        if text.is_empty() {
            missing.push(format!("nothing to capture at {path}"));
        }
        variables.insert(name.clone(), text);
    }
    if step.cleanup {
        return Vec::new();
    }
    if !step.setup {
        return differences(step, &answer);
    }
    let exists = answer.status == 409 && step.request.method == "POST";
    if answer.status >= 300 && !exists {
        let content = content.map(Value::to_string).unwrap_or_default();
        return vec![format!("setup: status {}: {content}", answer.status)];
    }
    match step.eventually {
        true => missing,
        false => Vec::new(),
    }
}
