//! What unpacking may take of the node: bytes, entries, time and disk, and only for as long as somebody waits for it. A few
//! bytes of a blob can stand for any number of a layer's.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::room;
use crate::root::invalid;

/// The largest layer, compressed or not.
pub(crate) const LAYER_BYTES: u64 = 256 << 30;
/// What may come of each byte of a blob. Deflate makes up to 1,032 of one, zstd 32,768; real layers have up to 20.
const RATIO: u64 = 1_000;
/// What may come of an image's blobs beyond that, of all together: files of zeros, mostly.
const SPARE: u64 = 4 << 30;
/// More than the largest layers have.
const ENTRIES: u64 = 4 << 20;
/// Entries that count as [`room::LOOK`] bytes: each takes an inode, and time.
const LOOK_ENTRIES: u64 = 1 << 10;
/// The longest that one layer takes, on a slow disk.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// A pull or an import under way: whether somebody waits for it, and what its layers share. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Errand(Arc<State>);

#[derive(Debug)]
struct State {
    is_over: AtomicBool,
    spare: Mutex<u64>,
}

/// Ends an errand when it is dropped, and with it what is done for it on other threads.
#[derive(Debug)]
pub(crate) struct EndsWith(Errand);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Errand {
    /// It is over when the second value is dropped.
    pub(crate) fn begin() -> (Self, EndsWith) {
        let errand = Self(Arc::new(State {
            is_over: AtomicBool::new(false),
            spare: Mutex::new(SPARE),
        }));
        (errand.clone(), EndsWith(errand))
    }

    /// One whose layers share no more than this.
    #[cfg(test)]
    pub(crate) fn with_spare(bytes: u64) -> Self {
        Self(Arc::new(State {
            is_over: AtomicBool::new(false),
            spare: Mutex::new(bytes),
        }))
    }

    fn go_on(&self) -> io::Result<()> {
        match self.0.is_over.load(Ordering::Relaxed) {
            // Never `Interrupted`: readers would try again.
            true => Err(io::Error::other("nobody waits for it any more")),
            false => Ok(()),
        }
    }

    /// Takes from what all layers share.
    fn spend(&self, bytes: u64) -> io::Result<()> {
        let mut spare = self.0.spare.lock();
        match spare.checked_sub(bytes) {
            Some(rest) => {
                *spare = rest;
                Ok(())
            }
            None => Err(invalid(&format!(
                "it unpacks to more than {RATIO} times its size and {SPARE} bytes"
            ))),
        }
    }
}

/// Counts one layer while it is unpacked; each of its methods fails when that has to end.
#[derive(Debug)]
pub(crate) struct Meter {
    errand: Errand,
    directory: Option<PathBuf>,
    until: Instant,
    /// Bytes that are left to it alone.
    own: Cell<u64>,
    entries: Cell<u64>,
    /// Bytes since the disk and the clock were looked at.
    unseen: Cell<u64>,
}

impl Meter {
    /// For a blob of so many bytes.
    pub(crate) fn new(errand: &Errand, blob: u64) -> Self {
        Self {
            errand: errand.clone(),
            directory: None,
            until: Instant::now() + LONGEST,
            own: Cell::new(blob.saturating_mul(RATIO).min(LAYER_BYTES)),
            entries: Cell::new(0),
            unseen: Cell::new(0),
        }
    }

    /// Looks also at the disk that a directory is on.
    pub(crate) fn on(self, directory: &Path) -> Self {
        Self {
            directory: Some(directory.to_owned()),
            ..self
        }
    }

    /// Whether to go on.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.errand.go_on()
    }

    /// So many plain bytes came.
    pub(crate) fn bytes(&self, count: u64) -> io::Result<()> {
        self.go_on()?;
        let own = self.own.get();
        self.own.set(own.saturating_sub(count));
        if count > own {
            self.errand.spend(count - own)?;
        }
        self.seen(count)
    }

    /// An entry came.
    pub(crate) fn entry(&self) -> io::Result<()> {
        self.go_on()?;
        self.entries.set(self.entries.get() + 1);
        if self.entries.get() > ENTRIES {
            return Err(invalid(&format!("it has more than {ENTRIES} entries")));
        }
        self.seen(room::LOOK / LOOK_ENTRIES)
    }

    fn seen(&self, count: u64) -> io::Result<()> {
        self.unseen.set(self.unseen.get().saturating_add(count));
        if self.unseen.get() < room::LOOK {
            return Ok(());
        }
        self.unseen.set(0);
        if Instant::now() > self.until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it takes longer than {} minutes", LONGEST.as_secs() / 60),
            ));
        }
        self.directory.as_deref().map_or(Ok(()), room::check)
    }
}

/// A reader that ends with the errand: of a blob, in which much can stand for nothing.
pub(crate) struct Watched<'a, R> {
    pub(crate) inner: R,
    pub(crate) meter: &'a Meter,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.meter.go_on()?;
        self.inner.read(buffer)
    }
}

/// A reader of a layer's plain bytes, each of which counts.
pub(crate) struct Counted<'a, R> {
    pub(crate) inner: R,
    pub(crate) meter: &'a Meter,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.bytes(count as u64)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_what_its_size_allows_and_shares_the_rest() {
        let (errand, _ends) = Errand::begin();
        let first = Meter::new(&errand, 3);
        first.bytes(3 * RATIO).expect("its own");
        first.bytes(SPARE - 1).expect("of the rest");
        let second = Meter::new(&errand, 0);
        second.bytes(1).expect("what is left");
        for meter in [first, second] {
            let error = meter.bytes(1).expect_err("nothing is left");
            assert!(error.to_string().contains("it unpacks to more"), "{error}");
        }
        Meter::new(&errand, 1).bytes(RATIO).expect("its own");
        let largest = Meter::new(&errand, u64::MAX);
        largest.bytes(LAYER_BYTES).expect("the largest layer");
        largest.bytes(1).expect_err("a larger one");
    }

    #[test]
    fn entries_are_counted() {
        let (errand, _ends) = Errand::begin();
        let meter = Meter::new(&errand, 1);
        meter.entries.set(ENTRIES - 1);
        meter.entry().expect("the last");
        let error = meter.entry().expect_err("too many");
        assert!(error.to_string().contains("entries"), "{error}");
    }

    #[test]
    fn nothing_goes_on_when_nobody_waits_or_for_ever() {
        let (errand, ends) = Errand::begin();
        let mut meter = Meter::new(&errand, 1 << 20);
        meter.bytes(1).expect("somebody waits");
        meter.until = Instant::now() - Duration::from_secs(1);
        let error = meter.bytes(room::LOOK).expect_err("it is late");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(ends);
        let meter = Meter::new(&errand, 1 << 20);
        for refused in [
            meter.bytes(0),
            meter.entry(),
            io::copy(
                &mut Watched {
                    inner: io::repeat(0),
                    meter: &meter,
                },
                &mut io::sink(),
            )
            .map(drop),
        ] {
            let error = refused.expect_err("nobody waits");
            assert!(error.to_string().contains("nobody waits"), "{error}");
        }
    }

    #[test]
    fn what_comes_counts() {
        let meter = Meter::new(&Errand::with_spare(1 << 10), 0);
        let mut endless = Counted {
            inner: io::repeat(0),
            meter: &meter,
        };
        let error = io::copy(&mut endless, &mut io::sink()).expect_err("endless");
        assert!(error.to_string().contains("it unpacks to more"), "{error}");
    }
}
