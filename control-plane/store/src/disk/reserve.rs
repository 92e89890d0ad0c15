//! Room on the disk that nobody else can take, since others write there too: what the journal is written to next, made
//! real before it is needed, and pieces that are given back when a table or a new journal has to be written on a full
//! disk. Not earlier, and no more of them than that takes: whoever fills the disk goes on meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

const DIRECTORY: &str = "reserve";
const PIECE: u64 = 8 << 20;
const PIECES: usize = 8;
/// With less than this a start begins by giving pieces back: what it reads from journals may have to go to tables.
const START: u64 = 16 << 20;
/// Bytes that can be written to the journal wherever it has come to: it is not the beginning of a journal that matters.
pub(crate) const JOURNAL: u64 = 56 << 20;
/// With next to nothing left on the disk, a journal is given a piece when it has less than this.
const LEAST_JOURNAL: u64 = 4 << 20;
/// What `st_blocks` counts.
const BLOCK: u64 = 512;
/// Between looks while there is room; without, every call looks, since the engine may begin a journal at any time.
const PAUSE: Duration = Duration::from_secs(1);
/// How much must be left of a disk for pieces to be taken.
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
    pieces: usize,
    looked: Option<Instant>,
}

impl Reserve {
    /// Finds the pieces of an earlier run, and gives some back where not even a start has room. `journals` is where the
    /// files are that end in `.jnl`.
    pub(super) fn open(journals: &Path) -> Self {
        let directory = journals.join(DIRECTORY);
        let pieces = (0..PIECES)
            .take_while(|number| directory.join(number.to_string()).exists())
            .count();
        let mut reserve = Self {
            directory,
            journals: journals.to_owned(),
            pieces,
            looked: None,
        };
        let missing = free(journals).map_or(0, |free| START.saturating_sub(free));
        reserve.give(missing);
        reserve
    }

    /// Does what is due: keeps room for the journal, and takes pieces while there is enough.
    pub(super) fn tend(&mut self, shortage: Shortage) {
        let ample = shortage == Shortage::None;
        if ample && self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return;
        }
        self.looked = Some(Instant::now());
        let kept = self.keep_journal(shortage);
        let kept = kept.and_then(|()| if ample { self.take() } else { Ok(()) });
        if let Err(error) = kept {
            // Some file systems cannot; then there is no reserve.
            tracing::debug!(%error, directory = %self.directory.display(), "reserving room on the disk");
        }
    }

    /// Makes real what the newest journal is written to next.
    fn keep_journal(&mut self, shortage: Shortage) -> io::Result<()> {
        let Some(path) = newest_journal(&self.journals)? else {
            return Ok(());
        };
        let journal = OpenOptions::new().write(true).open(path)?;
        // It is written without holes. Where the file system does not tell holes, this is its length, which is further on.
        let written = match seek(&journal, SeekFrom::Hole(0)) {
            // Empty.
            Err(Errno::NXIO) => 0,
            found => found?,
        };
        // It is always made real from its beginning on.
        let real = journal.metadata()?.blocks().saturating_mul(BLOCK);
        // A piece more than has to be, so that it is not made longer all the time.
        let (least, most) = match shortage {
            Shortage::None | Shortage::Short => (JOURNAL, JOURNAL + PIECE),
            Shortage::Critical => (LEAST_JOURNAL, PIECE),
        };
        if real >= written.saturating_add(least) {
            return Ok(());
        }
        let length = written.saturating_add(most);
        let missing = length.saturating_sub(real);
        let found = free(&self.journals)?;
        if shortage == Shortage::Critical {
            self.give(missing.saturating_sub(found));
        } else if found < missing {
            return Ok(());
        }
        // Whatever is there already stays as it is.
        fallocate(&journal, FallocateFlags::KEEP_SIZE, 0, length)?;
        Ok(())
    }

    fn take(&mut self) -> io::Result<()> {
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

    /// Gives back so many bytes, for what is to be written right after, or as many as there are; in whole pieces. Whether
    /// any were.
    pub(super) fn give(&mut self, missing: u64) -> bool {
        let wanted = usize::try_from(missing.div_ceil(PIECE)).unwrap_or(usize::MAX);
        let given = wanted.min(self.pieces);
        for _ in 0..given {
            self.release();
        }
        given > 0
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

    #[cfg(test)]
    pub(super) fn pieces(&self) -> usize {
        self.pieces
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
    use std::os::unix::fs::FileExt;

    use super::*;

    fn again(reserve: &mut Reserve, shortage: Shortage) {
        reserve.looked = None;
        reserve.tend(shortage);
    }

    fn blocks(path: &Path) -> u64 {
        path.metadata().unwrap().blocks() * BLOCK
    }

    fn held(directory: &Path) -> u64 {
        let pieces = fs::read_dir(directory.join(DIRECTORY)).unwrap();
        pieces.map(|piece| blocks(&piece.unwrap().path())).sum()
    }

    /// As the engine begins one: longer than what is written of it.
    fn begin(directory: &Path, name: &str) -> (PathBuf, File) {
        let path = directory.join(name);
        let journal = File::create(&path).unwrap();
        journal.set_len(64 << 20).unwrap();
        (path, journal)
    }

    #[test]
    fn what_is_held_is_real_and_given_back_only_when_it_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("10.jnl");
        fs::write(directory.path().join("9.jnl"), "old").unwrap();
        fs::write(&journal, "entries").unwrap();
        let mut reserve = Reserve::open(directory.path());
        reserve.tend(Shortage::None);
        assert_eq!(fs::read(&journal).unwrap(), b"entries");
        assert!(blocks(&journal) >= JOURNAL, "the journal's rest is real");
        assert!(blocks(&directory.path().join("9.jnl")) < 1 << 20);
        let all = PIECE * PIECES as u64;
        assert!(held(directory.path()) >= all);

        for shortage in [Shortage::Short, Shortage::Critical, Shortage::Critical] {
            reserve.tend(shortage);
            assert_eq!(reserve.pieces, PIECES, "nothing is to be written");
        }
        assert!(!reserve.give(0));
        assert!(reserve.give(1));
        assert_eq!(reserve.pieces, PIECES - 1);
        assert!(reserve.give(PIECE + 1));
        assert_eq!(reserve.pieces, PIECES - 3, "no more than needed");
        assert_eq!(
            Reserve::open(directory.path()).pieces,
            PIECES - 3,
            "a later run finds the others"
        );
        again(&mut reserve, Shortage::None);
        assert_eq!(reserve.pieces, PIECES);
        assert!(reserve.give(u64::MAX));
        assert_eq!((reserve.pieces, held(directory.path())), (0, 0));
        assert!(!reserve.give(u64::MAX));
    }

    #[test]
    fn a_journal_has_room_wherever_it_has_come_to() {
        let directory = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::open(directory.path());
        let (first, journal) = begin(directory.path(), "1.jnl");
        let written = 60 << 20;
        let block = vec![1; 1 << 20];
        for at in (0..written).step_by(block.len()) {
            journal.write_all_at(&block, at).unwrap();
        }
        again(&mut reserve, Shortage::None);
        assert!(blocks(&first) >= written + JOURNAL);
        assert_eq!(first.metadata().unwrap().len(), 64 << 20);

        // What the engine begins in a shortage, at once.
        for (name, shortage, least) in [
            ("2.jnl", Shortage::Short, JOURNAL),
            ("3.jnl", Shortage::Critical, LEAST_JOURNAL),
        ] {
            let (next, _) = begin(directory.path(), name);
            reserve.tend(shortage);
            assert!(blocks(&next) >= least, "{shortage:?}");
        }
    }
}
