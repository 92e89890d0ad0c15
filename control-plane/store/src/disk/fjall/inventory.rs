//! Whether the engine's files are all there, before the engine looks: it takes a directory without its marker for a new one,
//! removes what it knows nothing of, and begins a missing journal anew.
//!
//! What cannot be seen from here: a whole older copy of the directory, and journals that were cut off at their end or
//! exchanged for older ones. Members that are brought back from such copies must join anew.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::OpenError;

/// There when the directory has been made.
const MARKER: &str = "version";
const LOCK: &str = "lock";
const KEYSPACES: &str = "keyspaces";
/// The engine's own keyspace, the log's and the state's.
const NUMBERS: [&str; 3] = ["0", "1", "2"];
/// Says which of a keyspace's versions counts.
const CURRENT: &str = "current";
const JOURNAL: &str = "jnl";

/// Refuses a directory of which a part is missing or empty; one with nothing of the engine in it only when it has `begun`.
pub(super) fn check(path: &Path, begun: bool) -> Result<(), OpenError> {
    let unreadable = |source| OpenError::Directory {
        path: path.to_owned(),
        source,
    };
    let lost = |path: PathBuf| Err(OpenError::Lost { path });
    let mut journals = Vec::new();
    let mut any = false;
    match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(error)),
        Ok(items) => {
            for item in items {
                let item = item.map_err(unreadable)?.path();
                let is_journal = item.extension().is_some_and(|kind| kind == JOURNAL);
                let name = item.file_name().and_then(|name| name.to_str());
                any |= is_journal
                    || name.is_some_and(|name| [MARKER, LOCK, KEYSPACES].contains(&name));
                journals.extend(is_journal.then_some(item));
            }
        }
    }
    if !any {
        return if begun { lost(path.to_owned()) } else { Ok(()) };
    }
    let keyspaces = path.join(KEYSPACES);
    let mut parts = vec![path.join(MARKER)];
    if begun {
        parts.extend(NUMBERS.map(|number| keyspaces.join(number).join(CURRENT)));
        match journals.is_empty() {
            // Whatever its number was.
            true => return lost(path.join(format!("*.{JOURNAL}"))),
            false => parts.extend(journals),
        }
    }
    match parts.into_iter().find(|part| is_empty(part)) {
        Some(part) => lost(part),
        None => Ok(()),
    }
}

fn is_empty(file: &Path) -> bool {
    !fs::metadata(file).is_ok_and(|found| found.is_file() && found.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::super::FjallEngine;
    use super::*;
    use crate::disk::{Engine as _, Space};

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for item in fs::read_dir(from).unwrap() {
            let item = item.unwrap();
            let target = to.join(item.file_name());
            match item.file_type().unwrap().is_dir() {
                true => copy(&item.path(), &target),
                false => drop(fs::copy(item.path(), target).unwrap()),
            }
        }
    }

    fn files(path: &Path, into: &mut Vec<(PathBuf, u64)>) {
        for item in fs::read_dir(path).unwrap() {
            let item = item.unwrap();
            match item.file_type().unwrap().is_dir() {
                true => files(&item.path(), into),
                false => into.push((item.path(), item.metadata().unwrap().len())),
            }
        }
    }

    fn listing(path: &Path) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        files(path, &mut found);
        found.sort();
        found
    }

    #[test]
    fn a_directory_that_lacks_a_part_is_refused_by_its_name_and_left_as_it_is() {
        let whole = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(whole.path(), false).unwrap();
        engine
            .commit(vec![(Space::Log, b"m".to_vec(), Some(b"1".to_vec()))], true)
            .unwrap();
        drop(engine);
        drop(FjallEngine::open(whole.path(), true).expect("nothing is missing"));
        let all = listing(whole.path());
        let journal = all
            .iter()
            .find(|(path, _)| path.extension().is_some_and(|kind| kind == JOURNAL));
        let journal = journal
            .unwrap()
            .0
            .strip_prefix(whole.path())
            .unwrap()
            .to_owned();
        let remove: [&dyn Fn(&Path); 2] = [
            &|part| match part.is_dir() {
                true => fs::remove_dir_all(part).unwrap(),
                false => fs::remove_file(part).unwrap(),
            },
            &|part| match part.is_dir() {
                true => {
                    fs::remove_dir_all(part).unwrap();
                    fs::create_dir(part).unwrap();
                }
                false => fs::write(part, b"").unwrap(),
            },
        ];
        for (part, named) in [
            (Path::new(""), ""),
            (Path::new("version"), "version"),
            (Path::new("keyspaces"), "current"),
            (Path::new("keyspaces/0"), "keyspaces/0"),
            (Path::new("keyspaces/1"), "keyspaces/1"),
            (Path::new("keyspaces/2"), "keyspaces/2"),
            (Path::new("keyspaces/1/current"), "keyspaces/1/current"),
            (journal.as_path(), "jnl"),
        ] {
            for (how, remove) in remove.iter().enumerate() {
                let broken = tempfile::tempdir().unwrap();
                let store = broken.path().join("store");
                copy(whole.path(), &store);
                remove(&store.join(part));
                let before = store.exists().then(|| listing(&store));
                let refused = FjallEngine::open(&store, true).err();
                let words = refused
                    .unwrap_or_else(|| panic!("{part:?} {how}"))
                    .to_string();
                assert!(
                    words.contains(named) && words.contains("member remove"),
                    "{words}"
                );
                assert_eq!(store.exists().then(|| listing(&store)), before, "{part:?}");
            }
        }
    }

    #[test]
    fn a_directory_that_holds_nothing_of_the_engines_is_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("lost+found")).unwrap();
        drop(FjallEngine::open(directory.path(), false).unwrap());
        fs::remove_file(directory.path().join(MARKER)).unwrap();
        let refused = FjallEngine::open(directory.path(), false).err().unwrap();
        assert!(matches!(refused, OpenError::Lost { path } if path.ends_with(MARKER)));
    }
}
