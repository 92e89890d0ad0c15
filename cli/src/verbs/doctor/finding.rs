//! What a check has found, and how findings are printed. Pure.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    /// Could not be looked at, or works but should not stay so.
    Warning,
    /// Something does not work, or will not.
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at, in a word or two.
    pub(super) check: String,
    pub(super) outcome: Outcome,
    pub(super) message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            outcome: Outcome::Ok,
            message: message.into(),
            fix: None,
        }
    }

    /// What could not be found out; the message says what to do about it.
    pub(super) fn skipped(check: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Warning,
            ..Self::ok(check, message)
        }
    }

    pub(super) fn warning(
        check: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Warning,
            fix: Some(fix.into()),
            ..Self::ok(check, message)
        }
    }

    pub(super) fn failed(
        check: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Failed,
            ..Self::warning(check, message, fix)
        }
    }

    pub(super) fn needs_root(check: impl Into<String>) -> Self {
        Self::warning(
            check,
            "skipped: needs root",
            "run 'gantry doctor' with sudo",
        )
    }

    fn line(&self, width: usize) -> String {
        let Self {
            check,
            outcome,
            message,
            fix,
        } = self;
        // One line each, whatever a program or the kernel has said.
        let message: Vec<&str> = message.split_whitespace().collect();
        let message = message.join(" ");
        let outcome = outcome.word();
        let missing = width - check.chars().count();
        let line = format!("{outcome:<7}  {check}{:missing$}  {message}", "");
        match fix {
            Some(fix) => format!("{line}; to fix it: {fix}\n"),
            None => format!("{line}\n"),
        }
    }
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Vec<Finding>,
    pub(super) cluster: Vec<Finding>,
}

impl Report {
    fn all(&self) -> impl Iterator<Item = &Finding> {
        self.machine.iter().chain(&self.cluster)
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.all()
            .filter(|finding| finding.outcome == outcome)
            .count()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.count(Outcome::Failed) > 0
    }

    /// One line per finding, in two parts, and a sum.
    pub(super) fn text(&self) -> String {
        let width = self
            .all()
            .map(|finding| finding.check.chars().count())
            .max()
            .unwrap_or(0);
        let part = |title: &str, findings: &[Finding]| {
            let lines: String = findings.iter().map(|finding| finding.line(width)).collect();
            format!("{title}\n{lines}")
        };
        format!(
            "{}\n{}\nok: {}, warnings: {}, failed: {}\n",
            part("THIS MACHINE", &self.machine),
            part("THE CLUSTER", &self.cluster),
            self.count(Outcome::Ok),
            self.count(Outcome::Warning),
            self.count(Outcome::Failed),
        )
    }

    pub(super) fn json(&self) -> Result<String> {
        let report = json!({
            "machine": self.machine,
            "cluster": self.cluster,
            "warnings": self.count(Outcome::Warning),
            "failed": self.count(Outcome::Failed),
        });
        Ok(format!("{}\n", serde_json::to_string_pretty(&report)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cluster: Vec<Finding>) -> Report {
        Report {
            machine: vec![
                Finding::ok("kernel", "Linux 6.1"),
                Finding::needs_root("overlayfs"),
            ],
            cluster,
        }
    }

    #[test]
    fn every_finding_is_one_line_and_says_what_to_do() {
        let bad = Finding::failed("nodes", "nft says:\n  no\tchain", "load nf_tables");
        assert_eq!(
            report(vec![bad]).text(),
            "THIS MACHINE\n\
             ok       kernel     Linux 6.1\n\
             warning  overlayfs  skipped: needs root; to fix it: run 'gantry doctor' with sudo\n\
             \n\
             THE CLUSTER\n\
             failed   nodes      nft says: no chain; to fix it: load nf_tables\n\
             \n\
             ok: 1, warnings: 1, failed: 1\n"
        );
    }

    #[test]
    fn only_what_has_failed_is_failure() {
        assert!(!report(Vec::new()).has_failed());
        assert!(!report(vec![Finding::warning("a", "b", "c")]).has_failed());
        assert!(report(vec![Finding::failed("a", "b", "c")]).has_failed());
    }

    #[test]
    fn machines_read_the_same_as_people() -> Result<()> {
        let text = report(vec![Finding::failed("nodes", "node-2 is silent", "look")]).json()?;
        let read: serde_json::Value = serde_json::from_str(&text)?;
        assert_eq!(
            read,
            json!({
                "machine": [
                    {"check": "kernel", "outcome": "ok", "message": "Linux 6.1"},
                    {"check": "overlayfs", "outcome": "warning", "message": "skipped: needs root",
                     "fix": "run 'gantry doctor' with sudo"},
                ],
                "cluster": [
                    {"check": "nodes", "outcome": "failed", "message": "node-2 is silent", "fix": "look"},
                ],
                "warnings": 1,
                "failed": 1,
            })
        );
        Ok(())
    }
}
