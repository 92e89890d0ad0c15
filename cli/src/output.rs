//! What commands print: server-side tables, YAML, JSON and names.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use gantry_api::yaml;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::client::Mapping;

/// So much is shown of a stranger's text, in characters.
const LONGEST_LINE: usize = 500;

/// The `-o` of get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table { wide: bool },
    Yaml,
    Json,
    Name,
}

impl Format {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self> {
        Ok(match text {
            None => Self::Table { wide: false },
            Some("wide") => Self::Table { wide: true },
            Some("yaml") => Self::Yaml,
            Some("json") => Self::Json,
            Some("name") => Self::Name,
            Some(other) => bail!("unknown output format \"{other}\": use wide, yaml, json or name"),
        })
    }

    /// The Accept header that lets the server do the work.
    pub(crate) fn accept(self) -> &'static str {
        match self {
            Self::Table { .. } => "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            _ => "application/json",
        }
    }
}

/// Prints to stdout; a closed pipe (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// An object as YAML or JSON text, ending in a newline.
pub(crate) fn document(object: &Value, format: Format) -> Result<String> {
    Ok(match format {
        Format::Json => {
            let mut text = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
            object.serialize(&mut serializer)?;
            text.push(b'\n');
            String::from_utf8(text)?
        }
        _ => yaml::to_string(object),
    })
}

/// Lays a server-side Table out in columns, as kubectl does: three spaces between, upper-case headers.
pub(crate) struct TableLayout {
    pub(crate) wide: bool,
    pub(crate) headers: bool,
    /// Prepend the namespace of each row.
    pub(crate) namespaces: bool,
    /// Written before each name: `deployment.apps/`.
    pub(crate) prefix: String,
}

impl TableLayout {
    pub(crate) fn render(&self, table: &Value) -> String {
        let columns: Vec<(usize, &Value)> = list(&table["columnDefinitions"])
            .enumerate()
            .filter(|(_, column)| self.wide || column["priority"].as_i64().unwrap_or(0) == 0)
            .collect();
        let mut lines: Vec<Vec<String>> = Vec::new();
        if self.headers {
            let mut header: Vec<String> = columns
                .iter()
                .map(|(_, column)| column["name"].as_str().unwrap_or_default().to_uppercase())
                .collect();
            if self.namespaces {
                header.insert(0, "NAMESPACE".to_owned());
            }
            lines.push(header);
        }
        for row in list(&table["rows"]) {
            let mut cells: Vec<String> = columns
                .iter()
                .map(|(index, _)| cell(&row["cells"][*index]))
                .collect();
            if let Some(name) = cells.first_mut() {
                name.insert_str(0, &self.prefix);
            }
            if self.namespaces {
                cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
            }
            lines.push(cells);
        }
        align(&lines)
    }
}

/// Aligns cells into columns separated by three spaces; no trailing spaces.
pub(crate) fn align(lines: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        for (index, cell) in line.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (index, cell) in line.iter().enumerate() {
            padded.push_str(cell);
            let missing = widths[index] - cell.chars().count() + 3;
            padded.extend(std::iter::repeat_n(' ', missing));
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

/// The first line of a cell, which is all that a row has room for.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::String(text) => match text.split_once(['\u{c}', '\n', '\r']) {
            Some((line, _)) => harmless(&format!("{line}...")),
            None => harmless(text),
        },
        other => other.to_string(),
    }
}

/// Text of a stranger's, without what would command the terminal that it is shown on.
pub(crate) fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\u{1b}' => harmless.push_str("^["),
            '\r' => harmless.push_str("\\r"),
            '\n' | '\t' => harmless.push(letter),
            // Terminals heed those of one byte's upper half as well.
            letter if letter.is_control() => harmless.extend(letter.escape_unicode()),
            letter => harmless.push(letter),
        }
    }
    harmless
}

/// The beginning of a stranger's text, harmless and in one line.
pub(crate) fn one_line(text: &str) -> String {
    let line = text.trim().chars().take(LONGEST_LINE);
    let line = line.map(|letter| match letter {
        '\u{1b}' | '\r' => letter,
        letter if letter.is_control() => ' ',
        letter => letter,
    });
    let line = harmless(&line.collect::<String>());
    line.chars().take(LONGEST_LINE).collect()
}

/// One line about what happened to an object: `deployment.apps/web configured`.
pub(crate) fn report(mapping: &Mapping, name: &str, what: &str) -> Result<()> {
    print(&format!("{} {what}\n", mapping.display(name)))
}

/// A spinner on a terminal, silence elsewhere.
pub(crate) fn spinner(message: String) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_aligned_and_hides_wide_columns() {
        let table = json!({
            "columnDefinitions": [
                {"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "Images", "priority": 1},
            ],
            "rows": [
                {"cells": ["web", "3/3", "nginx"], "object": {"metadata": {"namespace": "default"}}},
                {"cells": ["longer-name", null, "x"], "object": {"metadata": {"namespace": "other"}}},
            ],
        });
        let mut layout = TableLayout {
            wide: false,
            headers: true,
            namespaces: false,
            prefix: String::new(),
        };
        assert_eq!(
            layout.render(&table),
            "NAME          READY\nweb           3/3\nlonger-name   <none>\n"
        );
        layout.namespaces = true;
        layout.headers = false;
        layout.prefix = "pod/".to_owned();
        assert_eq!(
            layout.render(&table),
            "default   pod/web           3/3\nother     pod/longer-name   <none>\n"
        );
    }

    #[test]
    fn a_cell_is_one_line_and_does_nothing_to_the_terminal() {
        for (text, shown) in [
            ("\u{1b}[2Jgone", "^[[2Jgone"),
            ("one\ntwo", "one..."),
            ("one\r\ntwo", "one..."),
            ("\u{c}", "..."),
            ("plain", "plain"),
        ] {
            assert_eq!(cell(&json!(text)), shown, "{text:?}");
        }
        assert_eq!(harmless("a\r\u{1b}]0;b\n"), "a\\r^[]0;b\n");
        assert_eq!(harmless("a\u{9b}2J\u{7}ä"), "a\\u{9b}2J\\u{7}ä");
        assert_eq!(one_line(" a\n\u{1b}[2J\u{7}b\n"), "a ^[[2J b");
        assert_eq!(one_line(&"x".repeat(10_000)).len(), LONGEST_LINE);
    }
}
