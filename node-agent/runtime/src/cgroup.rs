//! cgroups as the agent sees them: making, limiting, measuring and removing groups on v1, hybrid and v2 hosts.
//!
//! A group is named by its path below every hierarchy's root, `<root>/<pod>/<name>-<attempt>`: never reused, since killing
//! and removing work on all of a group. On v2 containers' own groups are made here too ([`Hierarchies::admit`]), before a
//! process is in them; on v1 by libcontainer, below the pod's.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_cri::runtime::{Resources, Usage};
use serde_json::Value;

use crate::device_program;
use crate::sys;

pub(crate) mod meter;
mod protection;

/// How long a killed process may take to leave its group.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(10);

/// How often to look whether a group is frozen before its members are killed anyway.
const FREEZING: usize = 200;

/// The hierarchies of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// One for all controllers.
    Unified(PathBuf),
    /// One per controller, or set of controllers.
    Legacy(Vec<(Vec<String>, PathBuf)>),
}

impl Hierarchies {
    /// Those mounted in this mount namespace.
    pub(crate) fn detect() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::other("no cgroup hierarchy is mounted below /sys/fs/cgroup"))
    }

    fn parse(mountinfo: &str) -> Option<Self> {
        let mut legacy = Vec::new();
        for line in mountinfo.lines() {
            let (left, right) = line.split_once(" - ")?;
            let mount_point = left.split(' ').nth(4)?;
            let mut right = right.split(' ');
            let kind = right.next()?;
            if !mount_point.starts_with("/sys/fs/cgroup") {
                continue;
            }
            if kind == "cgroup2" && mount_point == "/sys/fs/cgroup" {
                return Some(Self::Unified(PathBuf::from(mount_point)));
            }
            if kind == "cgroup" {
                let controllers = right.nth(1)?.split(',').map(str::to_owned).collect();
                legacy.push((controllers, PathBuf::from(mount_point)));
            }
        }
        if legacy.is_empty() {
            None
        } else {
            Some(Self::Legacy(legacy))
        }
    }

    fn mounts(&self) -> Vec<&Path> {
        match self {
            Self::Unified(mount) => vec![mount],
            Self::Legacy(mounts) => mounts.iter().map(|(_, mount)| mount.as_path()).collect(),
        }
    }

    fn controller(&self, name: &str, group: &Path) -> PathBuf {
        let mount = match self {
            Self::Unified(mount) => mount.clone(),
            Self::Legacy(mounts) => mounts
                .iter()
                .find(|(controllers, _)| controllers.iter().any(|controller| controller == name))
                .map_or_else(
                    || Path::new("/sys/fs/cgroup").join(name),
                    |(_, mount)| mount.clone(),
                ),
        };
        below(&mount, group)
    }

    /// v2, where a group with members may not also have groups with controllers.
    pub(crate) fn is_unified(&self) -> bool {
        matches!(self, Self::Unified(_))
    }

    /// Of those that pods are limited and measured by, which this host does not give a group of ours.
    pub(crate) fn missing(&self, group: &Path) -> io::Result<Vec<&'static str>> {
        let (wanted, known): (&[&'static str], Vec<String>) = match self {
            Self::Unified(mount) => {
                let known = fs::read_to_string(below(mount, group).join("cgroup.controllers"))?;
                let known = known.split_whitespace().map(str::to_owned).collect();
                (&["cpu", "memory", "pids"], known)
            }
            Self::Legacy(mounts) => {
                let known = mounts.iter().flat_map(|(controllers, _)| controllers);
                let wanted = &["cpu", "cpuacct", "memory", "pids", "freezer", "devices"];
                (wanted, known.cloned().collect())
            }
        };
        let missing = wanted.iter().copied();
        Ok(missing
            .filter(|wanted| !known.iter().any(|known| known == wanted))
            .collect())
    }

    /// The file whose line `oom_kill N` counts.
    pub(crate) fn oom_file(&self, group: &Path) -> PathBuf {
        let file = if self.is_unified() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        self.controller("memory", group).join(file)
    }

    /// The members of a group.
    pub(crate) fn procs_file(&self, group: &Path) -> PathBuf {
        self.controller("memory", group).join("cgroup.procs")
    }

    /// The group of the devices controller of v1.
    pub(crate) fn devices(&self, group: &Path) -> Option<PathBuf> {
        match self {
            Self::Unified(_) => None,
            Self::Legacy(mounts) => mounts
                .iter()
                .find(|(controllers, _)| controllers.iter().any(|name| name == "devices"))
                .map(|(_, mount)| below(mount, group)),
        }
    }

    /// The files that let a process into a group, in the hierarchies that have it.
    pub(crate) fn doors(&self, group: &Path) -> Vec<PathBuf> {
        let doors = self
            .mounts()
            .into_iter()
            .map(|mount| below(mount, group).join("cgroup.procs"));
        doors.filter(|door| door.exists()).collect()
    }

    /// Makes a group in every hierarchy; returns the files that let a process in.
    pub(crate) fn create(&self, group: &Path) -> io::Result<Vec<PathBuf>> {
        let mut doors = Vec::new();
        for mount in self.mounts() {
            let mut attempts = 0;
            let dir = loop {
                match self.create_below(mount, group) {
                    // Another agent that leaves this machine removes what is empty above its own groups.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 3 => {
                        attempts += 1;
                    }
                    made => break made?,
                }
            };
            doors.push(dir.join("cgroup.procs"));
        }
        Ok(doors)
    }

    fn create_below(&self, mount: &Path, group: &Path) -> io::Result<PathBuf> {
        let mut dir = mount.to_owned();
        for part in group.strip_prefix("/").unwrap_or(group) {
            if self.is_unified() {
                for controller in ["+cpu", "+memory", "+pids"] {
                    // Not every host delegates each of them; a limit that needs one will say so.
                    if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), controller) {
                        tracing::debug!(dir = %dir.display(), controller, %error, "controller not enabled");
                    }
                }
            }
            let parent = dir.clone();
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            inherit_cpuset(&parent, &dir)?;
        }
        Ok(dir)
    }

    /// Applies a pod's limits.
    pub(crate) fn limit(&self, group: &Path, resources: &Resources) -> io::Result<()> {
        let set = |controller: &str, file: &str, value: String| {
            let path = self.controller(controller, group).join(file);
            // Never created: the kernel would refuse that in words about permission, where the file is what is missing.
            let mut open = fs::OpenOptions::new();
            let written = open.write(true).open(&path);
            let written = written.and_then(|mut file| file.write_all(value.as_bytes()));
            written.map_err(|error| {
                io::Error::new(error.kind(), format!("writing {}: {error}", path.display()))
            })
        };
        let unified = self.is_unified();
        if let Some(limit) = resources.memory_limit {
            set(
                "memory",
                if unified {
                    "memory.max"
                } else {
                    "memory.limit_in_bytes"
                },
                limit.to_string(),
            )?;
        }
        if unified {
            for (file, value) in beyond_v1(resources) {
                match set("memory", file, value) {
                    // A kernel without swap has no file for its limit.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && file == SWAP_LIMIT => {
                    }
                    done => done?,
                }
            }
        }
        if let Some(limit) = resources.pids_limit {
            match set("pids", "pids.max", limit.to_string()) {
                // As for a kubelet: a host without this controller runs pods without this limit.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "the host has no pids controller; the pod's processes are not limited");
                }
                done => done?,
            }
        }
        if let Some(shares) = resources.cpu_shares {
            if unified {
                set("cpu", "cpu.weight", weight(shares).to_string())?;
            } else {
                set("cpu", "cpu.shares", shares.to_string())?;
            }
        }
        if let Some(quota) = resources.cpu_quota_micros {
            let period = resources.cpu_period_micros.unwrap_or(100_000);
            if unified {
                set("cpu", "cpu.max", format!("{quota} {period}"))?;
            } else {
                set("cpu", "cpu.cfs_period_us", period.to_string())?;
                set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        Ok(())
    }

    /// Prepares a container's group before anything is in it: its limits and, unless it may use every device, the rules of
    /// its OCI configuration about them. Nothing to do on v1, where libcontainer does both.
    pub(crate) fn admit(
        &self,
        group: &Path,
        resources: &Resources,
        devices_of: Option<&Value>,
    ) -> io::Result<()> {
        let Self::Unified(mount) = self else {
            return Ok(());
        };
        self.create(group)?;
        self.limit(group, resources)?;
        match devices_of {
            Some(config) => device_program::confine(&below(mount, group), config),
            None => Ok(()),
        }
    }

    /// What a group uses; `None` when it does not exist.
    pub(crate) fn usage(&self, group: &Path) -> Option<Usage> {
        meter::Meter::open(self, group)?.read(&mut meter::Buffer::default())
    }

    /// Kills every process of a group and of those below it, also those that make others as fast as they can.
    pub(crate) fn kill(&self, group: &Path) {
        match self {
            Self::Unified(mount) => {
                // Since Linux 5.14 the kernel does it itself.
                if fs::write(below(mount, group).join("cgroup.kill"), "1").is_err() {
                    self.kill_members(group);
                }
            }
            Self::Legacy(_) => {
                let state = self.controller("freezer", group).join("freezer.state");
                let frozen = fs::write(&state, "FROZEN").is_ok();
                for _ in 0..FREEZING {
                    if !frozen || fs::read_to_string(&state).is_ok_and(|now| now.trim() == "FROZEN")
                    {
                        break;
                    }
                }
                self.kill_members(group);
                // They die when they thaw.
                if frozen && let Err(error) = fs::write(&state, "THAWED") {
                    tracing::warn!(group = %group.display(), %error, "could not thaw a group of killed processes");
                }
            }
        }
    }

    fn kill_members(&self, group: &Path) {
        for mount in self.mounts() {
            for dir in tree(&below(mount, group)) {
                let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()) {
                    match sys::kill(pid, libc::SIGKILL) {
                        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                            tracing::warn!(pid, %error, "could not kill a process of a removed group");
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Kills what is left in a group and removes it from every hierarchy, with all below it.
    pub(crate) async fn remove(&self, group: &Path) -> io::Result<()> {
        let deadline = tokio::time::Instant::now() + REMOVAL_DEADLINE;
        loop {
            self.kill(group);
            match self.try_remove(group) {
                // A process that was killed leaves its group when it has ended, shortly after.
                Err(error)
                    if error.raw_os_error() == Some(libc::EBUSY)
                        && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                result => return result,
            }
        }
    }

    /// Removes the groups above one, as far as nothing else is in them.
    pub(crate) fn remove_empty_above(&self, group: &Path) {
        for mount in self.mounts() {
            for above in group.ancestors().skip(1) {
                let dir = below(mount, above);
                if dir == mount || fs::remove_dir(&dir).is_err() {
                    break;
                }
            }
        }
    }

    fn try_remove(&self, group: &Path) -> io::Result<()> {
        for mount in self.mounts() {
            for dir in tree(&below(mount, group)).into_iter().rev() {
                match fs::remove_dir(&dir) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn below(mount: &Path, group: &Path) -> PathBuf {
    mount.join(group.strip_prefix("/").unwrap_or(group))
}

/// A directory and all below it, parents first.
fn tree(dir: &Path) -> Vec<PathBuf> {
    if !dir.is_dir() {
        return Vec::new();
    }
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while next < all.len() {
        if let Ok(entries) = fs::read_dir(&all[next]) {
            let dirs = entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            all.extend(dirs.map(|entry| entry.path()));
        }
        next += 1;
    }
    all
}

/// A new cpuset of v1 is empty, and lets nobody in.
fn inherit_cpuset(parent: &Path, dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(own) = fs::read_to_string(dir.join(file)) else {
            continue;
        };
        if own.trim().is_empty() && !dir.join("cgroup.controllers").exists() {
            fs::write(dir.join(file), fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Swap that a group may use beside its memory.
const SWAP_LIMIT: &str = "memory.swap.max";

/// What only v2 has: files of the memory controller and what is written to them.
fn beyond_v1(resources: &Resources) -> Vec<(&'static str, String)> {
    let bytes = |file, amount: Option<i64>| amount.map(|amount| (file, amount.to_string()));
    let whole = resources
        .oom_group
        .then(|| ("memory.oom.group", "1".to_owned()));
    [
        bytes(SWAP_LIMIT, resources.memory_swap),
        bytes(protection::HARD, resources.memory_min),
        bytes(protection::SOFT, resources.memory_low),
        whole,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// cgroup v2's weight (1 to 10000, 100 when not set) for v1's shares (2 to 262144, 1024 when not set), as OCI runtimes
/// have converted it since 2025: a curve through the ends and the usual value of both.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            // Between the ends: exact as a float, and the result is far from overflowing.
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_hybrid_from_unified_hosts() {
        let hybrid = "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(hybrid).unwrap();
        assert_eq!(found.mounts().len(), 2);
        let group = Path::new("/gantry/pod");
        let missing = found.missing(group).unwrap();
        assert_eq!(missing, ["pids", "freezer", "devices"]);
        assert_eq!(
            found.controller("cpuacct", group),
            Path::new("/sys/fs/cgroup/cpu,cpuacct/gantry/pod")
        );
        assert_eq!(
            found.oom_file(group),
            Path::new("/sys/fs/cgroup/memory/gantry/pod/memory.oom_control")
        );
        let unified =
            Hierarchies::parse("25 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert_eq!(
            unified.oom_file(group),
            Path::new("/sys/fs/cgroup/gantry/pod/memory.events")
        );
        assert_eq!(
            Hierarchies::parse("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"),
            None
        );
    }

    #[test]
    fn converts_shares_to_weights() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (256, 35),
            (1024, 100),
            (22_000, 1204),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn what_only_v2_has_is_written_when_it_is_asked_for() {
        assert_eq!(beyond_v1(&Resources::default()), []);
        let resources = Resources {
            memory_swap: Some(0),
            memory_low: Some(4096),
            oom_group: true,
            ..Resources::default()
        };
        assert_eq!(
            beyond_v1(&resources),
            [
                ("memory.swap.max", "0".to_owned()),
                ("memory.low", "4096".to_owned()),
                ("memory.oom.group", "1".to_owned()),
            ]
        );
    }
}
