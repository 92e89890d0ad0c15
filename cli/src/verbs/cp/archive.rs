//! Archives of a copy. What comes from a container is not trusted: nothing is written outside the destination, and no link
//! is made that could lead there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hyper::body::Bytes;
use tar::EntryType;
use tokio::sync::mpsc;

/// Bytes on their way to an asynchronous reader.
pub(super) struct Outgoing(BufWriter<Pieces>);

impl Outgoing {
    /// In pieces of this size.
    pub(super) fn new(pieces: mpsc::Sender<Vec<u8>>, size: usize) -> Self {
        Self(BufWriter::with_capacity(size, Pieces(pieces)))
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

struct Pieces(mpsc::Sender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(bytes.to_vec());
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written to a file at once.
const AT_ONCE: usize = 256 * 1024;

/// Bytes that come from an asynchronous writer.
pub(super) struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    current: io::Cursor<Bytes>,
}

impl Incoming {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self {
            pieces,
            current: io::Cursor::default(),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}

/// Packs a file or a directory as `name`. Links stay links. Holes of files are written out: the tar of small images, BusyBox',
/// knows no sparse files.
pub(super) fn pack(from: &Path, name: &str, into: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(into);
    archive.follow_symlinks(false);
    archive.sparse(false);
    match from.is_dir() {
        true => archive.append_dir_all(name, from)?,
        false => archive.append_path_with_name(from, name)?,
    }
    archive.into_inner()?.flush()
}

/// Unpacks what was packed as `name` as `to`. Answers what was left out, and why.
pub(super) fn unpack(from: impl Read, name: &str, to: &Path) -> Result<Vec<String>> {
    let mut left_out = Vec::new();
    let mut archive = tar::Archive::new(from);
    let mut is_empty = true;
    for entry in archive.entries().context("reading the archive")? {
        let mut entry = entry.context("reading the archive")?;
        let path = entry.path().context("reading the archive")?.into_owned();
        let Some(within) = within(&path, name) else {
            left_out.push(format!(
                "{}: it leads out of what is copied",
                path.display()
            ));
            continue;
        };
        is_empty = false;
        let target = match within.as_os_str().is_empty() {
            true => to.to_owned(),
            false => to.join(within),
        };
        let doing = || format!("writing {}", target.display());
        match entry.header().entry_type() {
            EntryType::Directory => fs::create_dir_all(&target).with_context(doing)?,
            EntryType::Regular | EntryType::Continuous => {
                let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
                let file = create(&target, mode).with_context(doing)?;
                let mut file = BufWriter::with_capacity(AT_ONCE, file);
                io::copy(&mut entry, &mut file).with_context(doing)?;
                file.flush().with_context(doing)?;
            }
            EntryType::Link => {
                let first = entry.link_name().context("reading the archive")?;
                let first = first.and_then(|first| self::within(&first, name));
                match first {
                    Some(first) => {
                        fs::copy(to.join(first), &target).with_context(doing)?;
                    }
                    None => left_out.push(format!("{}: a link to elsewhere", path.display())),
                }
            }
            EntryType::Symlink => {
                left_out.push(format!("{}: symbolic links are not copied", path.display()))
            }
            _ => left_out.push(format!("{}: not a file", path.display())),
        }
    }
    ensure!(!is_empty, "the archive has nothing of \"{name}\" in it");
    Ok(left_out)
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
}

/// The part of an entry's path below `name`; none when it is elsewhere.
fn within(path: &Path, name: &str) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            _ => return None,
        }
    }
    let parts: PathBuf = parts.iter().collect();
    match name {
        "." => Some(parts),
        name => parts.strip_prefix(name).ok().map(Path::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn packed(from: &Path, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        pack(from, name, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_tree_comes_back_as_it_was_but_for_links() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        fs::create_dir_all(from.join("deep/er")).unwrap();
        fs::write(from.join("deep/er/file"), vec![7; 200_000]).unwrap();
        fs::write(from.join("run"), "x").unwrap();
        fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let to = directory.path().join("to");
        let left_out = unpack(&packed(&from, "tree")[..], "tree", &to).unwrap();
        assert_eq!(left_out, ["tree/link: symbolic links are not copied"]);
        assert_eq!(fs::read(to.join("deep/er/file")).unwrap(), vec![7; 200_000]);
        let mode = fs::metadata(to.join("run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o700, 0o700);
        assert!(!to.join("link").exists());

        let single = directory.path().join("single");
        unpack(&packed(&from.join("run"), "run")[..], "run", &single).unwrap();
        assert_eq!(fs::read(single).unwrap(), b"x");
    }

    #[test]
    fn a_file_with_holes_is_packed_as_any_other() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("holes");
        File::create(&from).unwrap().set_len(3 << 20).unwrap();
        let bytes = packed(&from, "holes");
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.header().entry_type(), EntryType::Regular);
        assert_eq!(entry.size(), 3 << 20);
        assert!(entries.next().is_none());
    }

    #[test]
    fn nothing_is_written_outside() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("to");
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["x/../../evil", "other/file", "x/good"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            // The library refuses to write such a name by itself.
            let field = &mut header.as_gnu_mut().unwrap().name;
            field[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            archive.append(&header, &b"evil"[..]).unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        let left_out = unpack(&bytes[..], "x", &to).unwrap();
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        assert!(to.join("good").exists());
        assert!(!directory.path().join("evil").exists());
        let error = unpack(&bytes[..], "nothing", &to).unwrap_err().to_string();
        assert!(error.contains("nothing of \"nothing\""), "{error}");
    }

    #[test]
    fn bytes_pass_between_the_two_worlds() {
        let (pieces, mut queue) = mpsc::channel(2);
        let sending = std::thread::spawn(move || {
            let mut outgoing = Outgoing::new(pieces, 1000);
            outgoing.write_all(&[5; 10_500]).unwrap();
            outgoing.flush().unwrap();
        });
        let (passed_on, incoming) = mpsc::channel(20);
        while let Some(piece) = queue.blocking_recv() {
            passed_on.blocking_send(Bytes::from(piece)).unwrap();
        }
        drop(passed_on);
        let mut received = Vec::new();
        Incoming::new(incoming).read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        assert_eq!(received, [5; 10_500]);
    }
}
