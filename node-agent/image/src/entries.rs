//! A tar stream, entry by entry, read as Go's archive/tar reads it: layers are made by that and for that, and whoever reads one
//! otherwise finds other files in it. What comes before an entry's content is bounded; the content passes through.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::Timespec;
use tar::EntryType;

use crate::root::invalid;
use crate::sparse::{self, Sparse};

/// A tar's unit.
pub(crate) const BLOCK: usize = 512;
/// What may be before an entry's content: names, attributes and the maps of sparse files.
const HEADER_BYTES: u64 = 2 << 20;
/// The latest second that Go has in nanoseconds; what is later becomes the first, as containerd has it.
const LATEST: i64 = i64::MAX / 1_000_000_000;

type Block = [u8; BLOCK];

/// What comes before an entry's content.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    /// As it is written.
    pub(crate) path: PathBuf,
    /// Of a link; empty when there is none.
    pub(crate) target: PathBuf,
    pub(crate) mode: i64,
    pub(crate) user: i64,
    pub(crate) group: i64,
    pub(crate) accessed: Timespec,
    pub(crate) modified: Timespec,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Of a file with holes: the content is its pieces.
    pub(crate) sparse: Option<Sparse>,
    pub(crate) records: Records,
}

/// The records of an entry's PAX header. Each says how long it is, so that a value may have any bytes.
#[derive(Debug, Default)]
pub(crate) struct Records(Vec<u8>);

type Record<'a> = (&'a [u8], &'a [u8]);

impl Records {
    fn new(bytes: Vec<u8>) -> io::Result<Self> {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let first = first_record(rest).filter(|(record, _)| is_valid(record));
            (_, rest) = first.ok_or_else(|| invalid("a malformed PAX record"))?;
        }
        Ok(Self(bytes))
    }

    /// Keys and values, in their order: of those with the same key the last one counts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (record, after) = first_record(rest)?;
            rest = after;
            Some(record)
        })
    }
}

/// The first record and what follows it; `None` when there is none that is whole.
fn first_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let (record, after) = bytes.split_at_checked(decimal(&bytes[..blank]).ok()?)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), after))
}

fn is_valid(record: &Record<'_>) -> bool {
    let (key, value) = record;
    let is_name = [&b"path"[..], b"linkpath", b"uname", b"gname"].contains(key);
    let is_whole = !key.is_empty() && !key.contains(&0);
    is_whole && (!is_name || !value.contains(&0))
}

/// The entries of a stream. What is read from it is the content of the entry where it is.
pub(crate) struct Entries<R> {
    stream: R,
    /// Bytes of the content that have not been read.
    left: u64,
    /// Bytes that fill the content's last block.
    padding: usize,
}

/// What extension headers say of the entry that they are before.
#[derive(Default)]
struct Before {
    name: Vec<u8>,
    target: Vec<u8>,
    records: Records,
}

impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        if length == 0 {
            return Ok(0);
        }
        let read = self.stream.read(&mut buffer[..length])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            left: 0,
            padding: 0,
        }
    }

    /// The stream, of which nothing behind the archive's end has been read.
    pub(crate) fn into_inner(self) -> R {
        self.stream
    }

    /// Leaves out what is left of the content and goes to the next entry; `None` at the archive's end. Global headers are
    /// about no entry in particular and are left out: they hold a commit's hash, usually.
    pub(crate) fn advance(&mut self) -> io::Result<Option<Entry>> {
        let mut before = Before::default();
        let mut room = HEADER_BYTES;
        loop {
            self.leave_out()?;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            take(&mut room, BLOCK as u64)?;
            check_sum(&block)?;
            let size = number(&block[124..136])?;
            match EntryType::new(block[156]) {
                EntryType::GNULongName => before.name = self.whole(size, &mut room)?,
                EntryType::GNULongLink => before.target = self.whole(size, &mut room)?,
                EntryType::XHeader => before.records = Records::new(self.whole(size, &mut room)?)?,
                EntryType::XGlobalHeader => self.begin(size)?,
                kind => return self.entry(kind, &block, before, &mut room).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        kind: EntryType,
        block: &Block,
        before: Before,
        room: &mut u64,
    ) -> io::Result<Entry> {
        let form = Form::of(block);
        let modified = at(number(&block[136..148])?, 0);
        let mut entry = Entry {
            kind,
            path: form.path(block),
            target: path(text(&block[157..257])),
            mode: number(&block[100..108])?,
            user: number(&block[108..116])?,
            group: number(&block[116..124])?,
            accessed: modified,
            modified,
            device: (0, 0),
            sparse: None,
            records: before.records,
        };
        let mut size = number(&block[124..136])?;
        let mut accessed = None;
        for (key, value) in entry.records.iter() {
            match key {
                // Nothing is no value: what the header says stays.
                _ if value.is_empty() => {}
                b"path" => entry.path = path(value),
                b"linkpath" => entry.target = path(value),
                b"size" => size = decimal(value)?,
                b"uid" => entry.user = decimal(value)?,
                b"gid" => entry.group = decimal(value)?,
                b"mtime" => entry.modified = time(value)?,
                b"atime" => accessed = Some(time(value)?),
                _ => {}
            }
        }
        // As containerd has it: never before it was written.
        entry.accessed = accessed.map_or(entry.modified, |time| time.max(entry.modified));
        for (long, name) in [
            (text(&before.name), &mut entry.path),
            (text(&before.target), &mut entry.target),
        ] {
            if !long.is_empty() {
                *name = path(long);
            }
        }
        // Before there was a type for directories.
        if block[156] == 0 && entry.path.as_os_str().as_bytes().ends_with(b"/") {
            entry.kind = EntryType::Directory;
        }
        match entry.kind {
            EntryType::Char | EntryType::Block if form != Form::Old => {
                let part = |field: &[u8]| -> io::Result<u32> {
                    u32::try_from(number(field)?).map_err(|_| invalid("a device out of range"))
                };
                entry.device = (part(&block[329..337])?, part(&block[337..345])?);
            }
            EntryType::GNUSparse if form == Form::Gnu => {
                entry.sparse = Some(self.pieces(block, room)?);
            }
            EntryType::GNUSparse => return Err(invalid("a sparse file in a form that has none")),
            _ => entry.sparse = sparse::of(&entry.records)?,
        }
        // Whatever size it says: some write that of the file that a link leads to.
        let has_none = matches!(
            entry.kind,
            EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo
        );
        self.begin(if has_none { 0 } else { size })?;
        Ok(entry)
    }

    /// The map of a sparse file in GNU's own form: four pieces in its header, and 21 in each block that follows.
    fn pieces(&mut self, header: &Block, room: &mut u64) -> io::Result<Sparse> {
        let mut map = Vec::new();
        let size = count(&header[483..495])?;
        add_pieces(&header[386..482], &mut map)?;
        let mut goes_on = header[482] != 0;
        while goes_on {
            take(room, BLOCK as u64)?;
            let mut block = [0; BLOCK];
            if fill(&mut self.stream, &mut block)? < BLOCK {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            add_pieces(&block[..504], &mut map)?;
            goes_on = block[504] != 0;
        }
        Ok(Sparse::of_pieces(size, map))
    }

    /// The content that is next has so many bytes.
    fn begin(&mut self, size: i64) -> io::Result<()> {
        self.left = u64::try_from(size).map_err(|_| invalid("an entry of less than nothing"))?;
        let whole = self.left.checked_next_multiple_of(BLOCK as u64);
        let padding = whole.map_or(0, |whole| whole - self.left);
        self.padding = usize::try_from(padding).unwrap_or(0);
        Ok(())
    }

    /// The content of an extension header.
    fn whole(&mut self, size: i64, room: &mut u64) -> io::Result<Vec<u8>> {
        self.begin(size)?;
        take(room, self.left)?;
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn leave_out(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink())?;
        // Not every archive's last block is whole.
        let mut rest = [0; BLOCK];
        fill(&mut self.stream, &mut rest[..self.padding])?;
        self.padding = 0;
        Ok(())
    }

    /// The next header; `None` at the end, which is two empty blocks, or that of the stream.
    fn block(&mut self) -> io::Result<Option<Block>> {
        let mut block = [0; BLOCK];
        let is_empty = |block: &Block| block.iter().all(|byte| *byte == 0);
        match fill(&mut self.stream, &mut block)? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        if !is_empty(&block) {
            return Ok(Some(block));
        }
        match fill(&mut self.stream, &mut block)? {
            BLOCK if !is_empty(&block) => Err(invalid("an empty block between entries")),
            _ => Ok(None),
        }
    }
}

/// Which fields a header has beside the oldest ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Old,
    Ustar,
    Star,
    Gnu,
}

impl Form {
    fn of(block: &Block) -> Self {
        match (&block[257..263], &block[263..265], &block[508..]) {
            (b"ustar\0", _, b"tar\0") => Self::Star,
            (b"ustar\0", _, _) => Self::Ustar,
            (b"ustar ", b" \0", _) => Self::Gnu,
            _ => Self::Old,
        }
    }

    fn path(self, block: &Block) -> PathBuf {
        let above: &[u8] = match self {
            Self::Old | Self::Gnu => &[],
            Self::Ustar => text(&block[345..500]),
            Self::Star => text(&block[345..476]),
        };
        let name = text(&block[..100]);
        match above.is_empty() {
            true => path(name),
            false => path(&[above, b"/", name].concat()),
        }
    }
}

fn add_pieces(fields: &[u8], map: &mut Vec<(u64, u64)>) -> io::Result<()> {
    for piece in fields.chunks_exact(24) {
        // What is behind the last one is empty.
        if piece[0] == 0 {
            break;
        }
        map.push((count(&piece[..12])?, count(&piece[12..])?));
    }
    Ok(())
}

/// Fails unless the header's sum is right, by the bytes as they are or, as some have added them up, with signs.
fn check_sum(block: &Block) -> io::Result<()> {
    let written = number(&block[148..156])?;
    // The sum itself counts as blanks.
    let counted = |at: usize| match at {
        148..156 => b' ',
        _ => block[at],
    };
    let plain: i64 = (0..BLOCK).map(|at| i64::from(counted(at))).sum();
    let signed: i64 = (0..BLOCK)
        .map(|at| i64::from(counted(at).cast_signed()))
        .sum();
    match written == plain || written == signed {
        true => Ok(()),
        false => Err(invalid("a header whose checksum is wrong")),
    }
}

/// Reads until the buffer is full or the stream at its end; returns the bytes that came.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn take(room: &mut u64, bytes: u64) -> io::Result<()> {
    let rest = room.checked_sub(bytes);
    *room = rest.ok_or_else(|| invalid("an entry's header is too long"))?;
    Ok(())
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// What is before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number of a header, in octal digits or, where its first bit says so, in binary; 0 where nothing is written.
fn number(field: &[u8]) -> io::Result<i64> {
    let wrong = || invalid("a header with a number that is none");
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let is_negative = first & 0x40 != 0;
        let inverted: u8 = if is_negative { 0xff } else { 0 };
        let mut value = i64::from((first ^ inverted) & 0x7f);
        for byte in rest {
            let digit = i64::from(byte ^ inverted);
            let shifted = value.checked_mul(256).ok_or_else(wrong)?;
            value = shifted + digit;
        }
        return Ok(if is_negative { !value } else { value });
    }
    let is_blank = |byte: &u8| matches!(byte, 0 | b' ');
    let Some(begin) = field.iter().position(|byte| !is_blank(byte)) else {
        return Ok(0);
    };
    let digits = std::str::from_utf8(text(&field[begin..])).map_err(|_| wrong())?;
    let digits = digits.trim_end_matches(' ');
    i64::from_str_radix(digits, 8).map_err(|_| wrong())
}

/// A number of a header that is not negative.
fn count(field: &[u8]) -> io::Result<u64> {
    u64::try_from(number(field)?).map_err(|_| invalid("a header with a number below zero"))
}

/// A number of a PAX record.
pub(crate) fn decimal<T: std::str::FromStr>(digits: &[u8]) -> io::Result<T> {
    let digits = std::str::from_utf8(digits).ok();
    let number = digits.and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| invalid("a PAX record with a number that is none"))
}

/// A time of a PAX record: seconds, with as many digits behind the point as somebody wanted.
fn time(value: &[u8]) -> io::Result<Timespec> {
    let point = value.iter().position(|byte| *byte == b'.');
    let (seconds, parts) = match point {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &[][..]),
    };
    let seconds: i64 = decimal(seconds)?;
    if !parts.iter().all(u8::is_ascii_digit) {
        return Err(invalid("a PAX record with a time that is none"));
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = parts.get(place).map_or(0, |digit| i64::from(digit - b'0'));
        nanoseconds = nanoseconds * 10 + digit;
    }
    Ok(match value.starts_with(b"-") {
        true => at(-1, 0),
        false => at(seconds, nanoseconds),
    })
}

/// A time as files have it, or their first where it is out of range.
fn at(seconds: i64, nanoseconds: i64) -> Timespec {
    let (tv_sec, tv_nsec) = match (0..LATEST).contains(&seconds) {
        true => (seconds, nanoseconds),
        false => (0, 0),
    };
    Timespec { tv_sec, tv_nsec }
}

#[cfg(test)]
mod tests;
