//! Records that were damaged on disk are refused by name.

use super::*;

fn entry(index: u64) -> LogEntry {
    let mut entry = LogEntry::default();
    (entry.index, entry.term, entry.data) = (index, 1, b"data".to_vec());
    entry
}

fn disk_with_log(path: &Path) -> Disk {
    let disk = Disk::open(path).unwrap();
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.commit) = (1, 1);
    let conf_state = ConfState::from((vec![1], Vec::new()));
    disk.bootstrap((1, 1), &hard_state, &conf_state).unwrap();
    disk.append(&[entry(2), entry(3)], 1, &hard_state).unwrap();
    disk
}

fn refusal(disk: &Disk) -> String {
    match disk.recover() {
        Err(error @ OpenError::Corrupt { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("damage was not seen"),
    }
}

#[test]
fn a_damaged_entry_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_with_log(dir.path());
    let found = disk.recover().unwrap().unwrap();
    assert_eq!(found.entries, [entry(2), entry(3)]);
    disk.damage(&disk.log, &entry_key(3));
    let message = refusal(&disk);
    assert!(message.contains("log entry 3"), "{message}");
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
}

#[test]
fn a_missing_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_with_log(dir.path());
    disk.log.remove(entry_key(2)).unwrap();
    assert!(refusal(&disk).contains("log entry 2 is missing"));
}

#[test]
fn a_damaged_object_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_with_log(dir.path());
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
        conf_state: ConfState::default(),
        rows: HashMap::from([(key.clone(), Some(Arc::new(row)))]),
    };
    disk.write_state(&run).unwrap();
    disk.damage(&disk.state, &row_key(&key));
    assert!(refusal(&disk).contains("core/pods default web-0"));
}

#[test]
fn a_state_ahead_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_with_log(dir.path());
    let run = Applied {
        index: 9,
        revision: Revision(1),
        conf_state: ConfState::default(),
        rows: HashMap::new(),
    };
    disk.write_state(&run).unwrap();
    assert!(refusal(&disk).contains("entry 9"));
}

#[test]
fn appending_replaces_what_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk_with_log(dir.path());
    let mut newer = entry(2);
    newer.term = 2;
    disk.append(std::slice::from_ref(&newer), 3, &HardState::default())
        .unwrap();
    assert_eq!(disk.recover().unwrap().unwrap().entries, [newer]);
}

impl Disk {
    /// Flips a bit, as a failing disk would.
    fn damage(&self, keyspace: &Keyspace, key: &[u8]) {
        let mut record = keyspace.get(key).unwrap().unwrap().to_vec();
        *record.last_mut().unwrap() ^= 1;
        keyspace.insert(key, record).unwrap();
    }
}
