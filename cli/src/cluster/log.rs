//! What the log of a process in the background says of its troubles.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// As much of a log as is looked at, from its end.
const LOOKED_AT: u64 = 64 * 1024;
/// Of one trouble, in characters.
const LONGEST: usize = 1000;

/// What was written since the log was so long.
fn since(log: &Path, start: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    let from = start.max(length.saturating_sub(LOOKED_AT));
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(LOOKED_AT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines that a process left in its log, from the last error on.
pub(super) fn last_words(log: &Path, start: u64) -> Option<String> {
    let text = since(log, start)?;
    let (_, error) = text.rsplit_once("error: ")?;
    let error = error.trim();
    (!error.is_empty()).then(|| error.to_owned())
}

/// What went wrong last: the error that a process ended with or tells of; a warning, where there is none.
pub(super) fn last_trouble(log: &Path, start: u64) -> Option<String> {
    let text = since(log, start)?;
    let mut lines = text.lines().rev();
    let error = lines.find_map(|line| line.strip_prefix("error: ").or_else(|| told(line, "ERROR")));
    let trouble = error.or_else(|| text.lines().rev().find_map(|line| told(line, "WARN")))?;
    Some(trouble.trim().chars().take(LONGEST).collect())
}

/// The words of a line of this level: `2026-01-31T12:00:00.000000Z  WARN gantry::cluster: words`.
fn told<'a>(line: &'a str, level: &str) -> Option<&'a str> {
    let (time, rest) = line.split_once(char::is_whitespace)?;
    let words = rest.trim_start().strip_prefix(level)?;
    (time.contains('T') && words.starts_with(' ')).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_this_run_is_told() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("gantry.log");
        std::fs::write(
            &log,
            "error: an old one\nINFO started\nerror: port 6443 is in use\n",
        )?;
        assert_eq!(last_words(&log, 18).as_deref(), Some("port 6443 is in use"));
        std::fs::write(&log, "error: an old one\nINFO started\n")?;
        assert_eq!(last_words(&log, 18), None);
        assert_eq!(last_words(&directory.path().join("none"), 0), None);
        Ok(())
    }

    #[test]
    fn an_error_comes_before_later_warnings() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("gantry.log");
        let at = "2026-01-31T12:00:00.000000Z";
        for (text, expected) in [
            (
                format!("{at}  INFO a: begun\n{at}  WARN a: slow\n"),
                Some("a: slow"),
            ),
            (
                format!("{at} ERROR a: broken\n{at}  WARN a: slow\n"),
                Some("a: broken"),
            ),
            (
                format!("{at} ERROR a: broken\nerror: the end\n{at}  INFO a: begun\n"),
                Some("the end"),
            ),
            (format!("{at}  INFO ERROR is a word\n"), None),
            (String::new(), None),
        ] {
            std::fs::write(&log, &text)?;
            assert_eq!(last_trouble(&log, 0).as_deref(), expected, "{text}");
        }
        std::fs::write(&log, "error: long ago\n".repeat(10_000))?;
        assert_eq!(last_trouble(&log, 0).as_deref(), Some("long ago"));
        assert_eq!(last_trouble(&log, 160_000), None);
        Ok(())
    }
}
