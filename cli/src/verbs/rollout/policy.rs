//! `gantry rollout policy`: what a namespace says of revisions that do not work, for its Deployments that say nothing.

use std::time::Duration;

use anyhow::Result;
use http::Method;
use serde_json::{Map, Value, json};

use crate::client::{Call, Cluster};
use crate::{duration, output};

const AUTO_ROLLBACK: &str = "gantry.dev/auto-rollback";
const ROLLBACK_AFTER: &str = "gantry.dev/rollback-after";
const KEEP_WARM: &str = "gantry.dev/keep-warm";

/// Without an option, what is set is shown.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Policy {
    /// Whether a revision that does not work is taken back
    #[arg(long)]
    auto_rollback: Option<bool>,
    /// How much is too much: container failures, time without progress, or both, e.g. 5, 90s or 5,90s
    #[arg(long, value_parser = budget)]
    rollback_after: Option<String>,
    /// For how long after its success a revision is still taken back, e.g. 2m
    #[arg(long, value_parser = duration::parse)]
    keep_warm: Option<Duration>,
    /// Say nothing any more
    #[arg(long, conflicts_with_all = ["auto_rollback", "rollback_after", "keep_warm"])]
    unset: bool,
}

impl Policy {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let mapping = cluster.mapping("namespaces").await?;
        let path = mapping.path(None, Some(&cluster.namespace));
        let changes = self.changes();
        if changes.is_empty() {
            let namespace = cluster.call(Call::get(&path)).await?;
            return output::print(&output::align(&table(&namespace)));
        }
        let patch = json!({"metadata": {"annotations": changes}});
        let call = Call {
            content_type: "application/merge-patch+json",
            ..Call::send(Method::PATCH, &path, &patch)
        };
        cluster.call(call).await?;
        let what = if self.unset { "unset" } else { "set" };
        output::report(
            mapping,
            &cluster.namespace,
            &format!("rollout policy {what}"),
        )
    }

    /// What to write; null takes an annotation away.
    fn changes(&self) -> Map<String, Value> {
        let seconds = |time: Duration| format!("{}s", time.as_secs());
        let said = [
            (AUTO_ROLLBACK, self.auto_rollback.map(|on| on.to_string())),
            (ROLLBACK_AFTER, self.rollback_after.clone()),
            (KEEP_WARM, self.keep_warm.map(seconds)),
        ];
        said.into_iter()
            .filter(|(_, value)| self.unset || value.is_some())
            .map(|(name, value)| (name.to_owned(), value.map_or(Value::Null, Value::String)))
            .collect()
    }
}

/// As the annotation has it: each part once, times in seconds.
fn budget(text: &str) -> Result<String, String> {
    let wrong = || {
        format!("\"{text}\" is no budget: give a number of failures, a time, or both, e.g. 5,90s")
    };
    let (mut failures, mut time) = (None, None);
    for part in text.split(',').map(str::trim) {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let known = if is_number {
            let number: u32 = part.parse().map_err(|_| wrong())?;
            failures.replace(number).is_some() || number == 0
        } else {
            let length = duration::parse(part).map_err(|_| wrong())?;
            time.replace(length).is_some() || length.is_zero()
        };
        if known {
            return Err(wrong());
        }
    }
    let failures = failures.map(|number: u32| number.to_string());
    let time = time.map(|length: Duration| format!("{}s", length.as_secs()));
    let parts: Vec<String> = failures.into_iter().chain(time).collect();
    Ok(parts.join(","))
}

fn table(namespace: &Value) -> Vec<Vec<String>> {
    let mut lines = vec![vec!["POLICY".to_owned(), "VALUE".to_owned()]];
    for (name, default) in [
        (AUTO_ROLLBACK, "false"),
        (ROLLBACK_AFTER, "3 or the progress deadline"),
        (KEEP_WARM, "1m"),
    ] {
        let value = namespace["metadata"]["annotations"][name].as_str();
        let shown = value.map_or_else(|| format!("{default} (default)"), output::harmless);
        lines.push(vec![name.to_owned(), shown]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_written_as_the_annotation_has_it() {
        for (typed, written) in [
            ("5", "5"),
            ("90s", "90s"),
            ("2m", "120s"),
            ("5,1m30s", "5,90s"),
            ("1m, 7", "7,60s"),
        ] {
            assert_eq!(budget(typed).as_deref(), Ok(written), "{typed}");
        }
        for wrong in ["", "0", "0s", "-1", "5,6", "1s,2s", "x", "5,", "4294967296"] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_said_is_written() {
        let policy = Policy {
            auto_rollback: Some(true),
            keep_warm: Some(Duration::from_secs(120)),
            ..Policy::default()
        };
        let changes = Value::Object(policy.changes());
        assert_eq!(changes, json!({AUTO_ROLLBACK: "true", KEEP_WARM: "120s"}));
        assert!(Policy::default().changes().is_empty());
        let unset = Policy {
            unset: true,
            ..Policy::default()
        };
        let changes = Value::Object(unset.changes());
        assert_eq!(
            changes,
            json!({AUTO_ROLLBACK: null, ROLLBACK_AFTER: null, KEEP_WARM: null})
        );
    }

    #[test]
    fn what_a_namespace_says_is_shown_beside_the_defaults() {
        let namespace = json!({"metadata": {"annotations": {AUTO_ROLLBACK: "true"}}});
        let lines = table(&namespace);
        assert_eq!(lines[1], [AUTO_ROLLBACK, "true"]);
        assert_eq!(lines[3], [KEEP_WARM, "1m (default)"]);
    }
}
