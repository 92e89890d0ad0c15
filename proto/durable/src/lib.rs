//! `gantry-durable`: files that are whole after a power cut, and trees of strangers: ways into them that lead nowhere else,
//! and their removal whatever they are like.
//!
//! A write that has returned is in memory only, and so is a rename: when the power goes, a file can be there with its name
//! and without its content, or with the content and without the name. What is written here is either whole or the old
//! one, and after [`replace`] has returned it is the new one.
//!
//! A tree that a stranger made may be deeper than a stack and wider than memory: [`remove_tree`] takes it away all the
//! same.
//!
//! Knows nothing of what is in the files.

mod inside;
mod removal;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use inside::open_inside;
pub use removal::{remove_at, remove_tree};

/// Replaces a file, readable by whom `mode` says from the first byte on. When it returns, no power cut takes the new
/// content back.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_whole(path, content, mode)?;
    sync_directory(directory_of(path))
}

/// As [`replace`], with one wait for the disk less: after a power cut it may be the old content, never a part of the new.
pub fn replace_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path);
    // One that was left by a crash may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&temporary, path)
}

/// Renames what is on the disk already. When it returns, no power cut takes the new name back.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(directory_of(to))
}

/// Creates a directory with those above it that are missing. When it returns, no power cut takes them back.
pub fn create_directories(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|directory| !directory.as_os_str().is_empty() && !directory.exists())
        .collect();
    fs::create_dir_all(path)?;
    for directory in missing {
        sync_directory(directory_of(directory))?;
    }
    Ok(())
}

/// Waits until the names in a directory are on the disk.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The directory that holds a path.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// The name under which a file is written before it takes its place.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("it.json");
        // What a crash of an older version could have left.
        fs::write(beside(&path), "half").expect("writes");
        for text in ["one", "two"] {
            replace(&path, text.as_bytes(), 0o600).expect("it is written");
            assert_eq!(fs::read_to_string(&path).expect("reads"), text);
        }
        let mode = path.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let entries = fs::read_dir(directory.path()).expect("a directory");
        assert_eq!(entries.count(), 1);
    }

    #[test]
    fn files_whose_names_differ_in_their_end_do_not_meet() {
        assert_ne!(beside(Path::new("a/x.json")), beside(Path::new("a/x.key")));
        assert_eq!(directory_of(Path::new("x")), Path::new("."));
        assert_eq!(directory_of(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn directories_are_created_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("a/b/c");
        create_directories(&deep).expect("creates");
        create_directories(&deep).expect("is there");
        assert!(deep.is_dir());
    }
}
