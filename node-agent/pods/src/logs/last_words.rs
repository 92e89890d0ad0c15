//! What a container that failed without a termination message said last (`FallbackToLogsOnError`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::current;
use super::lines::{Record, parse};

/// As a kubelet takes it: the text of so many records, and of that so many bytes.
const RECORDS: usize = 80;
const BYTES: usize = 2048;
/// More than so many records and so many bytes of text ever take, with the record at which reading begins.
const READ: u64 = 64 * 1024;

/// The end of an attempt's log, as it was written.
pub(crate) fn last_words(directory: &Path, attempt: u32) -> String {
    let written = end_of(&current(directory, attempt)).unwrap_or_default();
    let records: Vec<Record<'_>> = written
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect();
    let mut words = Vec::new();
    for record in records.iter().skip(records.len().saturating_sub(RECORDS)) {
        words.extend_from_slice(record.text);
        if record.ends {
            words.push(b'\n');
        }
    }
    let kept = &words[words.len().saturating_sub(BYTES)..];
    String::from_utf8_lossy(kept).into_owned()
}

/// The whole records at the end of a file.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let skipped = file.metadata()?.len().saturating_sub(READ);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(READ).read_to_end(&mut bytes)?;
    if skipped > 0 {
        let first = bytes.iter().position(|byte| *byte == b'\n');
        bytes.drain(..first.map_or(bytes.len(), |end| end + 1));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(records: &[(char, &str)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let lines = records
            .iter()
            .map(|(tag, text)| format!("2026-01-01T00:00:00.000000000Z stdout {tag} {text}\n"));
        let content: String = lines.collect();
        std::fs::write(directory.path().join("0.log"), content).unwrap();
        last_words(directory.path(), 0)
    }

    #[test]
    fn a_last_line_is_told_as_it_was_written() {
        assert_eq!(said(&[('P', "DONE")]), "DONE");
        assert_eq!(said(&[('F', "DONE")]), "DONE\n");
        assert_eq!(
            said(&[('F', "one"), ('P', "tw"), ('F', "o"), ('P', "rest")]),
            "one\ntwo\nrest"
        );
        assert_eq!(last_words(Path::new("/nowhere"), 0), "");
    }

    #[test]
    fn so_many_lines_and_bytes_are_told() {
        let numbers: Vec<String> = (0..200).map(|number| number.to_string()).collect();
        let records: Vec<(char, &str)> = numbers.iter().map(|text| ('F', text.as_str())).collect();
        let words = said(&records);
        assert_eq!(words.lines().count(), RECORDS);
        assert_eq!(words.lines().next(), Some("120"));
        let long = "x".repeat(16 * 1024);
        let words = said(&[
            ('P', &long),
            ('P', &long),
            ('P', &long),
            ('P', &long),
            ('P', "end"),
        ]);
        assert_eq!((words.len(), &words[BYTES - 4..]), (BYTES, "xend"));
    }
}
