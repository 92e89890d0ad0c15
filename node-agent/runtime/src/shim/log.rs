//! Container logs in the CRI format, rotated by size.
//!
//! `<time> <stream> <F|P> <text>`: `P` marks a piece of a line that continues in the next record of its stream, or that ends
//! with the container: the text of a record with `F` was followed by a line end, that of one with `P` was not. The current
//! file is `<attempt>.log`; older ones are `<attempt>.log.1` (newest) and up.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A longer line is written in pieces, so that one line never needs more memory than this.
const MAX_PIECE: usize = 16 * 1024;

/// Which of a container's streams a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one attempt of one container.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    written: u64,
    max_bytes: u64,
    max_files: u32,
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens `<dir>/<container>/<attempt>.log`, continuing what is there.
    pub(crate) fn open(
        dir: &Path,
        container: &str,
        attempt: u32,
        max_bytes: u64,
        max_files: u32,
    ) -> io::Result<Self> {
        let dir = dir.join(container);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{attempt}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            written,
            max_bytes,
            max_files,
            pending: [Vec::new(), Vec::new()],
        })
    }

    /// Writes every whole line, and keeps the rest until its end arrives or it grows too long.
    pub(crate) fn write(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let now = jiff::Timestamp::now();
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        let mut out = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let room = MAX_PIECE - pending.len();
            match bytes.iter().take(room).position(|byte| *byte == b'\n') {
                Some(end) => {
                    pending.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    record(&mut out, now, stream, 'F', &pending)?;
                    pending.clear();
                }
                None => {
                    let piece = bytes.len().min(room);
                    pending.extend_from_slice(&bytes[..piece]);
                    bytes = &bytes[piece..];
                    if pending.len() == MAX_PIECE {
                        record(&mut out, now, stream, 'P', &pending)?;
                        pending.clear();
                    }
                }
            }
        }
        // Most writes end a line; then the buffer's memory goes back.
        self.pending[stream as usize] = if pending.is_empty() {
            Vec::new()
        } else {
            pending
        };
        self.append(&out)
    }

    /// Writes what was left without a line end, at the end of a container; as it was written, so that nobody adds one.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let now = jiff::Timestamp::now();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let pending = std::mem::take(&mut self.pending[stream as usize]);
            if !pending.is_empty() {
                let mut out = Vec::new();
                record(&mut out, now, stream, 'P', &pending)?;
                self.append(&out)?;
            }
        }
        Ok(())
    }

    /// Writes records, starting a new file wherever the next one would not fit.
    fn append(&mut self, mut out: &[u8]) -> io::Result<()> {
        while !out.is_empty() {
            let room = match self.max_bytes {
                0 => out.len(),
                max => usize::try_from(max.saturating_sub(self.written)).unwrap_or(usize::MAX),
            };
            let whole = if out.len() <= room {
                out.len()
            } else {
                let end_of = |position: Option<usize>| position.map_or(0, |newline| newline + 1);
                match end_of(out[..room].iter().rposition(|byte| *byte == b'\n')) {
                    0 if self.written > 0 => {
                        self.rotate()?;
                        continue;
                    }
                    // One record larger than a file may be: it gets a file to itself.
                    0 => end_of(out.iter().position(|byte| *byte == b'\n')),
                    fits => fits,
                }
            };
            self.file.write_all(&out[..whole])?;
            self.written += whole as u64;
            out = &out[whole..];
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let older = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        let kept = self.max_files.saturating_sub(1);
        if kept == 0 {
            // Only the current file may exist: start it over.
            self.file.set_len(0)?;
            self.written = 0;
            return Ok(());
        }
        for number in (1..kept).rev() {
            match std::fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, older(1))?;
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

fn record(
    out: &mut Vec<u8>,
    now: jiff::Timestamp,
    stream: Stream,
    tag: char,
    text: &[u8],
) -> io::Result<()> {
    write!(out, "{now:.9} {} {tag} ", stream.name())?;
    out.extend_from_slice(text);
    out.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("gantry-log-{name}-{}", std::process::id()));
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => dir,
        }
    }

    fn texts(path: &Path) -> Vec<String> {
        let content = std::fs::read_to_string(path).unwrap();
        content
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn joins_pieces_of_a_line_and_keeps_what_has_no_end() {
        let dir = scratch("lines");
        let mut log = Log::open(&dir, "web", 2, 0, 0).unwrap();
        log.write(Stream::Stdout, b"one\ntw").unwrap();
        log.write(Stream::Stderr, b"oops\n").unwrap();
        log.write(Stream::Stdout, b"o\n\nrest").unwrap();
        log.finish().unwrap();
        let expected = [
            "stdout F one",
            "stderr F oops",
            "stdout F two",
            "stdout F ",
            "stdout P rest",
        ];
        assert_eq!(texts(&dir.join("web/2.log")), expected);
        let first = std::fs::read_to_string(dir.join("web/2.log")).unwrap();
        let stamp = first.split(' ').next().unwrap();
        assert_eq!(
            (stamp.len(), &stamp[10..11], &stamp[29..]),
            (30, "T", "Z"),
            "{stamp}"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn splits_a_line_longer_than_a_piece() {
        let dir = scratch("long");
        let mut log = Log::open(&dir, "web", 0, 0, 0).unwrap();
        let mut line = vec![b'x'; MAX_PIECE + 10];
        line.push(b'\n');
        log.write(Stream::Stdout, &line).unwrap();
        let lines = texts(&dir.join("web/0.log"));
        assert_eq!(
            (lines.len(), &lines[0][..9], lines[0].len()),
            (2, "stdout P ", MAX_PIECE + 9)
        );
        assert_eq!(lines[1], format!("stdout F {}", "x".repeat(10)));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn keeps_so_many_files_of_such_a_size() {
        let dir = scratch("rotate");
        let mut log = Log::open(&dir, "web", 0, 150, 3).unwrap();
        for number in 0..20 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes())
                .unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.join("web"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        for name in &names {
            assert!(std::fs::metadata(dir.join("web").join(name)).unwrap().len() <= 150);
        }
        assert_eq!(
            texts(&dir.join("web/0.log")).last().unwrap(),
            "stdout F line 19"
        );
        // One write of many lines is divided too, and a line larger than a file is written whole.
        log.write(Stream::Stdout, "short\n".repeat(50).as_bytes())
            .unwrap();
        assert!(std::fs::metadata(dir.join("web/0.log.1")).unwrap().len() <= 150);
        log.write(Stream::Stdout, format!("{}\n", "y".repeat(300)).as_bytes())
            .unwrap();
        assert_eq!(
            texts(&dir.join("web/0.log")),
            [format!("stdout F {}", "y".repeat(300))]
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
