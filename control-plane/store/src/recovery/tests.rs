//! A tail with changes of the members, directories that cannot be recovered, and a real cluster that lost its majority.

use std::path::PathBuf;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, HardState,
};

use super::*;
use crate::member::membership::MemberRole;
use crate::record::encode_transaction;
use crate::store::Store;
use crate::transport::NoPeers;
use crate::types::{Index, Key, Operation, Table, Transaction, WatchError};

fn key(name: &str) -> Key {
    Key {
        table: Table("pods".into()),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn entry(index: u64, name: &str) -> LogEntry {
    let put = Operation::Put {
        key: key(name),
        value: Bytes::from_static(b"{}"),
        index: Index::default(),
    };
    let transaction = Transaction {
        guards: Vec::new(),
        operations: vec![put],
    };
    LogEntry {
        index,
        term: 4,
        data: encode_transaction(&transaction, &Encryption::default()),
        ..LogEntry::default()
    }
}

/// An entry that changes the members through joint consensus, or leaves that.
fn change(index: u64, changes: &[(u64, ConfChangeType)]) -> LogEntry {
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Implicit);
    for (node_id, kind) in changes {
        let mut single = ConfChangeSingle {
            node_id: *node_id,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(*kind);
        change.mut_changes().push(single);
    }
    let mut entry = LogEntry {
        index,
        term: 4,
        data: protobuf::Message::write_to_bytes(&change).unwrap(),
        ..LogEntry::default()
    };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    entry
}

fn config(dir: &Path, member_id: u64) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        member_id,
        voters: Vec::new(),
        ..StoreConfig::default()
    }
}

/// The directory of a stopped member of `members`, with this log after the entry 1.
fn stopped(dir: &Path, members: &ConfState, log: &[LogEntry], commit: u64) {
    let engine = Arc::new(FjallEngine::open(dir, false).unwrap());
    let volume = Volume::new(dir, engine, Encryption::default());
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.commit) = (4, commit);
    volume.bootstrap((1, 1), &hard_state, members).unwrap();
    volume.append(log, 1, &hard_state, true).unwrap();
}

async fn open(config: StoreConfig) -> Result<Store, OpenError> {
    Store::open(config, Arc::new(NoPeers)).await
}

#[tokio::test]
async fn pending_changes_do_not_bring_the_others_back() {
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    let three = ConfState::from((vec![1, 2, 3], Vec::new()));
    let mut joint = three.clone();
    joint.voters_outgoing = vec![1, 2, 4];
    joint.learners = vec![5];
    joint.auto_leave = true;
    let replace = [(1, RemoveNode), (4, AddNode), (5, AddLearnerNode)];
    // Committed, not known to be, or begun before the state on disk.
    let cases = [
        (&three, change(3, &replace), change(5, &[]), 2, 2),
        (&three, change(3, &replace), change(5, &[]), 6, 2),
        (&joint, change(3, &[]), entry(5, "c"), 6, 1),
    ];
    for (members, first, second, commit, undone) in cases {
        let dir = tempfile::tempdir().unwrap();
        let log = [
            entry(2, "a"),
            first,
            entry(4, "b"),
            second,
            entry(6, "last"),
        ];
        stopped(dir.path(), members, &log, commit);
        let home = config(dir.path(), 2);
        let recovery = become_sole_voter(&home).unwrap();
        assert_eq!(recovery.last, (Term(4), 6));
        assert_eq!((recovery.unapplied, recovery.changes_undone), (5, undone));
        assert!(!recovery.dropped.contains(&2) && recovery.dropped.contains(&3));
        let again = become_sole_voter(&home).unwrap();
        assert_eq!((again.dropped, again.changes_undone), (Vec::new(), 0));
        let store = open(home).await.unwrap();
        assert!(store.leadership().borrow().is_leader);
        for name in ["a", "b", "last"] {
            assert!(store.get(&key(name)).is_some(), "{name}");
        }
        // Whoever saw what only the others had must not take what comes now for it.
        assert!(store.revision() > Revision(REVISION_GAP));
        let watch = store.watch(&[Table("pods".into())], Revision(2));
        assert!(matches!(watch, Err(WatchError::Compacted(_))), "{watch:?}");
        let members = store.members().await;
        let roles: Vec<_> = members
            .iter()
            .map(|member| (member.id, member.role))
            .collect();
        assert_eq!(roles, [(2, MemberRole::Voter)]);
        let more = Transaction {
            guards: Vec::new(),
            operations: vec![Operation::Delete {
                key: key("a"),
                last: None,
            }],
        };
        store.propose(more).await.unwrap();
        store.shutdown().await;
    }
}

#[tokio::test]
async fn what_cannot_be_recovered_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let refusal = |path: PathBuf, member: u64| become_sole_voter(&config(&path, member));
    let missing = refusal(at("missing"), 1).unwrap_err();
    assert!(matches!(missing, OpenError::NoMember { .. }), "{missing}");
    assert!(!at("missing").exists());
    // A member that was never given a state.
    let waiting = open(config(&at("waiting"), 1)).await.unwrap();
    let locked = refusal(at("waiting"), 1).unwrap_err();
    assert!(matches!(locked, OpenError::Locked { .. }), "{locked}");
    waiting.shutdown().await;
    let stateless = refusal(at("waiting"), 1).unwrap_err();
    assert!(
        matches!(stateless, OpenError::NoState { .. }),
        "{stateless}"
    );
    let three = ConfState::from((vec![1, 2, 3], Vec::new()));
    stopped(&at("of2"), &three, &[entry(2, "a")], 2);
    let stranger = refusal(at("of2"), 7).unwrap_err().to_string();
    assert!(
        stranger.contains("[1, 2, 3], and 7 is none of them"),
        "{stranger}"
    );
    refusal(at("of2"), 2).unwrap();
}
