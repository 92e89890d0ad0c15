//! A rollout as a picture: its revisions with their pods, and the pods that do not work.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::seen::{Revision, Seen};
use super::trouble::trouble;
use crate::output::{align, one_line};

/// The most cells that a bar has.
const CELLS: usize = 20;
/// Old revisions that are shown.
const OLD: usize = 4;
/// Pods in trouble that are shown.
const TROUBLES: usize = 8;

/// The lines of the picture. `waiting` is what is waited for, in a line.
pub(super) fn picture(
    seen: &Seen,
    elapsed: Duration,
    now: Timestamp,
    waiting: Option<&str>,
) -> Vec<String> {
    let revisions = seen.revisions();
    let mut lines = vec![format!(
        "deployment.apps/{}   {}s",
        one_line(seen.name()),
        elapsed.as_secs()
    )];
    lines.extend(table(seen, &revisions));
    lines.extend(troubles(&revisions, now));
    let canary = seen
        .condition("Progressing")
        .filter(|known| known.reason.as_deref() == Some("CanaryStep"));
    let canary = canary.and_then(|known| known.message.as_deref());
    lines.extend(canary.map(one_line));
    lines.extend(waiting.map(str::to_owned));
    lines
}

fn table(seen: &Seen, revisions: &[Revision<'_>]) -> Vec<String> {
    let header = ["", "REVISION", "IMAGE", "PODS", "", "READY", "AVAILABLE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let whole = seen.wanted();
    let new = revisions.iter().filter(|revision| revision.is_wanted);
    let old = revisions
        .iter()
        .filter(|revision| !revision.is_wanted && revision.is_alive());
    for (what, revision) in new
        .map(|revision| ("new", revision))
        .chain(old.take(OLD).map(|revision| ("old", revision)))
    {
        let (there, ready, available) = revision.counts();
        let wanted = match revision.is_wanted {
            true => whole,
            false => revision.wanted(),
        };
        rows.push(vec![
            what.to_owned(),
            revision.number.to_string(),
            revision.images(),
            format!("{there}/{wanted}"),
            bar(available, ready, there, whole.max(there)),
            ready.to_string(),
            available.to_string(),
        ]);
    }
    align(&rows).lines().map(str::to_owned).collect()
}

/// Pods of `of`: `#` for those that are available, `+` for those that are ready, `-` for those that are there.
fn bar(available: i32, ready: i32, there: i32, of: i32) -> String {
    let size = |count: i32| usize::try_from(count).unwrap_or(0);
    let of = size(of).max(1);
    let cells = of.min(CELLS);
    // Of many pods, a few are still to be seen.
    let scaled = |count: usize| (count.min(of) * cells).div_ceil(of);
    let mut text = "#".repeat(scaled(size(available)));
    for (count, cell) in [(size(ready), "+"), (size(there), "-"), (of, " ")] {
        text.push_str(&cell.repeat(scaled(count).saturating_sub(text.len())));
    }
    format!("[{text}]")
}

fn troubles(revisions: &[Revision<'_>], now: Timestamp) -> Vec<String> {
    let wanted_first = revisions.iter().filter(|revision| revision.is_wanted);
    let all = wanted_first.chain(revisions.iter().filter(|revision| !revision.is_wanted));
    let mut rows = Vec::new();
    let mut leaving = 0;
    for revision in all {
        let mut pods = revision.pods.clone();
        pods.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        for pod in pods {
            leaving += usize::from(pod.metadata.deletion_timestamp.is_some());
            if let Some(trouble) = trouble(pod, now) {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                rows.push(vec![format!("  {}", one_line(name)), trouble.to_string()]);
            }
        }
    }
    let more = rows.len().saturating_sub(TROUBLES);
    rows.truncate(TROUBLES);
    let mut lines: Vec<String> = align(&rows).lines().map(str::to_owned).collect();
    if more > 0 {
        lines.push(format!("  and {more} more"));
    }
    if leaving > 0 {
        lines.push(format!("  {leaving} on their way out"));
    }
    lines
}

/// A part of a terminal that is drawn over and over, in place.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// Lines that it has.
    drawn: usize,
}

impl Screen {
    /// What to print so that these lines stand where those before stood. Of more lines than the terminal has `rows`, the first
    /// are shown. A line that is too long for the terminal is cut by it.
    pub(super) fn frame(&mut self, lines: &[String], rows: usize) -> String {
        let lines = lines.get(..rows.saturating_sub(1)).unwrap_or(lines);
        let mut frame = "\r".to_owned();
        if self.drawn > 0 {
            frame.push_str(&format!("\u{1b}[{}A", self.drawn));
        }
        // No wrapping meanwhile: or a long line would be two.
        frame.push_str("\u{1b}[?7l");
        for line in lines {
            frame.push_str(line);
            frame.push_str("\u{1b}[K\n");
        }
        frame.push_str("\u{1b}[J\u{1b}[?7h");
        self.drawn = lines.len();
        frame
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::seen::tests::{deployment, pod, seen, set};
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().expect("a time")
    }

    #[test]
    fn both_revisions_and_what_is_wrong_are_shown() {
        let no_image = json!({"phase": "Pending", "containerStatuses": [{
            "name": "web", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no\u{1b}[2J"}},
        }]});
        let mut leaving = pod(1, "web-z", json!({}));
        *leaving.pointer_mut("/metadata").expect("metadata") = json!({
            "name": "web-z", "uid": "z", "deletionTimestamp": "2026-01-01T00:00:59Z",
            "ownerReferences": leaving["metadata"]["ownerReferences"],
        });
        let seen = seen(
            deployment("reg/web:v2"),
            vec![
                set(1, "reg/web:v1", (2, 3, 2)),
                set(2, "reg/web:v2", (1, 1, 0)),
            ],
            vec![leaving, pod(2, "web-a", no_image)],
        );
        let lines = picture(&seen, Duration::from_secs(12), now(), Some("Waiting..."));
        assert_eq!(
            lines,
            [
                "deployment.apps/web   12s",
                "      REVISION   IMAGE        PODS           READY   AVAILABLE",
                "new   2          reg/web:v2   1/3    [-  ]   0       0",
                "old   1          reg/web:v1   3/2    [##-]   2       2",
                "  web-a   ImagePullBackOff: no^[[2J",
                "  1 on their way out",
                "Waiting...",
            ]
        );
    }

    #[test]
    fn what_is_over_is_not_shown_and_a_step_of_a_canary_is() {
        let mut web = deployment("v2");
        *web.pointer_mut("/status").expect("a status") = json!({"conditions": [
            {"type": "Progressing", "status": "True", "reason": "CanaryStep", "message": "step 2 of 3"}]});
        let seen = seen(
            web,
            vec![set(1, "v1", (0, 0, 0)), set(2, "v2", (3, 3, 3))],
            Vec::new(),
        );
        let lines = picture(&seen, Duration::ZERO, now(), None);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[3], "step 2 of 3");
    }

    #[test]
    fn many_pods_in_trouble_are_counted() {
        let pods =
            (0..20).map(|number| pod(2, &format!("web-{number:02}"), json!({"phase": "Failed"})));
        let pods = pods.collect();
        let seen = seen(deployment("v2"), vec![set(2, "v2", (3, 3, 0))], pods);
        let lines = troubles(&seen.revisions(), now());
        assert_eq!(lines.len(), TROUBLES + 1);
        assert_eq!(lines[0], "  web-00   Failed");
        assert_eq!(lines[TROUBLES], "  and 12 more");
    }

    #[test]
    fn a_bar_says_how_far_the_pods_are() {
        for (available, ready, there, of, shown) in [
            (0, 0, 0, 4, "[    ]"),
            (1, 2, 3, 4, "[#+- ]"),
            (4, 4, 4, 4, "[####]"),
            (0, 0, 0, 0, "[ ]"),
            (1, 1, 1, 1000, "[#                   ]"),
            (500, 750, 1000, 1000, "[##########+++++-----]"),
            (9, -1, 9, 3, "[###]"),
        ] {
            assert_eq!(bar(available, ready, there, of), shown);
        }
    }

    #[test]
    fn a_frame_stands_where_the_last_one_stood() {
        let lines =
            |count: usize| -> Vec<String> { (0..count).map(|number| number.to_string()).collect() };
        let mut screen = Screen::default();
        let off_and_on =
            |moves: &str, text: &str| format!("\r{moves}\u{1b}[?7l{text}\u{1b}[J\u{1b}[?7h");
        let two = "0\u{1b}[K\n1\u{1b}[K\n";
        assert_eq!(screen.frame(&lines(2), 24), off_and_on("", two));
        assert_eq!(screen.frame(&lines(9), 3), off_and_on("\u{1b}[2A", two));
        assert_eq!(
            screen.frame(&lines(1), 24),
            off_and_on("\u{1b}[2A", "0\u{1b}[K\n")
        );
        assert_eq!(screen.frame(&[], 0), off_and_on("\u{1b}[1A", ""));
    }
}
