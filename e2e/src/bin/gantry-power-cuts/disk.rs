//! A disk with a cache that loses its contents with the power, which the emulator reaches as a network block device.
//!
//! What the machine writes is kept apart until it asks for a flush, as in a drive's own memory. A power cut puts some of
//! what was not flushed on the disk and forgets the rest, block by block and whatever the order it was written in: that
//! is all a drive promises. Reads see everything that was written.
//!
//! The protocol is NBD's fixed newstyle handshake and simple replies, with no option but the export itself:
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::random::Random;

/// What a drive writes as one.
const BLOCK: usize = 4096;
/// The emulator splits what is larger.
const MOST: usize = 32 << 20;

/// The state behind the connection: what is on the disk, and what is only in the drive's cache.
struct Drive {
    durable: File,
    size: u64,
    /// Blocks that were written since the last flush, by number.
    cached: BTreeMap<u64, Box<[u8; BLOCK]>>,
    /// Writes until its power is gone, once that is settled.
    writes_left: Option<usize>,
}

impl Drive {
    fn is_dead(&self) -> bool {
        self.writes_left == Some(0)
    }

    fn block(&self, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        if let Some(block) = self.cached.get(&number) {
            return Ok(block.clone());
        }
        let mut block = Box::new([0; BLOCK]);
        self.durable
            .read_exact_at(&mut *block, number * BLOCK as u64)?;
        Ok(block)
    }

    /// Calls `part` with each block of a range: its number, where in it the range begins and ends, and how much of the
    /// range was before it.
    fn each(
        &mut self,
        offset: u64,
        length: usize,
        mut part: impl FnMut(&mut Self, u64, std::ops::Range<usize>, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        if offset
            .checked_add(length as u64)
            .is_none_or(|end| end > self.size)
        {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::INVAL.raw_os_error(),
            ));
        }
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let begin = (at % BLOCK as u64) as usize;
            let end = BLOCK.min(begin + length - done);
            part(self, at / BLOCK as u64, begin..end, done)?;
            done += end - begin;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.each(offset, into.len(), |drive, number, range, done| {
            let length = range.len();
            into[done..done + length].copy_from_slice(&drive.block(number)?[range]);
            Ok(())
        })
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.each(offset, from.len(), |drive, number, range, done| {
            let mut block = drive.block(number)?;
            let length = range.len();
            block[range].copy_from_slice(&from[done..done + length]);
            drive.cached.insert(number, block);
            Ok(())
        })?;
        if let Some(left) = &mut self.writes_left {
            *left = left.saturating_sub(1);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        for (number, block) in std::mem::take(&mut self.cached) {
            self.durable.write_all_at(&*block, number * BLOCK as u64)?;
        }
        Ok(())
    }
}

/// What became of the blocks that were not flushed.
pub(crate) struct Lost {
    pub(crate) kept: usize,
    pub(crate) lost: usize,
}

/// The disk, served to one emulator after another.
pub(crate) struct Disk {
    drive: Arc<Mutex<Drive>>,
}

impl Disk {
    /// The one in this file, whose length is a multiple of its blocks.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let durable = File::options().read(true).write(true).open(path)?;
        let drive = Drive {
            size: durable.metadata()?.len(),
            durable,
            cached: BTreeMap::new(),
            writes_left: None,
        };
        Ok(Self {
            drive: Arc::new(Mutex::new(drive)),
        })
    }

    /// Serves one emulator that will connect to this socket, until it is gone.
    pub(crate) fn serve(&self, socket: &Path) -> io::Result<JoinHandle<io::Result<()>>> {
        let listener = UnixListener::bind(socket)?;
        let drive = Arc::clone(&self.drive);
        Ok(std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            serve(stream, &drive)
        }))
    }

    /// Has it answer nothing any more after so many further writes, most of which a flush would follow: a cut that only
    /// waits for a time hardly ever comes in between.
    pub(crate) fn die_after(&self, writes: usize) {
        self.drive.lock().writes_left = Some(writes.max(1));
    }

    /// Takes the power away, once the emulator is gone.
    pub(crate) fn cut(&self, random: &mut Random) -> io::Result<Lost> {
        let mut drive = self.drive.lock();
        // Drives differ: some keep nothing, some nearly all.
        let percent = [0, 10, 50, 90, 100][random.below(5)];
        drive.writes_left = None;
        let cached = std::mem::take(&mut drive.cached);
        let (mut kept, mut lost) = (0, 0);
        for (number, block) in cached {
            if random.below(100) < percent {
                drive.durable.write_all_at(&*block, number * BLOCK as u64)?;
                kept += 1;
            } else {
                lost += 1;
            }
        }
        Ok(Lost { kept, lost })
    }
}

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) | 1;
const HAS_FLAGS: u16 = 1;
const SENDS_FLUSH: u16 = 1 << 2;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(mut stream: UnixStream, drive: &Mutex<Drive>) -> io::Result<()> {
    shake_hands(&mut stream, drive.lock().size)?;
    loop {
        let head: [u8; 28] = match take(&mut stream) {
            Ok(head) => head,
            // Killed, as it is meant to be.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| (u64::from(word(at)) << 32) | u64::from(word(at + 4));
        if word(0) != REQUEST {
            return Err(io::Error::other("not a request of NBD"));
        }
        let (kind, cookie, offset) = (word(4) as u16, &head[8..16], long(16));
        let length = word(24) as usize;
        if matches!(kind, READ | WRITE) && length > MOST {
            return Err(io::Error::other("a request that is too long"));
        }
        let mut data = vec![
            0;
            if matches!(kind, READ | WRITE) {
                length
            } else {
                0
            }
        ];
        let dead = drive.lock().is_dead();
        let done = match kind {
            WRITE if dead => stream.read_exact(&mut data),
            FLUSH if dead => Ok(()),
            READ => drive.lock().read(offset, &mut data),
            WRITE => {
                stream.read_exact(&mut data)?;
                drive.lock().write(offset, &data)
            }
            FLUSH => drive.lock().flush(),
            DISCONNECT => return Ok(()),
            _ => Err(io::Error::from_raw_os_error(
                rustix::io::Errno::INVAL.raw_os_error(),
            )),
        };
        if drive.lock().is_dead() {
            // The machine waits, as for a drive that hangs, until it is killed.
            continue;
        }
        let code = done.map_or_else(|error| error.raw_os_error().unwrap_or(5), |()| 0);
        let mut reply = REPLY.to_be_bytes().to_vec();
        reply.extend(code.to_be_bytes());
        reply.extend(cookie);
        if kind == READ && code == 0 {
            reply.append(&mut data);
        }
        match stream.write_all(&reply) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
}

fn shake_hands(stream: &mut UnixStream, size: u64) -> io::Result<()> {
    stream.write_all(b"NBDMAGIC")?;
    stream.write_all(OPTION_MAGIC)?;
    stream.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
    let _flags: [u8; 4] = take(stream)?;
    loop {
        if take(stream)? != *OPTION_MAGIC {
            return Err(io::Error::other("not an option of NBD"));
        }
        let option = u32::from_be_bytes(take(stream)?);
        let length = u32::from_be_bytes(take(stream)?) as usize;
        if length > BLOCK {
            return Err(io::Error::other("an option that is too long"));
        }
        stream.read_exact(&mut vec![0; length])?;
        let mut answer = |kind: u32, data: &[u8]| -> io::Result<()> {
            let mut reply = OPTION_REPLY.to_be_bytes().to_vec();
            reply.extend(option.to_be_bytes());
            reply.extend(kind.to_be_bytes());
            reply.extend((data.len() as u32).to_be_bytes());
            reply.extend(data);
            stream.write_all(&reply)
        };
        if option == OPTION_GO {
            let mut export = 0_u16.to_be_bytes().to_vec();
            export.extend(size.to_be_bytes());
            export.extend((HAS_FLAGS | SENDS_FLUSH).to_be_bytes());
            answer(REPLY_INFO, &export)?;
            return answer(REPLY_ACK, &[]);
        }
        answer(REPLY_UNSUPPORTED, &[])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_flushed_is_sure_to_survive() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![0; 1 << 20]).expect("writes");
        let disk = Disk::open(&path).expect("a disk");
        let mut random = Random::new(7);
        {
            let mut drive = disk.drive.lock();
            drive.write(100, b"flushed").expect("writes");
            drive.flush().expect("flushes");
            drive.write(BLOCK as u64 - 2, b"pending").expect("writes");
            let mut seen = [0; 7];
            drive.read(BLOCK as u64 - 2, &mut seen).expect("reads");
            assert_eq!(&seen, b"pending", "the machine sees what it wrote");
            assert!(drive.write(1 << 20, b"x").is_err(), "beyond the end");
        }
        disk.die_after(1);
        assert!(!disk.drive.lock().is_dead());
        disk.drive.lock().write(8000, b"last").expect("writes");
        assert!(disk.drive.lock().is_dead(), "that was its last write");
        let lost = disk.cut(&mut random).expect("cuts");
        assert_eq!(lost.kept + lost.lost, 2);
        let mut seen = [0; 7];
        disk.drive.lock().read(100, &mut seen).expect("reads");
        assert_eq!(&seen, b"flushed");
    }
}
