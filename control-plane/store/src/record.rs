//! The bytes of transactions, rows and log entries: on disk, in the log and between members.
//!
//! Every record on disk starts with its CRC-32, so that a damaged one is refused rather than applied.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::encryption::{Encryption, TransformError};
use crate::types::{Entry, Guard, Index, Key, Operation, Revision, Table, Term, Transaction};

/// Bytes that are not a record of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it does not match its checksum")]
    Checksum,
    #[error("it is cut short")]
    Short,
    #[error("it cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("it holds an unknown {0}")]
    Unknown(&'static str),
    #[error(transparent)]
    Sealed(#[from] TransformError),
}

#[derive(Clone, PartialEq, Message)]
struct KeyRecord {
    #[prost(string, tag = "1")]
    table: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct PairRecord {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Which of [`Guard`]; the numbers are part of the log's format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum GuardKind {
    Unset = 0,
    ModifiedAt = 1,
    Exists = 2,
    Absent = 3,
    Term = 4,
}

#[derive(Clone, PartialEq, Message)]
struct GuardRecord {
    #[prost(enumeration = "GuardKind", tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    key: Option<KeyRecord>,
    #[prost(uint64, tag = "3")]
    number: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OperationRecord {
    #[prost(message, optional, tag = "1")]
    key: Option<KeyRecord>,
    #[prost(bool, tag = "2")]
    delete: bool,
    #[prost(bytes = "bytes", optional, tag = "3")]
    value: Option<Bytes>,
    #[prost(message, repeated, tag = "4")]
    labels: Vec<PairRecord>,
    #[prost(message, repeated, tag = "5")]
    fields: Vec<PairRecord>,
    #[prost(bool, tag = "6")]
    sealed: bool,
}

#[derive(Clone, PartialEq, Message)]
struct TransactionRecord {
    #[prost(message, repeated, tag = "1")]
    guards: Vec<GuardRecord>,
    #[prost(message, repeated, tag = "2")]
    operations: Vec<OperationRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct RowRecord {
    #[prost(message, optional, tag = "1")]
    key: Option<KeyRecord>,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<PairRecord>,
    #[prost(message, repeated, tag = "4")]
    fields: Vec<PairRecord>,
    #[prost(uint64, tag = "5")]
    create_revision: u64,
    #[prost(uint64, tag = "6")]
    modify_revision: u64,
    #[prost(bool, tag = "7")]
    sealed: bool,
}

fn key_record(key: &Key) -> KeyRecord {
    KeyRecord {
        table: key.table.0.to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

fn pairs(list: &[(String, String)]) -> Vec<PairRecord> {
    let pair = |(key, value): &(String, String)| PairRecord {
        key: key.clone(),
        value: value.clone(),
    };
    list.iter().map(pair).collect()
}

fn index(labels: Vec<PairRecord>, fields: Vec<PairRecord>) -> Index {
    let list = |pairs: Vec<PairRecord>| {
        pairs
            .into_iter()
            .map(|pair| (pair.key, pair.value))
            .collect()
    };
    Index {
        labels: list(labels),
        fields: list(fields),
    }
}

/// Decodes records, sharing the few names that every key repeats.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    names: HashSet<Arc<str>>,
    encryption: Encryption,
}

impl Decoder {
    /// One that opens what was sealed.
    pub(crate) fn new(encryption: Encryption) -> Decoder {
        Decoder {
            encryption,
            ..Decoder::default()
        }
    }

    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        // Names of long gone namespaces must not pile up.
        if self.names.len() >= 10_000 {
            self.names.clear();
        }
        let new: Arc<str> = Arc::from(name);
        self.names.insert(Arc::clone(&new));
        new
    }

    fn key(&mut self, record: Option<KeyRecord>) -> Result<Key, RecordError> {
        let record = record.ok_or(RecordError::Unknown("key"))?;
        Ok(Key {
            table: Table(self.shared(&record.table)),
            namespace: self.shared(&record.namespace),
            name: Arc::from(record.name),
        })
    }

    /// The transactions of a log entry.
    pub(crate) fn transactions(
        &mut self,
        mut data: &[u8],
    ) -> Result<Vec<Transaction>, RecordError> {
        let mut transactions = Vec::new();
        while !data.is_empty() {
            let record = TransactionRecord::decode_length_delimited(&mut data)?;
            transactions.push(self.transaction(record)?);
        }
        Ok(transactions)
    }

    fn transaction(&mut self, record: TransactionRecord) -> Result<Transaction, RecordError> {
        let mut transaction = Transaction::default();
        for guard in record.guards {
            let kind =
                GuardKind::try_from(guard.kind).map_err(|_| RecordError::Unknown("guard"))?;
            transaction.guards.push(match kind {
                GuardKind::Unset => return Err(RecordError::Unknown("guard")),
                GuardKind::ModifiedAt => {
                    Guard::ModifiedAt(self.key(guard.key)?, Revision(guard.number))
                }
                GuardKind::Exists => Guard::Exists(self.key(guard.key)?),
                GuardKind::Absent => Guard::Absent(self.key(guard.key)?),
                GuardKind::Term => Guard::Term(Term(guard.number)),
            });
        }
        for operation in record.operations {
            let key = self.key(operation.key)?;
            let value = operation.value;
            let value = value
                .map(|value| self.encryption.open(&key, value, operation.sealed))
                .transpose()?;
            transaction.operations.push(if operation.delete {
                Operation::Delete { key, last: value }
            } else {
                Operation::Put {
                    key,
                    value: value.unwrap_or_default(),
                    index: index(operation.labels, operation.fields),
                }
            });
        }
        Ok(transaction)
    }

    /// Which object a row is of, and whether its value is sealed; the value is not looked at.
    pub(crate) fn name(&mut self, data: &[u8]) -> Result<(Key, bool), RecordError> {
        let record = RowRecord::decode(data)?;
        Ok((self.key(record.key)?, record.sealed))
    }

    /// One row, as [`encode_row`] wrote it.
    pub(crate) fn row(&mut self, data: &[u8]) -> Result<(Key, Entry), RecordError> {
        let record = RowRecord::decode(data)?;
        let key = self.key(record.key)?;
        let entry = Entry {
            value: self.encryption.open(&key, record.value, record.sealed)?,
            index: index(record.labels, record.fields),
            create_revision: Revision(record.create_revision),
            modify_revision: Revision(record.modify_revision),
        };
        Ok((key, entry))
    }
}

/// One transaction; those of an entry are written one after another.
pub(crate) fn encode_transaction(transaction: &Transaction, encryption: &Encryption) -> Vec<u8> {
    let guard = |guard: &Guard| {
        let (kind, key, number) = match guard {
            Guard::ModifiedAt(key, revision) => (GuardKind::ModifiedAt, Some(key), revision.0),
            Guard::Exists(key) => (GuardKind::Exists, Some(key), 0),
            Guard::Absent(key) => (GuardKind::Absent, Some(key), 0),
            Guard::Term(term) => (GuardKind::Term, None, term.0),
        };
        GuardRecord {
            kind: kind.into(),
            key: key.map(key_record),
            number,
        }
    };
    let operation = |operation: &Operation| match operation {
        Operation::Put { key, value, index } => {
            let (value, sealed) = encryption.seal(key, value);
            OperationRecord {
                key: Some(key_record(key)),
                delete: false,
                value: Some(value),
                labels: pairs(&index.labels),
                fields: pairs(&index.fields),
                sealed,
            }
        }
        Operation::Delete { key, last } => {
            let (last, sealed) = last.as_ref().map(|last| encryption.seal(key, last)).unzip();
            OperationRecord {
                key: Some(key_record(key)),
                delete: true,
                value: last,
                labels: Vec::new(),
                fields: Vec::new(),
                sealed: sealed.unwrap_or_default(),
            }
        }
    };
    TransactionRecord {
        guards: transaction.guards.iter().map(guard).collect(),
        operations: transaction.operations.iter().map(operation).collect(),
    }
    .encode_length_delimited_to_vec()
}

/// The transactions of an entry, each as it was encoded; what cannot be split is left out.
pub(crate) fn split_transactions(data: &Bytes) -> Vec<Bytes> {
    let mut rest = data.clone();
    let mut transactions = Vec::new();
    while !rest.is_empty() {
        let mut body = &rest[..];
        let Ok(length) = prost::decode_length_delimiter(&mut body) else {
            break;
        };
        let whole = length.saturating_add(rest.len() - body.len());
        if whole > rest.len() {
            break;
        }
        transactions.push(rest.split_to(whole));
    }
    transactions
}

/// One object of the state.
pub(crate) fn encode_row(key: &Key, entry: &Entry, encryption: &Encryption) -> Vec<u8> {
    let (value, sealed) = encryption.seal(key, &entry.value);
    RowRecord {
        key: Some(key_record(key)),
        value,
        labels: pairs(&entry.index.labels),
        fields: pairs(&entry.index.fields),
        create_revision: entry.create_revision.0,
        modify_revision: entry.modify_revision.0,
        sealed,
    }
    .encode_to_vec()
}

/// The record with its checksum before it.
pub(crate) fn seal(body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(4 + body.len());
    record.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    record.extend_from_slice(body);
    record
}

/// The record without its checksum, which must match.
pub(crate) fn unseal(record: &[u8]) -> Result<&[u8], RecordError> {
    let (sum, body) = record.split_first_chunk::<4>().ok_or(RecordError::Short)?;
    if crc32fast::hash(body) == u32::from_le_bytes(*sum) {
        Ok(body)
    } else {
        Err(RecordError::Checksum)
    }
}
