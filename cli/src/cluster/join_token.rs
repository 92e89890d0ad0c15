//! Join tokens on their way into a process: by a file or standard input, never where a list of processes shows them.

use std::ffi::OsString;
use std::io::{PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The file's name that stands for standard input.
const STDIN: &str = "-";
/// A token is some hundred bytes.
const LONGEST: u64 = 4096;
const FLAG: &str = "--token";
const FILE_FLAG: &str = "--token-file";

/// A join token, as the command line names it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JoinToken {
    /// The file with the token from 'gantry token create'; '-' reads it from standard input
    #[arg(long, value_name = "FILE", requires = "join")]
    token_file: Option<PathBuf>,
    /// The token itself, which every user of this machine can read in the list of processes: prefer --token-file
    #[arg(long, requires = "join", conflicts_with = "token_file")]
    token: Option<String>,
}

impl JoinToken {
    /// The token, if one is named.
    pub(crate) fn read(&self) -> Result<Option<String>> {
        if let Some(token) = &self.token {
            return Ok(Some(token.clone()));
        }
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let (text, place) = match path == Path::new(STDIN) {
            true => (read(std::io::stdin().lock()), "standard input".to_owned()),
            false => (
                std::fs::File::open(path).and_then(read),
                path.display().to_string(),
            ),
        };
        let text = text.with_context(|| format!("reading the join token from {place}"))?;
        let token = text.trim();
        ensure!(
            !token.is_empty() && !token.contains(char::is_whitespace),
            "{place} holds no join token: put what 'gantry token create' prints into it"
        );
        Ok(Some(token.to_owned()))
    }

    /// Whether the token comes through standard input.
    pub(crate) fn is_on_stdin(&self) -> bool {
        self.token_file.as_deref() == Some(Path::new(STDIN))
    }

    /// Replaces this process by one that does the same and has the token on standard input, when the token is on the
    /// command line: from then on nobody sees it there. Returns where there is nothing to hide.
    pub(crate) fn hide(&self) -> Result<()> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let warning = format!(
            "warning: every user of this machine can read a token on the command line: use {FILE_FLAG} FILE, or {FILE_FLAG} - for \
             standard input\n"
        );
        // Nobody may listen.
        std::io::stderr().write_all(warning.as_bytes()).ok();
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let program = std::env::current_exe().context("finding this program's file")?;
        let failed = Command::new(program)
            .arg0(name)
            .args(without_token(arguments))
            .stdin(pipe(token)?)
            .exec();
        Err(failed).context("taking the token off the command line")
    }
}

fn read(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// What a process is started with to read a token from standard input.
pub(super) fn arguments() -> [&'static str; 2] {
    [FILE_FLAG, STDIN]
}

/// Standard input with a token in it.
pub(super) fn pipe(token: &str) -> Result<Stdio> {
    let attempt = || -> std::io::Result<PipeReader> {
        let (reader, mut writer) = std::io::pipe()?;
        // It is smaller than what a pipe holds, so that nobody has to read meanwhile.
        writer.write_all(token.as_bytes())?;
        Ok(reader)
    };
    Ok(attempt().context("handing on the join token")?.into())
}

/// The same arguments with the token on standard input.
fn without_token(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == FLAG {
            arguments.next();
        } else if !text
            .strip_prefix(FLAG)
            .is_some_and(|rest| rest.starts_with('='))
        {
            kept.push(argument);
            continue;
        }
        kept.extend(self::arguments().map(OsString::from));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leaves_the_command_line_in_each_of_its_forms() {
        let words = |all: &[&str]| all.iter().map(OsString::from).collect::<Vec<_>>();
        for written in [&["--token", "abc.def"][..], &["--token=abc.def"]] {
            let given = [&["agent", "--join", "h"], written, &["--node-name", "n"]].concat();
            let expected = "agent --join h --token-file - --node-name n";
            let expected: Vec<&str> = expected.split(' ').collect();
            assert_eq!(
                without_token(words(&given).into_iter()),
                words(&expected),
                "{written:?}"
            );
        }
    }

    #[test]
    fn a_file_with_no_token_is_named() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("token");
        let token = JoinToken {
            token_file: Some(path.clone()),
            token: None,
        };
        for content in [None, Some(""), Some("\n"), Some("two words\n")] {
            if let Some(content) = content {
                std::fs::write(&path, content)?;
            }
            let error = token.read().expect_err("there is none");
            let words = format!("{error:#}");
            assert!(words.contains(&path.display().to_string()), "{words}");
        }
        std::fs::write(&path, "id.secret\n")?;
        assert_eq!(token.read()?.as_deref(), Some("id.secret"));
        Ok(())
    }
}
