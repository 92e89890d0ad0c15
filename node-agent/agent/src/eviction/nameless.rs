//! What processes hold of a disk without a name: files that were unlinked and are still open, or mapped.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::usage::{BLOCK, LINKED, LOOK, Usage};

/// `OVERLAYFS_SUPER_MAGIC` of the kernel's magic.h.
const OVERLAY: u32 = 0x794c_7630;
/// A table of descriptors this small is looked at for every thread. Threads share a larger one when theirs has the same
/// numbers: to look at all for each would take threads times files.
const SMALL_TABLE: usize = 16;

/// The processes of each owner. `wanted` says whose one is, by its cgroups as /proc writes them. There are no more of them
/// than the kernel has numbers for, and it takes one short file of each.
pub(super) fn processes(wanted: impl Fn(&str) -> Option<String>) -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for process in entries(Path::new("/proc")) {
        // It may have ended.
        let Ok(cgroups) = std::fs::read_to_string(process.join("cgroup")) else {
            continue;
        };
        if let Some(owner) = wanted(&cgroups) {
            found.entry(owner).or_default().push(process);
        }
    }
    found
}

/// A look at the processes of one owner, which may be left and gone on with.
#[derive(Default)]
pub(super) struct Nameless {
    /// That of the disk.
    device: u64,
    /// Those still to be looked at.
    processes: Vec<PathBuf>,
    /// Of the process that is looked at, directories of files that are still to be, the last one first.
    tables: Vec<PathBuf>,
    /// How far the last one was.
    after: Option<u64>,
    /// What lists of that process's were looked at.
    known: HashSet<u64>,
    seen: HashSet<(u64, u64)>,
    held: Usage,
}

impl Nameless {
    pub(super) fn begin(device: u64, processes: Vec<PathBuf>) -> Self {
        Self {
            device,
            processes,
            ..Self::default()
        }
    }

    /// What was found so far.
    pub(super) fn held(&self) -> Usage {
        self.held
    }

    /// Goes on until it is through, or out of time. Whether it is through.
    pub(super) fn go_on(&mut self, deadline: Instant) -> bool {
        loop {
            if self.tables.is_empty() {
                let Some(process) = self.processes.pop() else {
                    return true;
                };
                self.known.clear();
                self.tables = tables(&process);
            }
            while let Some(table) = self.tables.last().cloned() {
                if Instant::now() >= deadline || !self.look(&table, deadline) {
                    return false;
                }
                self.tables.pop();
                self.after = None;
            }
        }
    }

    fn look(&mut self, table: &Path, deadline: Instant) -> bool {
        let files: Vec<(u64, PathBuf)> = entries(table)
            .filter_map(|file| Some((number(&file)?, file)))
            .collect();
        let mut hasher = DefaultHasher::new();
        files
            .iter()
            .for_each(|(number, _)| number.hash(&mut hasher));
        let is_known = !self.known.insert(hasher.finish());
        if is_known && self.after.is_none() && files.len() > SMALL_TABLE {
            return true;
        }
        let begin = self.after.map_or(0, |after| after.saturating_add(1));
        let left = files.iter().filter(|(number, _)| *number >= begin);
        for (looked, (number, file)) in (1_usize..).zip(left) {
            self.take(file);
            if looked.is_multiple_of(LOOK) && Instant::now() >= deadline {
                self.after = Some(*number);
                return false;
            }
        }
        true
    }

    fn take(&mut self, file: &Path) {
        let Ok(metadata) = file.metadata() else {
            return;
        };
        if !metadata.is_file() || metadata.nlink() > 0 {
            return;
        }
        // Through a container's root file system, files show numbers of its own.
        let here = metadata.dev() == self.device || is_overlay(file);
        let key = (metadata.dev(), metadata.ino());
        let is_new = self.seen.len() >= LINKED || !self.seen.contains(&key);
        if here && is_new {
            if self.seen.len() < LINKED {
                self.seen.insert(key);
            }
            self.held += Usage {
                bytes: metadata.blocks().saturating_mul(BLOCK),
                inodes: 1,
            };
        }
    }
}

/// Where the files of a process are: a mapping holds one as well as a descriptor does. Threads can have descriptors of their
/// own, and those of a first thread that has ended show nothing, neither descriptors nor mappings.
fn tables(process: &Path) -> Vec<PathBuf> {
    let threads: Vec<PathBuf> = entries(&process.join("task"))
        .filter(|thread| thread.file_name() != process.file_name())
        .collect();
    let mut tables: Vec<PathBuf> = threads.iter().map(|thread| thread.join("fd")).collect();
    let mapped = process.join("map_files");
    match entries(&mapped).next() {
        Some(_) => tables.push(mapped),
        // All threads have the same; /proc has a directory for each by its number, which it does not list.
        None => {
            let living = threads.first().and_then(|thread| thread.file_name());
            tables.extend(living.map(|thread| process.with_file_name(thread).join("map_files")));
        }
    }
    tables.push(process.join("fd"));
    tables
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// That of a descriptor, or where a mapping begins: /proc lists both in order.
fn number(file: &Path) -> Option<u64> {
    let name = file.file_name()?.to_str()?;
    // Digits of descriptors read as if they were hexadecimal are in the same order.
    u64::from_str_radix(name.split('-').next()?, 16).ok()
}

fn is_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u32 == OVERLAY)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn device(directory: &Path) -> u64 {
        directory.metadata().unwrap().dev()
    }

    fn own(directory: &Path) -> Nameless {
        let own = PathBuf::from(format!("/proc/{}", std::process::id()));
        Nameless::begin(device(directory), vec![own])
    }

    fn hold(directory: &Path, name: &str) -> fs::File {
        let path = directory.join(name);
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        let open = fs::File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        open
    }

    #[test]
    fn what_is_unlinked_and_open_is_found_at_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let _open = hold(directory.path(), "gone");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let mut found = processes(|cgroups| (cgroups == own).then(|| "own".to_owned()));
        let mut nameless = Nameless::begin(device(directory.path()), found.remove("own").unwrap());
        assert!(nameless.go_on(soon()));
        let held = nameless.held();
        assert!(held.bytes >= 1 << 20, "{held:?}");
        assert!(processes(|_| None).is_empty());
    }

    #[test]
    fn a_look_that_runs_out_of_time_goes_on_where_it_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let mut many: Vec<fs::File> = (0..2 * LOOK)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        many.push(hold(directory.path(), "gone"));
        let mut nameless = own(directory.path());
        assert!(!nameless.go_on(Instant::now()));
        let table = nameless.tables.last().unwrap().clone();
        assert!(table.ends_with("fd"));
        let mut looks = 0;
        while !nameless.look(&table, Instant::now()) {
            looks += 1;
            assert!(looks < 100 && nameless.after.is_some());
        }
        assert!(looks >= 2, "{looks}");
        assert!(nameless.held().bytes >= 1 << 20);
    }

    #[test]
    fn descriptors_of_every_thread_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        let process = PathBuf::from(format!("/proc/{}", std::process::id()));
        let found = tables(&process);
        let of_threads = found
            .iter()
            .filter(|table| table.starts_with(process.join("task")));
        assert!(of_threads.count() >= 1, "{found:?}");
        assert!(
            found.contains(&process.join("map_files")) && found.ends_with(&[process.join("fd")])
        );
        let _many: Vec<fs::File> = (0..SMALL_TABLE)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        let _open = hold(directory.path(), "gone");
        let mut nameless = own(directory.path());
        assert!(nameless.go_on(soon()));
        assert!(nameless.held().bytes >= 1 << 20, "counted once or more");
        drop(done);
        thread.join().unwrap().unwrap_err();
    }

    #[test]
    fn descriptors_and_mappings_are_in_order() {
        let of = |name: &str| number(Path::new(name));
        assert!(
            of("/proc/1/fd/9") < of("/proc/1/fd/10") && of("/proc/1/fd/99") < of("/proc/1/fd/100")
        );
        assert!(of("7f0000000000-7f0000001000") > of("400000-401000"));
        assert_eq!(of("x"), None);
    }
}
