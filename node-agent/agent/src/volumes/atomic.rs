//! Replaces a directory's files all at once.
//!
//! ```text
//! volume/..2026_11_23_10_00_00.000000001/key     the files
//! volume/..data -> ..2026_11_23_...              switched by one rename
//! volume/key -> ..data/key
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Relative paths to files.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Makes the visible contents of `directory` equal to `files`; a reader sees the old ones or the new, never a mix.
pub(super) fn write(directory: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    let current = fs::read_link(directory.join(DATA))
        .ok()
        .map(|name| directory.join(name));
    if current.as_ref().is_some_and(|current| same(current, files)) {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now()
        .strftime("..%Y_%m_%d_%H_%M_%S.%9f")
        .to_string();
    let fresh = directory.join(&stamp);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            readable_directory(parent)?;
        }
        fs::write(&target, &file.content)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
        if group.is_some() {
            chown(&target, None, group)?;
        }
    }
    let next = directory.join(NEXT);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&stamp, &next)?;
    fs::rename(&next, directory.join(DATA))?;
    let names: BTreeSet<_> = files.keys().filter_map(|path| path.iter().next()).collect();
    for name in &names {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == DATA || name == stamp.as_str() || names.contains(name.as_os_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a directory that every user of a container can look into, whatever this process's umask says. What is above it
/// lets nobody of the host in.
pub(super) fn readable_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        readable_directory(parent)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Whether the directory holds exactly these files.
fn same(directory: &Path, files: &Files) -> bool {
    fn count(directory: &Path) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| {
                if entry.path().is_dir() {
                    count(&entry.path())
                } else {
                    1
                }
            })
            .sum()
    }
    count(directory) == files.len()
        && files.iter().all(|(path, file)| {
            let target = directory.join(path);
            let mode = fs::metadata(&target).map(|metadata| metadata.permissions().mode() & 0o7777);
            mode.is_ok_and(|mode| mode == file.mode)
                && fs::read(&target).is_ok_and(|content| content == file.content)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        let file = |content: &str| File {
            content: content.as_bytes().to_vec(),
            mode: 0o644,
        };
        entries
            .iter()
            .map(|(path, content)| (PathBuf::from(path), file(content)))
            .collect()
    }

    #[test]
    fn contents_are_switched_and_leftovers_removed() {
        let directory = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(directory.path().join(path)).ok();
        write(
            directory.path(),
            &files(&[("a", "1"), ("sub/b", "2")]),
            None,
        )
        .unwrap();
        assert_eq!(
            (read("a").as_deref(), read("sub/b").as_deref()),
            (Some("1"), Some("2"))
        );
        let first = fs::read_link(directory.path().join(DATA)).unwrap();
        write(
            directory.path(),
            &files(&[("a", "1"), ("sub/b", "2")]),
            None,
        )
        .unwrap();
        assert_eq!(
            fs::read_link(directory.path().join(DATA)).unwrap(),
            first,
            "nothing changed, nothing moves"
        );
        write(directory.path(), &files(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!(
            (read("a").as_deref(), read("c").as_deref(), read("sub/b")),
            (Some("3"), Some("4"), None)
        );
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            4,
            "..data, its directory, a, c"
        );
    }
}
