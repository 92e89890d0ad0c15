use super::*;

fn secret(number: usize, credentials: &str) -> SecretUsed {
    SecretUsed {
        uid: format!("uid-{number}"),
        namespace: "d".to_owned(),
        name: format!("secret-{number}"),
        credentials: credentials.to_owned(),
    }
}

fn open(directory: &Path) -> Arc<PullRecords> {
    Arc::new(PullRecords::open(directory, PullVerification::default()).unwrap())
}

#[test]
fn what_is_noted_of_a_pull() {
    let mut access = Access::default();
    assert!(access.note(Some(&secret(1, "a"))));
    assert!(!access.note(Some(&secret(1, "a"))));
    assert!(access.note(Some(&secret(2, "a"))));
    // Its content was changed.
    assert!(access.note(Some(&secret(1, "b"))));
    assert_eq!(access.secrets, [secret(2, "a"), secret(1, "b")]);
    for number in 3..200 {
        access.note(Some(&secret(number, "c")));
    }
    assert_eq!(access.secrets.len(), SECRETS);
    assert_eq!(access.secrets.last(), Some(&secret(199, "c")));
    assert!(access.note(None));
    assert_eq!((access.node_wide, access.secrets.len()), (true, 0));
    assert!(!access.note(None) && !access.note(Some(&secret(1, "a"))));
}

#[test]
fn who_vouches_for_whom() {
    let used = secret(1, "a");
    assert!(secret(2, "a").vouches_for(&used), "the same credentials");
    assert!(secret(1, "b").vouches_for(&used), "the same Secret");
    assert!(!secret(2, "b").vouches_for(&used));
    let mut elsewhere = secret(1, "b");
    elsewhere.namespace = "other".to_owned();
    assert!(!elsewhere.vouches_for(&used));
}

#[test]
fn records_are_kept_and_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let id = format!("sha256:{}", "a".repeat(64));
    let records = open(directory.path());
    for number in 0..REPOSITORIES + 3 {
        let repository = format!("r.example/{number:03}");
        records.note(&id, &repository, None).unwrap();
    }
    let again = open(directory.path());
    let known = again.known.lock();
    let record = &known.records[&id];
    assert_eq!(record.repositories.len(), REPOSITORIES);
    assert!(record.repositories.values().all(|access| access.node_wide));
}

#[test]
fn a_damaged_record_says_that_the_image_was_pulled_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let hash = "a".repeat(64);
    fs::write(directory.path().join(format!("{hash}.json")), "{").unwrap();
    fs::write(directory.path().join(format!("{hash}.json.new")), "").unwrap();
    let records = open(directory.path());
    let known = records.known.lock();
    let record = &known.records[&format!("sha256:{hash}")];
    assert!(record.repositories.is_empty());
    assert_eq!(known.records.len(), 1);
}

#[test]
fn an_intent_is_on_the_disk_for_as_long_as_any_pull_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let records = open(directory.path());
    let intents = || open(directory.path()).intents();
    // Intents end outside of it, where the disk is waited for.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let intend = |reference| runtime.block_on(records.intend(reference)).unwrap();
    let first = intend("r.example/a:1");
    let second = intend("r.example/a:1");
    let other = intend("r.example/b:1");
    assert_eq!(intents(), ["r.example/a:1", "r.example/b:1"]);
    drop(first);
    drop(other);
    assert_eq!(intents(), ["r.example/a:1"]);
    drop(second);
    assert!(intents().is_empty());
}
