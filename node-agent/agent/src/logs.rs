//! Reads container logs: CRI-format lines (`<time> <stdout|stderr> <F|P> <text>`), over rotations, followed when asked.
//! What is given is what was written: only an `F` was followed by a line end.
//!
//! `<directory>/<attempt>.log` is being written; `<attempt>.log.1` is the one rotated last, `.2` the one before, ...

mod last_words;

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use last_words::last_words;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Which of the two streams a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One written piece: a line, or a part of one that was too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it was written.
    pub stream: Stream,
    /// What the reader is to be given, with its newline and, when asked for, its time.
    pub bytes: Vec<u8>,
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// Go on until the container has ended.
    pub follow: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

struct Parsed<'a> {
    time: &'a str,
    stream: Stream,
    whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Parsed<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let whole = parts.next()?.first() == Some(&b'F');
    Some(Parsed {
        time,
        stream,
        whole,
        text: parts.next().unwrap_or_default(),
    })
}

/// Turns a written line (without newline) into what is given, unless it is too old or no log line at all.
fn render(line: &[u8], query: &LogQuery) -> Option<Line> {
    let parsed = parse(line)?;
    if let Some(since) = query.since
        && parsed
            .time
            .parse::<Timestamp>()
            .is_ok_and(|time| time < since)
    {
        return None;
    }
    let mut bytes = Vec::with_capacity(line.len() + 1);
    if query.timestamps {
        bytes.extend_from_slice(parsed.time.as_bytes());
        bytes.push(b' ');
    }
    bytes.extend_from_slice(parsed.text);
    if parsed.whole {
        bytes.push(b'\n');
    }
    Some(Line {
        stream: parsed.stream,
        bytes,
    })
}

/// A line of a log that a container may have written into, for the fuzzer.
#[doc(hidden)]
pub fn fuzz(line: &[u8]) {
    for timestamps in [false, true] {
        let query = LogQuery {
            timestamps,
            since: Some(Timestamp::UNIX_EPOCH),
            ..LogQuery::default()
        };
        drop(render(line, &query));
    }
}

fn current(directory: &Path, attempt: u32) -> PathBuf {
    directory.join(format!("{attempt}.log"))
}

/// The files of an attempt, oldest first.
fn files(directory: &Path, attempt: u32) -> Vec<PathBuf> {
    let rotated = (1..)
        .map(|number| directory.join(format!("{attempt}.log.{number}")))
        .take_while(|path| path.exists());
    let mut all: Vec<PathBuf> = std::iter::once(current(directory, attempt))
        .chain(rotated)
        .collect();
    all.reverse();
    all
}

/// Sends an attempt's log. Ends at its end, or when following, once `ended` is cancelled and the rest was read.
pub async fn read(
    directory: &Path,
    attempt: u32,
    query: &LogQuery,
    ended: &CancellationToken,
    lines: &mpsc::Sender<Line>,
) -> io::Result<()> {
    let mut output = Output {
        query,
        lines,
        left: query.limit_bytes,
        held: query.tail.map(|_| VecDeque::new()),
    };
    let mut open = None;
    for path in files(directory, attempt) {
        match File::open(&path).await {
            Ok(file) => {
                let mut reader = Reader::new(path, file).await?;
                if !reader.read_on(&mut output).await? {
                    return Ok(());
                }
                open = Some(reader);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if !output.release().await {
        return Ok(());
    }
    let path = current(directory, attempt);
    if !query.follow {
        return Ok(());
    }
    loop {
        let last = ended.is_cancelled();
        if let Some(reader) = &mut open {
            if !reader.read_on(&mut output).await? {
                return Ok(());
            }
            if !reader.was_rotated(&path).await {
                if last {
                    return Ok(());
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = ended.cancelled() => {}
                    () = lines.closed() => return Ok(()),
                }
                continue;
            }
        }
        open = match File::open(&path).await {
            Ok(file) => Some(Reader::new(path.clone(), file).await?),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !last => {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = lines.closed() => return Ok(()),
                }
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
    }
}

struct Output<'a> {
    query: &'a LogQuery,
    lines: &'a mpsc::Sender<Line>,
    left: Option<u64>,
    /// The last lines so far, while only those are wanted.
    held: Option<VecDeque<Line>>,
}

impl Output<'_> {
    /// Whether more is wanted.
    async fn take(&mut self, line: &[u8]) -> bool {
        let Some(line) = render(line, self.query) else {
            return true;
        };
        if let Some(held) = &mut self.held {
            held.push_back(line);
            let tail = self.query.tail.unwrap_or(usize::MAX);
            // A part of a line counts as a line, as it does for a kubelet.
            while held.len() > tail {
                held.pop_front();
            }
            return true;
        }
        self.send(line).await
    }

    async fn send(&mut self, mut line: Line) -> bool {
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            line.bytes.truncate(room);
            *left -= line.bytes.len() as u64;
        }
        let enough = self.left == Some(0);
        self.lines.send(line).await.is_ok() && !enough
    }

    async fn release(&mut self) -> bool {
        for line in self.held.take().unwrap_or_default() {
            if !self.send(line).await {
                return false;
            }
        }
        true
    }
}

struct Reader {
    file: BufReader<File>,
    inode: u64,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
}

impl Reader {
    async fn new(path: PathBuf, file: File) -> io::Result<Self> {
        let inode = file.metadata().await?.ino();
        tracing::trace!(path = %path.display(), inode, "reading a log");
        Ok(Self {
            file: BufReader::new(file),
            inode,
            partial: Vec::new(),
        })
    }

    /// Reads whole lines to the present end; whether more is wanted.
    async fn read_on(&mut self, output: &mut Output<'_>) -> io::Result<bool> {
        loop {
            if self.file.read_until(b'\n', &mut self.partial).await? == 0 {
                return Ok(true);
            }
            if self.partial.last() != Some(&b'\n') {
                return Ok(true);
            }
            self.partial.pop();
            let line = std::mem::take(&mut self.partial);
            if !output.take(&line).await {
                return Ok(false);
            }
        }
    }

    /// Another file has taken the name, or this one was cut.
    async fn was_rotated(&mut self, path: &Path) -> bool {
        let Ok(metadata) = tokio::fs::metadata(path).await else {
            return true;
        };
        let position = self.file.stream_position().await.unwrap_or(0);
        metadata.ino() != self.inode || metadata.len() < position
    }
}

/// Deletes the logs of an attempt.
pub(crate) async fn remove(directory: &Path, attempt: u32) {
    for path in files(directory, attempt) {
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "removing an old log");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn append(path: &Path, lines: &[(&str, &str)]) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        for (second, rest) in lines {
            writeln!(file, "2026-01-01T00:00:{second}.000000000Z {rest}").unwrap();
        }
    }

    async fn all(directory: &Path, query: LogQuery) -> String {
        let (sender, mut lines) = mpsc::channel(100);
        read(directory, 0, &query, &CancellationToken::new(), &sender)
            .await
            .unwrap();
        drop(sender);
        let mut text = Vec::new();
        while let Some(line) = lines.recv().await {
            text.extend(line.bytes);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn queries() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        append(&path.join("0.log.1"), &[("01", "stdout F one")]);
        append(
            &path.join("0.log"),
            &[
                ("02", "stderr P tw"),
                ("02", "stderr F o"),
                ("03", "stdout F three"),
            ],
        );
        assert_eq!(all(path, LogQuery::default()).await, "one\ntwo\nthree\n");
        assert_eq!(
            all(
                path,
                LogQuery {
                    tail: Some(1),
                    ..LogQuery::default()
                }
            )
            .await,
            "three\n"
        );
        assert_eq!(
            all(
                path,
                LogQuery {
                    tail: Some(0),
                    ..LogQuery::default()
                }
            )
            .await,
            ""
        );
        assert_eq!(
            all(
                path,
                LogQuery {
                    limit_bytes: Some(5),
                    ..LogQuery::default()
                }
            )
            .await,
            "one\nt"
        );
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        let stamped = LogQuery {
            since,
            timestamps: true,
            ..LogQuery::default()
        };
        assert_eq!(
            all(path, stamped).await,
            "2026-01-01T00:00:03.000000000Z three\n"
        );
        assert_eq!(all(&path.join("none"), LogQuery::default()).await, "");
        append(&path.join("0.log"), &[("04", "stdout P no end")]);
        let last = LogQuery {
            tail: Some(1),
            ..LogQuery::default()
        };
        assert_eq!(all(path, last).await, "no end");
    }

    #[tokio::test]
    async fn following_survives_a_rotation_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        append(&path.join("0.log"), &[("01", "stdout F one")]);
        let (sender, mut lines) = mpsc::channel(100);
        let ended = CancellationToken::new();
        let task = {
            let (path, ended) = (path.clone(), ended.clone());
            let query = LogQuery {
                follow: true,
                ..LogQuery::default()
            };
            tokio::spawn(async move { read(&path, 0, &query, &ended, &sender).await })
        };
        assert_eq!(lines.recv().await.unwrap().bytes, b"one\n");
        append(&path.join("0.log"), &[("02", "stdout F two")]);
        assert_eq!(lines.recv().await.unwrap().bytes, b"two\n");
        std::fs::rename(path.join("0.log"), path.join("0.log.1")).unwrap();
        append(&path.join("0.log"), &[("03", "stdout F three")]);
        assert_eq!(lines.recv().await.unwrap().bytes, b"three\n");
        append(&path.join("0.log"), &[("04", "stdout F four")]);
        ended.cancel();
        assert_eq!(lines.recv().await.unwrap().bytes, b"four\n");
        assert!(lines.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
