//! Records that were damaged on disk are refused by name.

use std::collections::HashMap;

use super::*;
use crate::disk::fjall::FjallEngine;
use crate::level::FEATURE_LEVEL;
use crate::types::{Entry, Key};

fn entry(index: u64) -> LogEntry {
    let mut entry = LogEntry::default();
    (entry.index, entry.term, entry.data) = (index, 1, b"data".to_vec());
    entry
}

fn volume_with_log(path: &Path) -> Volume {
    let volume = Volume::new(
        path,
        Arc::new(FjallEngine::open(path, false).unwrap()),
        Encryption::default(),
    );
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.commit) = (1, 1);
    let conf_state = ConfState::from((vec![1], Vec::new()));
    volume.bootstrap((1, 1), &hard_state, &conf_state).unwrap();
    volume
        .append(&[entry(2), entry(3)], 1, &hard_state, true)
        .unwrap();
    volume
}

fn refusal(volume: &Volume) -> String {
    match volume.recover(FEATURE_LEVEL) {
        Err(error @ OpenError::Corrupt { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("damage was not seen"),
    }
}

#[test]
fn a_damaged_entry_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let volume = volume_with_log(dir.path());
    let found = volume.recover(FEATURE_LEVEL).unwrap().unwrap();
    assert_eq!(found.entries, [entry(2), entry(3)]);
    volume.damage(Space::Log, &entry_key(3));
    let message = refusal(&volume);
    assert!(message.contains("log entry 3"), "{message}");
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
}

#[test]
fn a_missing_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let volume = volume_with_log(dir.path());
    volume.change(Space::Log, &entry_key(2), None);
    assert!(refusal(&volume).contains("log entry 2 is missing"));
}

#[test]
fn a_damaged_object_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let volume = volume_with_log(dir.path());
    let key = Key {
        table: crate::types::Table("core/pods".into()),
        namespace: "default".into(),
        name: "web-0".into(),
    };
    let row = Entry {
        value: bytes::Bytes::from_static(b"{}"),
        index: crate::types::Index::default(),
        create_revision: Revision(1),
        modify_revision: Revision(1),
    };
    let run = Applied {
        index: 2,
        revision: Revision(1),
        level: None,
        conf_state: ConfState::default(),
        rows: HashMap::from([(key.clone(), Some(Arc::new(row)))]),
    };
    volume.write_state(&run).unwrap();
    volume.damage(Space::State, &row_key(&key));
    assert!(refusal(&volume).contains("core/pods default web-0"));
}

#[test]
fn a_state_ahead_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let volume = volume_with_log(dir.path());
    let run = Applied {
        index: 9,
        revision: Revision(1),
        level: None,
        conf_state: ConfState::default(),
        rows: HashMap::new(),
    };
    volume.write_state(&run).unwrap();
    assert!(refusal(&volume).contains("entry 9"));
}

#[test]
fn appending_replaces_what_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let volume = volume_with_log(dir.path());
    let mut newer = entry(2);
    newer.term = 2;
    volume
        .append(std::slice::from_ref(&newer), 3, &HardState::default(), true)
        .unwrap();
    assert_eq!(
        volume.recover(FEATURE_LEVEL).unwrap().unwrap().entries,
        [newer]
    );
}

impl Volume {
    /// Flips a bit, as a failing disk would.
    fn damage(&self, space: Space, key: &[u8]) {
        let mut record = self.engine.get(space, key).unwrap().unwrap().to_vec();
        *record.last_mut().unwrap() ^= 1;
        self.change(space, key, Some(record));
    }

    fn change(&self, space: Space, key: &[u8], record: Option<Vec<u8>>) {
        let batch = vec![(space, key.to_vec(), record)];
        self.engine.commit(batch, false).unwrap();
    }
}
