//! Apply over generated histories: deterministic, all or nothing, reversible, and unchanged by its encodings.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::encryption::Encryption;
use crate::handover::{Cut, Taken};
use crate::record::{Decoder, encode_row, encode_transaction};
use crate::types::Index;

const UNBOUNDED: HistoryLimits = HistoryLimits {
    events: usize::MAX,
    bytes: usize::MAX,
};

fn key() -> impl Strategy<Value = Key> {
    ("[ab]", "[xy]?", "[a-d]").prop_map(|(table, namespace, name)| Key {
        table: Table(table.into()),
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn value() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn guard() -> impl Strategy<Value = Guard> {
    prop_oneof![
        (key(), 0..20_u64).prop_map(|(key, at)| Guard::ModifiedAt(key, Revision(at))),
        key().prop_map(Guard::Exists),
        key().prop_map(Guard::Absent),
        (0..3_u64).prop_map(|term| Guard::Term(Term(term))),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let pairs = || proptest::collection::vec(("[a-z]{1,3}", "[a-z]{0,3}"), 0..3);
    prop_oneof![
        3 => (key(), value(), pairs(), pairs()).prop_map(|(key, value, labels, fields)| {
            Operation::Put { key, value, index: Index { labels, fields } }
        }),
        1 => (key(), proptest::option::of(value()))
            .prop_map(|(key, last)| Operation::Delete { key, last }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Transaction>> {
    let transaction = (
        proptest::collection::vec(guard(), 0..2),
        proptest::collection::vec(operation(), 0..4),
    )
        .prop_map(|(guards, operations)| Transaction { guards, operations });
    proptest::collection::vec(transaction, 0..40)
}

fn cut() -> Cut {
    Cut {
        bytes: 150,
        encryption: Encryption::default(),
    }
}

fn run(history: &[Transaction], limits: HistoryLimits) -> State {
    let mut state = State::default();
    for transaction in history {
        if let Ok(events) = state.apply(transaction.clone(), Term(1)) {
            state.remember(&events, limits);
        }
    }
    state
}

proptest! {
    #[test]
    fn the_same_log_leads_to_the_same_state(history in history()) {
        let mut log = Vec::new();
        for transaction in &history {
            log.extend(encode_transaction(transaction, &Encryption::default()));
        }
        let decoded = Decoder::default().transactions(&log).unwrap();
        prop_assert_eq!(&decoded, &history);
        let forgetful = HistoryLimits { events: 1, bytes: 1 };
        prop_assert_eq!(run(&history, UNBOUNDED).encode(), run(&decoded, forgetful).encode());
    }

    #[test]
    fn a_state_survives_its_journey_in_chunks(history in history()) {
        let state = run(&history, UNBOUNDED);
        let taken = Taken::new(raft::eraftpb::SnapshotMetadata::default(), state.clone(), cut());
        let mut copy = State::default();
        let mut decoder = Decoder::default();
        for number in 0.. {
            let (rows, last) = taken.chunk(number).unwrap();
            let mut rest = &rows[..];
            while !rest.is_empty() {
                let row: Vec<u8> = prost::Message::decode_length_delimited(&mut rest).unwrap();
                let (key, entry) = decoder.row(&row).unwrap();
                copy.insert(key, entry);
            }
            if last {
                prop_assert!(taken.chunk(number + 1).is_none());
                break;
            }
        }
        copy.restart_at(state.revision);
        prop_assert_eq!(copy.encode(), state.encode());
        prop_assert_eq!(copy.fingerprint(), state.fingerprint());
        // A sender that has just started finds the same chunk in the middle.
        let again = Taken::new(raft::eraftpb::SnapshotMetadata::default(), state, cut());
        prop_assert_eq!(again.chunk(2), taken.chunk(2));
    }

    #[test]
    fn a_refused_transaction_changes_nothing(history in history(), refused in history()) {
        let mut state = run(&history, UNBOUNDED);
        for transaction in refused {
            let before = (state.encode(), state.fingerprint());
            if state.apply(transaction, Term(1)).is_err() {
                prop_assert_eq!(before, (state.encode(), state.fingerprint()));
            }
        }
    }

    #[test]
    fn every_remembered_revision_can_be_listed(history in history()) {
        let table = Table("a".into());
        let mut state = State::default();
        let mut then = vec![state.snapshot(&table)];
        for transaction in history {
            if let Ok(events) = state.apply(transaction, Term(1)) {
                state.remember(&events, UNBOUNDED);
                then.push(state.snapshot(&table));
            }
        }
        for expected in then {
            let undone = state.undo_to(&table, expected.revision).unwrap().run();
            prop_assert_eq!(undone.rows, expected.rows);
        }
    }

    #[test]
    fn events_replay_to_the_state(history in history()) {
        let state = run(&history, UNBOUNDED);
        let mut replayed = State::default();
        for event in &state.history {
            let rows = replayed.tables.entry(event.key.table.clone()).or_default();
            let row = (Arc::clone(&event.key.namespace), Arc::clone(&event.key.name));
            prop_assert_eq!(rows.get(&row), event.previous.as_ref());
            if event.deleted {
                rows.remove(&row);
            } else {
                rows.insert(row, Arc::clone(&event.entry));
            }
            replayed.revision = event.revision;
        }
        prop_assert_eq!(replayed.encode(), state.encode());
    }
}

#[test]
fn history_keeps_whole_revisions_within_its_bytes() {
    let put = |name: &str| Operation::Put {
        key: Key {
            table: Table("a".into()),
            namespace: "".into(),
            name: name.into(),
        },
        value: Bytes::from(vec![0; 1_000]),
        index: Index::default(),
    };
    let pair = Transaction {
        guards: Vec::new(),
        operations: vec![put("x"), put("y")],
    };
    let limits = HistoryLimits {
        events: 100,
        bytes: 4_000,
    };
    let state = run(&vec![pair; 5], limits);
    let kept: Vec<u64> = state.history.iter().map(|event| event.revision.0).collect();
    assert_eq!(kept, [5, 5]);
    assert_eq!(state.compacted, Revision(4));
}

impl State {
    /// The revision and every object: equal states have equal bytes.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.revision.0.to_le_bytes().to_vec();
        for (key, entry) in self.rows() {
            bytes.extend(encode_row(&key, entry, &Encryption::default()));
        }
        bytes
    }
}
