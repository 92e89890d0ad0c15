//! What everything of this node uses, read every second.
//!
//! Which containers a pod has is known from the run directory, of which the kernel says when it was changed: no shim is asked.
//! A container whose group has no process any more has ended, and is not told of.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gantry_cri::runtime::{ContainerUsage, Measured, PodUid, PodUsage, RuntimeError, Usage};
use rustix::process::{Resource, getrlimit};

use super::{Shared, io_error};
use crate::cgroup::Hierarchies;
use crate::cgroup::meter::{Buffer, FILES, Machine, Meter};

/// Of the descriptors that a process may have, one in so many is for files that stay open here.
const SHARE: u64 = 8;
/// Groups whose files stay open at most; those of others are opened for each reading.
const KEPT_OPEN: u64 = 2048;
/// Containers of a pod that are looked at; no pod has as many.
const CONTAINERS: usize = 256;
/// A pod's containers are listed again after so many readings, whatever the directory's times say: those are no finer than
/// the kernel's clock.
const LIST_AGAIN: u8 = 8;

/// The files that are read.
#[derive(Default)]
pub(super) struct Meters {
    buffer: Buffer,
    machine: Option<Machine>,
    pods: HashMap<PodUid, PodMeter>,
}

/// A group, and its files where they stay open.
struct Group {
    path: PathBuf,
    meter: Option<Meter>,
}

struct PodMeter {
    group: Group,
    /// The last attempt at each container.
    containers: BTreeMap<String, (u32, Group)>,
    /// When the directory of the containers was changed that these are from.
    listed: Option<(i64, i64)>,
    readings: u8,
}

/// What all groups are read with.
struct Reader<'a> {
    hierarchies: &'a Hierarchies,
    buffer: &'a mut Buffer,
    /// Groups whose files may still stay open.
    room: u64,
}

impl Group {
    fn new(path: PathBuf) -> Self {
        Self { path, meter: None }
    }

    /// What it uses; none when there is no such group.
    fn read(&mut self, reader: &mut Reader<'_>) -> Option<Usage> {
        let meter = match self.meter.take() {
            Some(meter) => meter,
            None => Meter::open(reader.hierarchies, &self.path)?,
        };
        let usage = meter.read(reader.buffer)?;
        if let Some(room) = reader.room.checked_sub(1) {
            reader.room = room;
            self.meter = Some(meter);
        }
        Some(usage)
    }
}

/// Reads everything there is.
pub(super) fn measure(shared: &Shared) -> Result<Measured, RuntimeError> {
    let doing = || io_error("measuring what the node uses");
    let mut meters = shared.meters.lock();
    let meters = &mut *meters;
    let files = match meters.machine.take() {
        Some(files) => files,
        None => Machine::open(&shared.hierarchies).map_err(doing())?,
    };
    let read_at = Instant::now();
    let (machine, memory_available) = files
        .read(&mut meters.buffer)
        .ok_or_else(|| doing()(io::Error::other("/proc or the cgroups cannot be read")))?;
    meters.machine = Some(files);
    let sandboxes: Vec<_> = shared.sandboxes.lock().values().cloned().collect();
    let mut before = std::mem::take(&mut meters.pods);
    let mut reader = Reader {
        hierarchies: &shared.hierarchies,
        buffer: &mut meters.buffer,
        room: room(),
    };
    let mut pods = Vec::with_capacity(sandboxes.len());
    for sandbox in sandboxes {
        let spec = &sandbox.spec;
        let known = before.remove(&spec.pod);
        let mut own = known.unwrap_or_else(|| PodMeter::new(shared.pod_cgroup(&spec.pod)));
        let read_at = Instant::now();
        if let Some(usage) = own.group.read(&mut reader) {
            own.list(&shared.sandbox_dir(&spec.pod).join("c"));
            pods.push(PodUsage {
                pod: spec.pod.clone(),
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                read_at,
                usage,
                containers: own.containers(&mut reader),
            });
        }
        meters.pods.insert(spec.pod.clone(), own);
    }
    Ok(Measured {
        read_at,
        machine,
        memory_available,
        pods,
    })
}

/// For how many groups there are descriptors.
fn room() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current;
    let groups = descriptors.map(|all| all / SHARE / FILES as u64);
    groups.map_or(KEPT_OPEN, |groups| groups.min(KEPT_OPEN))
}

impl PodMeter {
    fn new(group: PathBuf) -> Self {
        Self {
            group: Group::new(group),
            containers: BTreeMap::new(),
            listed: None,
            readings: 0,
        }
    }

    /// Looks which containers there are, when that may have changed.
    fn list(&mut self, dir: &Path) {
        let changed = fs::metadata(dir).ok();
        let changed = changed.map(|found| (found.mtime(), found.mtime_nsec()));
        self.readings = (self.readings + 1) % LIST_AGAIN;
        if self.listed.is_some() && self.listed == changed && self.readings != 0 {
            return;
        }
        let Ok(entries) = fs::read_dir(dir) else {
            return;
        };
        let mut found: BTreeMap<String, u32> = BTreeMap::new();
        for entry in entries.flatten().take(CONTAINERS) {
            let name = entry.file_name();
            if let Some((container, attempt)) = name.to_str().and_then(attempt_of) {
                let last = found.entry(container.to_owned()).or_default();
                *last = attempt.max(*last);
            }
        }
        let mut before = std::mem::take(&mut self.containers);
        for (name, attempt) in found {
            let known = before
                .remove(&name)
                .filter(|(known, _)| *known == attempt)
                .map(|(_, group)| group);
            let group = known
                .unwrap_or_else(|| Group::new(self.group.path.join(format!("{name}-{attempt}"))));
            self.containers.insert(name, (attempt, group));
        }
        self.listed = changed;
    }

    /// Those that run.
    fn containers(&mut self, reader: &mut Reader<'_>) -> Vec<ContainerUsage> {
        let mut running = Vec::with_capacity(self.containers.len());
        for (name, (attempt, group)) in &mut self.containers {
            match group.read(reader) {
                Some(usage) if usage.processes == Some(0) => {}
                Some(usage) => running.push(ContainerUsage {
                    name: name.clone(),
                    attempt: *attempt,
                    usage,
                }),
                // Its group is not there yet, or not any more: another look says which.
                None => self.listed = None,
            }
        }
        running
    }
}

/// Container and attempt, by the name of a group or directory.
pub(super) fn attempt_of(name: &str) -> Option<(&str, u32)> {
    let (container, attempt) = name.rsplit_once('-')?;
    Some((container, attempt.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes the files of a group with so many processes.
    fn group(dir: &Path, cpu: u64, processes: u64) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in [
            ("cpu.stat", format!("usage_usec {cpu}\n")),
            ("memory.current", "10\n".to_owned()),
            ("memory.stat", "anon 1\ninactive_file 2\n".to_owned()),
            ("pids.current", format!("{processes}\n")),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_last_attempt_at_each_container_counts_while_it_runs() {
        let (mount, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hierarchies = Hierarchies::Unified(mount.path().to_owned());
        let pod = mount.path().join("pod");
        group(&pod, 9, 9);
        let mut meter = PodMeter::new(PathBuf::from("/pod"));
        let mut buffer = Buffer::default();
        let mut read = |meter: &mut PodMeter, room: u64| {
            let mut reader = Reader {
                hierarchies: &hierarchies,
                buffer: &mut buffer,
                room,
            };
            meter.list(run.path());
            let containers = meter.containers(&mut reader).into_iter();
            let told = containers.map(|one| (one.name, one.attempt, one.usage.cpu_nanos));
            told.collect::<Vec<_>>()
        };
        assert_eq!(read(&mut meter, 9), []);
        for name in ["web-0", "web-1", "side-car-0", "odd", "x-y"] {
            fs::create_dir(run.path().join(name)).unwrap();
        }
        group(&pod.join("web-0"), 1, 1);
        group(&pod.join("side-car-0"), 3, 1);
        // Its group is made a moment after its directory.
        let mut until = |meter: &mut PodMeter, count: usize| {
            let mut told = Vec::new();
            for _ in 0..=LIST_AGAIN {
                told = read(meter, 9);
                if told.len() == count {
                    break;
                }
            }
            told
        };
        let side_car = ("side-car".to_owned(), 0, 3000);
        assert_eq!(until(&mut meter, 1), std::slice::from_ref(&side_car));
        group(&pod.join("web-1"), 2, 1);
        let web = ("web".to_owned(), 1, 2000);
        assert_eq!(read(&mut meter, 9), [side_car.clone(), web.clone()]);
        assert_eq!(
            read(&mut meter, 0),
            [side_car.clone(), web],
            "without open files"
        );
        assert!(
            meter
                .containers
                .values()
                .all(|(_, group)| group.meter.is_none())
        );
        group(&pod.join("web-1"), 2, 0);
        assert_eq!(read(&mut meter, 9), [side_car], "it has ended");
    }
}
