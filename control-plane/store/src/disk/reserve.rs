//! Room on the disk that nobody else can take, since others write there too: the rest of the journal, made real as soon
//! as there is one, and pieces that are given back one by one when tables have to be written on a full disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

const DIRECTORY: &str = "reserve";
const PIECE: u64 = 16 << 20;
const PIECES: usize = 4;
/// Between looks for a new journal, and between pieces that are given back or taken.
const PAUSE: Duration = Duration::from_secs(1);
/// How much must be left of a disk for it to be reserved from.
const SPARE: u64 = 320 << 20;

/// How much room a member's disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Enough.
    None,
    /// Less than is to be kept free.
    Short,
    /// Next to nothing.
    Critical,
}

/// What one member holds in reserve.
pub(super) struct Reserve {
    directory: PathBuf,
    journals: PathBuf,
    journal_bytes: u64,
    pieces: usize,
    looked: Option<Instant>,
}

impl Reserve {
    /// Finds the pieces of an earlier run, and gives one back where not even a start has room. `journals` is where files
    /// of this many bytes are that end in `.jnl`.
    pub(super) fn open(journals: &Path, journal_bytes: u64) -> Self {
        let directory = journals.join(DIRECTORY);
        let pieces = (0..PIECES)
            .take_while(|number| directory.join(number.to_string()).exists())
            .count();
        let mut reserve = Self {
            directory,
            journals: journals.to_owned(),
            journal_bytes,
            pieces,
            looked: None,
        };
        if free(journals).is_ok_and(|free| free < PIECE) {
            reserve.release();
        }
        reserve
    }

    /// Does what is due: takes what it may while there is room, gives back while there is next to none.
    pub(super) fn tend(&mut self, shortage: Shortage) {
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return;
        }
        self.looked = Some(Instant::now());
        match shortage {
            Shortage::None => {
                if let Err(error) = self.take() {
                    // Some file systems cannot; then there is no reserve.
                    tracing::debug!(%error, directory = %self.directory.display(), "reserving room on the disk");
                }
            }
            Shortage::Short => {}
            Shortage::Critical => self.release(),
        }
    }

    fn take(&mut self) -> io::Result<()> {
        if free(&self.journals)? < SPARE {
            return Ok(());
        }
        if let Some(journal) = newest_journal(&self.journals)? {
            let journal = OpenOptions::new().write(true).open(journal)?;
            // Whatever is there already stays as it is.
            fallocate(&journal, FallocateFlags::KEEP_SIZE, 0, self.journal_bytes)?;
        }
        while self.pieces < PIECES && free(&self.journals)? >= SPARE {
            fs::create_dir_all(&self.directory)?;
            let path = self.directory.join(self.pieces.to_string());
            let piece = File::create(&path)?;
            if let Err(error) = fallocate(&piece, FallocateFlags::empty(), 0, PIECE) {
                fs::remove_file(&path)?;
                return Err(error.into());
            }
            self.pieces += 1;
        }
        Ok(())
    }

    fn release(&mut self) {
        let Some(last) = self.pieces.checked_sub(1) else {
            return;
        };
        self.pieces = last;
        match fs::remove_file(self.directory.join(last.to_string())) {
            Ok(()) => tracing::warn!(
                left = last,
                "the disk is full: a piece of the store's reserve is used up"
            ),
            Err(error) => tracing::warn!(%error, "giving back a piece of the store's reserve"),
        }
    }
}

/// The bytes that can be written on the disk of a path.
pub(super) fn free(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The journal that is written to is the one with the highest number.
fn newest_journal(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        newest = newest.max(number.map(|number| (number, path)));
    }
    Ok(newest.map(|(_, path)| path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn again(reserve: &mut Reserve, shortage: Shortage) {
        reserve.looked = None;
        reserve.tend(shortage);
    }

    #[test]
    fn what_is_held_is_real_and_given_back_piece_by_piece() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("10.jnl");
        fs::write(directory.path().join("9.jnl"), "old").unwrap();
        fs::write(&journal, "entries").unwrap();
        let mut reserve = Reserve::open(directory.path(), 1 << 20);
        reserve.tend(Shortage::None);
        assert_eq!(fs::read(&journal).unwrap(), b"entries");
        let blocks = |path: &Path| path.metadata().unwrap().blocks() * 512;
        assert!(blocks(&journal) >= 1 << 20, "the journal's rest is real");
        assert!(blocks(&directory.path().join("9.jnl")) < 1 << 20);
        let held = |directory: &Path| {
            let pieces = fs::read_dir(directory.join(DIRECTORY)).unwrap();
            pieces
                .map(|piece| blocks(&piece.unwrap().path()))
                .sum::<u64>()
        };
        assert!(held(directory.path()) >= PIECE * PIECES as u64);

        again(&mut reserve, Shortage::Short);
        assert_eq!(reserve.pieces, PIECES);
        again(&mut reserve, Shortage::Critical);
        reserve.tend(Shortage::Critical);
        assert_eq!(reserve.pieces, PIECES - 1, "one at a time");
        assert_eq!(
            Reserve::open(directory.path(), 1 << 20).pieces,
            PIECES - 1,
            "a later run finds the others"
        );
        again(&mut reserve, Shortage::None);
        assert_eq!(reserve.pieces, PIECES);
        for _ in 0..=PIECES {
            again(&mut reserve, Shortage::Critical);
        }
        assert_eq!((reserve.pieces, held(directory.path())), (0, 0));
    }
}
