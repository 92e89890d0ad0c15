//! The file of a backup, front to back, without going back: it can be piped.
//!
//! ```text
//! magic      8 bytes
//! format     u32, little endian, as all numbers
//! header     u32 length, checksum (CRC-32), `Header`
//! rows       each: u32 length, never 0; a row as on disk, sealed where a transformer covers it
//! end        u32 0
//! trailer    u64 number of rows, SHA-256 of everything before the hash
//! ```

use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{BackupError, BackupSummary};
use crate::encryption::Encryption;
use crate::level::Level;
use crate::record::{RecordError, encode_row, seal, unseal};
use crate::types::{Entry, Key, Revision, Table};

const MAGIC: &[u8; 8] = b"GANTRYBK";
const FORMAT: u32 = 1;
const BUFFER: usize = 256 << 10;

/// What a backup says of itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(uint32, tag = "1")]
    pub(super) level: u32,
    #[prost(uint64, tag = "2")]
    pub(super) revision: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) creation: Vec<u8>,
}

impl Header {
    fn summary(self) -> BackupSummary {
        BackupSummary {
            creation: self.creation,
            level: self.level,
            revision: Revision(self.revision),
            tables: Default::default(),
            rows: 0,
            sealed: 0,
            bytes: 0,
        }
    }
}

impl BackupSummary {
    fn count(&mut self, table: Table, sealed: bool) {
        *self.tables.entry(table).or_default() += 1;
        self.rows += 1;
        self.sealed += u64::from(sealed);
    }
}

/// Writes the parts in their order.
pub(super) struct BackupWriter<W: Write> {
    file: BufWriter<W>,
    hash: Sha256,
    summary: BackupSummary,
}

impl<W: Write> BackupWriter<W> {
    pub(super) fn begin(file: W, header: Header) -> io::Result<BackupWriter<W>> {
        let record = seal(&header.encode_to_vec());
        let mut writer = BackupWriter {
            file: BufWriter::with_capacity(BUFFER, file),
            hash: Sha256::new(),
            summary: header.summary(),
        };
        writer.put(MAGIC)?;
        writer.put(&FORMAT.to_le_bytes())?;
        writer.frame(&record)?;
        Ok(writer)
    }

    pub(super) fn row(
        &mut self,
        key: &Key,
        entry: &Entry,
        encryption: &Encryption,
    ) -> io::Result<()> {
        self.frame(&encode_row(key, entry, encryption))?;
        self.summary
            .count(key.table.clone(), encryption.covers(&key.table));
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<BackupSummary> {
        self.put(&0_u32.to_le_bytes())?;
        self.put(&self.summary.rows.to_le_bytes())?;
        let hash = self.hash.clone().finalize();
        self.put(&hash)?;
        self.file.flush()?;
        Ok(self.summary)
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.put(&length.to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.summary.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

/// Reads the parts in their order. Nothing is certain before [`BackupReader::finish`].
pub(super) struct BackupReader<R> {
    file: BufReader<R>,
    hash: Sha256,
    summary: BackupSummary,
}

impl<R: Read> BackupReader<R> {
    /// Reads what comes before the rows; `known` is the highest feature level that may be read.
    pub(super) fn begin(file: R, known: u32) -> Result<BackupReader<R>, BackupError> {
        let mut reader = BackupReader {
            file: BufReader::with_capacity(BUFFER, file),
            hash: Sha256::new(),
            summary: Header::default().summary(),
        };
        let mut magic = Vec::new();
        let mut start = (&mut reader.file).take(MAGIC.len() as u64);
        start.read_to_end(&mut magic).map_err(BackupError::Read)?;
        if magic != MAGIC {
            return Err(BackupError::Foreign);
        }
        reader.hash.update(&magic);
        reader.summary.bytes += magic.len() as u64;
        let found = u32::from_le_bytes(reader.array()?);
        if found != FORMAT {
            let known = FORMAT;
            return Err(BackupError::Format { found, known });
        }
        let record = reader.frame()?;
        let header = unseal(&record)
            .and_then(|body| Ok(Header::decode(body)?))
            .map_err(|error| reader.damaged(&error))?;
        Level(header.level).known(known)?;
        let bytes = reader.summary.bytes;
        reader.summary = BackupSummary {
            bytes,
            ..header.summary()
        };
        Ok(reader)
    }

    /// The next row; `None` after the last.
    pub(super) fn row(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        let row = self.frame()?;
        Ok(Some(row).filter(|row| !row.is_empty()))
    }

    /// Counts a row that could be read.
    pub(super) fn count(&mut self, table: Table, sealed: bool) {
        self.summary.count(table, sealed);
    }

    /// The revision that was saved.
    pub(super) fn revision(&self) -> Revision {
        self.summary.revision
    }

    /// The level that the cluster had.
    pub(super) fn level(&self) -> Level {
        Level(self.summary.level)
    }

    /// Verifies the whole.
    pub(super) fn finish(mut self) -> Result<BackupSummary, BackupError> {
        let rows = u64::from_le_bytes(self.array()?);
        if rows != self.summary.rows {
            let found = self.summary.rows;
            return Err(self.wrong(format!("it has {found} rows instead of {rows}")));
        }
        let computed = self.hash.clone().finalize();
        let stored = self.array::<32>()?;
        if *computed != stored {
            return Err(self.wrong("it does not match its hash".to_owned()));
        }
        let mut rest = Vec::new();
        let more = (&mut self.file).take(1).read_to_end(&mut rest);
        match more.map_err(BackupError::Read)? {
            0 => Ok(self.summary),
            _ => Err(self.wrong("something follows on its end".to_owned())),
        }
    }

    pub(super) fn damaged(&self, error: &RecordError) -> BackupError {
        self.wrong(error.to_string())
    }

    fn wrong(&self, what: String) -> BackupError {
        let at = self.summary.bytes;
        BackupError::Damaged { what, at }
    }

    fn frame(&mut self) -> Result<Vec<u8>, BackupError> {
        let length = u32::from_le_bytes(self.array()?);
        self.bytes(u64::from(length))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let bytes = self.bytes(N as u64)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    /// A damaged length allocates no more than what is there.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, BackupError> {
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(count).read_to_end(&mut bytes);
        match read {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                return Err(BackupError::Read(error));
            }
            _ => {}
        }
        self.hash.update(&bytes);
        self.summary.bytes += bytes.len() as u64;
        if (bytes.len() as u64) < count {
            return Err(self.wrong("it is cut short".to_owned()));
        }
        Ok(bytes)
    }
}
