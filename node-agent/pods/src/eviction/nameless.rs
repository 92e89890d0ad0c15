//! What processes hold of a disk without a name: files that were unlinked and are still open, or mapped.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::usage::{BLOCK, LOOK, MEMORY, REMEMBERED, Usage};

/// `OVERLAYFS_SUPER_MAGIC` of the kernel's magic.h.
const OVERLAY: u32 = 0x794c_7630;
/// `BTRFS_SUPER_MAGIC` of the kernel's magic.h.
const BTRFS: u32 = 0x9123_683e;
/// A table of descriptors this small is looked at for every thread. A larger one that threads share is looked at once: to
/// look at all for each would take threads times files.
const SMALL_TABLE: usize = 16;
/// Tables with the same numbers that are not the same, and that others are compared with.
const ALIKE: usize = 8;
/// `KCMP_FILES` of the kernel's kcmp.h.
const KCMP_FILES: libc::c_int = 2;
/// What it takes for other kinds.
const UNUSED: libc::c_ulong = 0;

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

/// A file system, as files on it are told from others.
#[derive(Clone, Copy, Default)]
pub(super) struct FileSystem {
    device: u64,
    /// Subvolumes of one btrfs have devices of their own.
    btrfs: Option<u32>,
}

impl FileSystem {
    /// That which a path is on.
    pub(super) fn of(path: &Path) -> Self {
        Self {
            device: path.metadata().map_or(0, |metadata| metadata.dev()),
            btrfs: btrfs(path),
        }
    }

    fn holds(self, file: &Path, metadata: &Metadata) -> bool {
        // Through a container's root file system, files show numbers of its own.
        metadata.dev() == self.device
            || is_of_type(file, OVERLAY)
            || self.btrfs.is_some() && btrfs(file) == self.btrfs
    }
}

/// What all subvolumes of a btrfs have in common: the first half of what statfs(2) calls its id. The other half is mixed
/// with the subvolume's number. `None` on other file systems.
fn btrfs(path: &Path) -> Option<u32> {
    let found = is_of_type(path, BTRFS).then(|| rustix::fs::statvfs(path));
    found?.ok().map(|found| found.f_fsid as u32)
}

fn is_of_type(path: &Path, magic: u32) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u32 == magic)
}

/// A look at the processes of one owner, which may be left and gone on with.
#[derive(Default)]
pub(super) struct Nameless {
    disk: FileSystem,
    /// Those still to be looked at.
    processes: Vec<PathBuf>,
    /// Of the process that is looked at, directories of files that are still to be, the last one first.
    tables: Vec<PathBuf>,
    /// How far the last one was.
    after: Option<u64>,
    /// What lists of that process's were looked at, and of which threads.
    known: HashMap<u64, Vec<i32>>,
    seen: HashSet<(u64, u64)>,
    held: Usage,
}

impl Nameless {
    pub(super) fn begin(disk: FileSystem, processes: Vec<PathBuf>) -> Self {
        Self {
            disk,
            processes,
            ..Self::default()
        }
    }

    /// One with memory for so many files.
    #[cfg(test)]
    pub(super) fn remembering(files: usize) -> Self {
        Self {
            seen: HashSet::with_capacity(files),
            ..Self::default()
        }
    }

    /// What was found so far.
    pub(super) fn held(&self) -> Usage {
        self.held
    }

    /// What it takes itself, in bytes of memory, beside a few for each thread.
    pub(super) fn memory(&self) -> usize {
        self.seen.capacity() * MEMORY
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
        // One that is gone on with is known, since it was looked at.
        if self.after.is_none()
            && files.len() > SMALL_TABLE
            && self.is_known(hasher.finish(), table)
        {
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

    /// Whether this table was looked at, by another thread's. The same numbers are not enough: a thread may have a table of
    /// its own that only looks like the others'.
    fn is_known(&mut self, numbers: u64, table: &Path) -> bool {
        let alike = self.known.entry(numbers).or_default();
        let Some(thread) = thread(table) else {
            return false;
        };
        let is_known = alike.iter().any(|other| share_files(thread, *other));
        if !is_known && alike.len() < ALIKE {
            alike.push(thread);
        }
        is_known
    }

    fn take(&mut self, file: &Path) {
        let Ok(metadata) = file.metadata() else {
            return;
        };
        if !metadata.is_file() || metadata.nlink() > 0 {
            return;
        }
        let here = self.disk.holds(file, &metadata);
        let key = (metadata.dev(), metadata.ino());
        if here && !self.seen.contains(&key) {
            if self.seen.len() < REMEMBERED {
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

/// The thread that a table of descriptors is of, `None` for mappings: `/proc/7/fd` is 7's, `/proc/7/task/8/fd` is 8's.
fn thread(table: &Path) -> Option<i32> {
    let is_of_descriptors = table.file_name().is_some_and(|name| name == "fd");
    let thread = table.parent().filter(|_| is_of_descriptors)?.file_name()?;
    thread.to_str()?.parse().ok()
}

/// Whether two threads have one table of descriptors. Kernels that cannot tell say yes.
fn share_files(one: i32, other: i32) -> bool {
    #[expect(unsafe_code, reason = "kcmp has no wrapper")]
    // SAFETY: kcmp takes integers alone, and neither reads nor writes memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, UNUSED, UNUSED) };
    match order {
        -1 => std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS),
        order => order == 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn own(directory: &Path) -> Nameless {
        let own = PathBuf::from(format!("/proc/{}", std::process::id()));
        Nameless::begin(FileSystem::of(directory), vec![own])
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
        let disk = FileSystem::of(directory.path());
        let mut nameless = Nameless::begin(disk, found.remove("own").unwrap());
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
    fn the_same_numbers_do_not_make_it_the_same_table() {
        let directory = tempfile::tempdir().unwrap();
        let mut nameless = own(directory.path());
        let process = PathBuf::from(format!("/proc/{}", std::process::id()));
        let current = rustix::thread::gettid().as_raw_pid();
        let of_thread = process.join(format!("task/{current}/fd"));
        let parent = std::os::unix::process::parent_id();
        // As if ours looked like its.
        let numbers = 7;
        nameless
            .known
            .insert(numbers, vec![i32::try_from(parent).unwrap()]);
        let own = process.join("fd");
        assert!(!nameless.is_known(numbers, &own), "it is another's");
        assert!(nameless.is_known(numbers, &own), "it was looked at");
        assert!(nameless.is_known(numbers, &of_thread), "threads share one");
        assert!(!nameless.is_known(numbers, &process.join("map_files")));
        assert_eq!(thread(Path::new("/proc/7/task/8/fd")), Some(8));
    }

    #[test]
    fn subvolumes_are_of_their_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "x").unwrap();
        let metadata = file.metadata().unwrap();
        assert!(FileSystem::of(directory.path()).holds(&file, &metadata));
        let elsewhere = FileSystem {
            btrfs: btrfs(&file),
            ..FileSystem::default()
        };
        assert_eq!(
            elsewhere.holds(&file, &metadata),
            is_of_type(&file, BTRFS) || is_of_type(&file, OVERLAY)
        );
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
