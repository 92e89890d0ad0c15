//! Reads container logs: CRI-format lines (`<time> <stdout|stderr> <F|P> <text>`), over rotations, followed when asked.
//! What is given is what was written: only an `F` was followed by a line end.
//!
//! `<directory>/<attempt>.log` is being written; `<attempt>.log.1` is the one rotated last, `.2` the one before, ...

mod last_words;
mod lines;

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
use lines::Lines;

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

/// A line, or a part of one that is too long for one piece: parts of one line come one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it was written.
    pub stream: Stream,
    /// What the reader is to be given: its first part begins with its time, when asked for, and its last ends with a newline.
    pub bytes: Vec<u8>,
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// Go on until the container has ended.
    pub follow: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// No line that was begun before.
    pub since: Option<Timestamp>,
    /// Only the last so many lines, of those that are there when reading begins.
    pub tail: Option<usize>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// A record of a log that a container may have written into, for the fuzzer.
#[doc(hidden)]
pub fn fuzz(record: &[u8]) {
    for tail in [None, Some(1)] {
        let query = LogQuery {
            timestamps: tail.is_some(),
            since: Some(Timestamp::UNIX_EPOCH),
            tail,
            ..LogQuery::default()
        };
        let records = || record.split(|byte| *byte == b'\n');
        let mut counting = Lines::counting(&query);
        records().for_each(|record| counting.take(record));
        let mut lines = counting.last();
        records().for_each(|record| lines.take(record));
        lines.flush();
        while lines.pop().is_some() {}
    }
}

fn current(directory: &Path, attempt: u32) -> PathBuf {
    directory.join(format!("{attempt}.log"))
}

fn rotated(directory: &Path, attempt: u32, number: u32) -> PathBuf {
    directory.join(format!("{attempt}.log.{number}"))
}

/// The files of an attempt, oldest first.
fn files(directory: &Path, attempt: u32) -> Vec<PathBuf> {
    let rotated = (1..)
        .map(|number| rotated(directory, attempt, number))
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
    let mut written = newer(directory, attempt, None).await?;
    let joined = match query.tail {
        None => Lines::all(query),
        Some(_) => last_lines(query, &mut written).await?,
    };
    let mut output = Output {
        joined,
        lines,
        left: query.limit_bytes,
    };
    let mut open: Option<Reader> = None;
    for mut reader in written {
        if !reader.read_on(&mut output).await? {
            return Ok(());
        }
        open = Some(reader);
    }
    if !query.follow {
        output.joined.flush();
        output.send_ready().await;
        return Ok(());
    }
    let path = current(directory, attempt);
    loop {
        let last = ended.is_cancelled();
        let rotated = match &mut open {
            Some(reader) => {
                // Asked before the rest is read: what has lost its name is not written any more.
                let rotated = reader.was_rotated(&path).await;
                if !reader.read_on(&mut output).await? {
                    return Ok(());
                }
                rotated
            }
            None => true,
        };
        if rotated {
            let inode = open.as_ref().map(|reader| reader.inode);
            let next = newer(directory, attempt, inode).await?;
            let more = !next.is_empty();
            for mut reader in next {
                if !reader.read_on(&mut output).await? {
                    return Ok(());
                }
                open = Some(reader);
            }
            if more {
                continue;
            }
        }
        if last {
            output.joined.flush();
            output.send_ready().await;
            return Ok(());
        }
        output.joined.idle();
        if !output.send_ready().await {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = ended.cancelled() => {}
            () = lines.closed() => return Ok(()),
        }
    }
}

/// What gives the last lines of these files, which are read from their beginnings then: lines are counted first.
async fn last_lines<'a>(query: &'a LogQuery, files: &mut [Reader]) -> io::Result<Lines<'a>> {
    let mut counting = Lines::counting(query);
    for file in files {
        while let Some(record) = file.record().await? {
            counting.take(&record);
        }
        file.rewind().await?;
    }
    Ok(counting.last())
}

/// The files of an attempt that are newer than the one with this inode, oldest first; all of them without it, or when that
/// one is gone. A file that was cut is its own successor.
async fn newer(directory: &Path, attempt: u32, than: Option<u64>) -> io::Result<Vec<Reader>> {
    let mut found: Vec<Reader> = Vec::new();
    // The newest first: a file that gets an older name meanwhile is met twice rather than never.
    for number in 0_u32.. {
        let path = match number {
            0 => current(directory, attempt),
            number => rotated(directory, attempt, number),
        };
        let reader = match File::open(&path).await {
            Ok(file) => Reader::new(&path, file).await?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        if Some(reader.inode) == than {
            if number == 0 {
                found.push(reader);
            }
            break;
        }
        if found.iter().all(|known| known.inode != reader.inode) {
            found.push(reader);
        }
    }
    found.reverse();
    Ok(found)
}

struct Output<'a> {
    joined: Lines<'a>,
    lines: &'a mpsc::Sender<Line>,
    left: Option<u64>,
}

impl Output<'_> {
    /// Takes a record; whether more is wanted.
    async fn take(&mut self, record: &[u8]) -> bool {
        self.joined.take(record);
        self.send_ready().await
    }

    /// Sends what may be sent; whether more is wanted.
    async fn send_ready(&mut self) -> bool {
        while let Some(mut line) = self.joined.pop() {
            if let Some(left) = &mut self.left {
                let room = usize::try_from(*left).unwrap_or(usize::MAX);
                line.bytes.truncate(room);
                *left -= line.bytes.len() as u64;
            }
            let enough = self.left == Some(0);
            if self.lines.send(line).await.is_err() || enough {
                return false;
            }
        }
        true
    }
}

struct Reader {
    file: BufReader<File>,
    inode: u64,
    /// The beginning of a record whose end has not been written yet.
    partial: Vec<u8>,
}

impl Reader {
    async fn new(path: &Path, file: File) -> io::Result<Self> {
        let inode = file.metadata().await?.ino();
        tracing::trace!(path = %path.display(), inode, "reading a log");
        Ok(Self {
            file: BufReader::new(file),
            inode,
            partial: Vec::new(),
        })
    }

    /// Reads whole records to the present end; whether more is wanted.
    async fn read_on(&mut self, output: &mut Output<'_>) -> io::Result<bool> {
        while let Some(record) = self.record().await? {
            if !output.take(&record).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next whole record, without its newline; none at the present end.
    async fn record(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.file.read_until(b'\n', &mut self.partial).await?;
        if self.partial.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.partial.pop();
        Ok(Some(std::mem::take(&mut self.partial)))
    }

    /// Goes back to the beginning.
    async fn rewind(&mut self) -> io::Result<()> {
        self.partial.clear();
        self.file.rewind().await.map(drop)
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
                ("03", "stderr F o"),
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
        // The last word of a file that loses its name, a line over the edge of two, and one file that comes and goes unseen.
        append(&path.join("0.log"), &[("03", "stdout P lo")]);
        std::fs::rename(path.join("0.log.1"), path.join("0.log.3")).unwrap();
        std::fs::rename(path.join("0.log"), path.join("0.log.2")).unwrap();
        append(&path.join("0.log.1"), &[("03", "stdout F ng")]);
        append(&path.join("0.log"), &[("04", "stdout F four")]);
        assert_eq!(lines.recv().await.unwrap().bytes, b"lo");
        assert_eq!(lines.recv().await.unwrap().bytes, b"ng\n");
        ended.cancel();
        assert_eq!(lines.recv().await.unwrap().bytes, b"four\n");
        assert!(lines.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
