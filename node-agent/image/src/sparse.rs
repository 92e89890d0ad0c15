//! Files with holes, in the forms in which GNU tar writes them ("Storing Sparse Files" in its manual): in PAX archives, 0.0 and
//! 0.1 have their map in records of the header, 1.0 at the start of the content; in its own archives the header has it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::ftruncate;

use crate::entries::Records;
use crate::root::invalid;

/// More pieces than files have: each costs memory before anything is written.
const PIECES: usize = 1 << 20;
/// A tar's unit.
const BLOCK: u64 = 512;

/// A file of which the archive has the pieces that are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Its name, where the entry has a made-up one.
    pub(crate) name: Option<PathBuf>,
    /// The file's size with its holes.
    size: u64,
    /// Where each piece begins in the file, and its length; `None` when the content begins with that.
    map: Option<Vec<(u64, u64)>>,
}

/// What an entry's records say of holes; `None` when they say nothing.
pub(crate) fn of(records: &Records) -> io::Result<Option<Sparse>> {
    let mut sparse = Sparse::default();
    let (mut is_sparse, mut is_newest) = (false, false);
    let mut numbers: Vec<u64> = Vec::new();
    for (key, value) in records.iter() {
        let Some(field) = key.strip_prefix(b"GNU.sparse.") else {
            continue;
        };
        is_sparse = true;
        match field {
            b"name" => sparse.name = Some(std::ffi::OsStr::from_bytes(value).into()),
            b"size" | b"realsize" => sparse.size = number(value)?,
            b"major" => is_newest = number(value)? == 1,
            b"offset" | b"numbytes" => numbers.push(number(value)?),
            // Of a file that is one hole.
            b"map" if value.is_empty() => {}
            b"map" => {
                for piece in value.split(|byte| *byte == b',') {
                    numbers.push(number(piece)?);
                    bounded(numbers.len())?;
                }
            }
            _ => {}
        }
        bounded(numbers.len())?;
    }
    if !is_newest {
        sparse.map = Some(pairs(&numbers)?);
    }
    Ok(is_sparse.then_some(sparse))
}

impl Sparse {
    /// One whose map is known: where each piece begins, and its length.
    pub(crate) fn of_pieces(size: u64, map: Vec<(u64, u64)>) -> Self {
        Self {
            name: None,
            size,
            map: Some(map),
        }
    }

    /// Writes the file; returns the bytes that are in it without its holes.
    pub(crate) fn write(&self, content: &mut impl Read, file: &mut File) -> io::Result<u64> {
        let read;
        let map = match &self.map {
            Some(map) => map,
            None => {
                read = read_map(content)?;
                &read
            }
        };
        let mut written = 0;
        for &(offset, length) in map {
            let end = offset.checked_add(length);
            if end.is_none_or(|end| end > self.size) {
                return Err(invalid("a piece of a sparse file lies outside of it"));
            }
            file.seek(SeekFrom::Start(offset))?;
            if io::copy(&mut content.take(length), file)? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            written += length;
        }
        ftruncate(&*file, self.size)?;
        Ok(written)
    }
}

/// Decimal lines: how many pieces, then where each begins and how long it is; filled up to a whole block.
fn read_map(content: &mut impl Read) -> io::Result<Vec<(u64, u64)>> {
    let mut read = 0_u64;
    let mut line = || -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            let mut byte = [0];
            content.read_exact(&mut byte)?;
            read += 1;
            match byte[0] {
                b'\n' => return number(&digits),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(invalid("the map of a sparse file is no list of numbers")),
            }
        }
    };
    let count = usize::try_from(line()?).unwrap_or(usize::MAX);
    bounded(count.saturating_mul(2))?;
    let mut numbers = Vec::new();
    for _ in 0..count * 2 {
        numbers.push(line()?);
    }
    let rest = read.next_multiple_of(BLOCK) - read;
    io::copy(&mut content.take(rest), &mut io::sink())?;
    pairs(&numbers)
}

fn bounded(numbers: usize) -> io::Result<()> {
    match numbers <= 2 * PIECES {
        true => Ok(()),
        false => Err(invalid("a sparse file has too many pieces")),
    }
}

fn pairs(numbers: &[u64]) -> io::Result<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    match rest.is_empty() {
        true => Ok(pairs
            .iter()
            .map(|[offset, length]| (*offset, *length))
            .collect()),
        false => Err(invalid("the map of a sparse file is not whole")),
    }
}

fn number(digits: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| invalid("the map of a sparse file is no list of numbers"))
}
