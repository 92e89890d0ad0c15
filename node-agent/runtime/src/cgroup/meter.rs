//! Reading what groups use, every second and of many of them: their files stay open, since opening one takes ten times as
//! long as reading it, and all are read into one buffer, no more of each than fits.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gantry_cri::runtime::{Pressure, Pressures, Throttling, Usage};

use super::Hierarchies;

/// Bytes read of a file: memory.stat, the longest of them, has a quarter of that.
const LARGEST: usize = 16 << 10;
/// Files of a group that are open, at most.
pub(crate) const FILES: usize = 7;
/// /proc/stat counts in hundredths of a second.
const TICK_NANOS: u64 = 10_000_000;

/// What files are read into.
pub(crate) struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; LARGEST])
    }
}

impl Buffer {
    /// The beginning of a file, which is all of it. None when its group is gone.
    fn read(&mut self, file: &File) -> Option<&str> {
        let length = loop {
            match file.read_at(&mut self.0, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.ok()?,
            }
        };
        std::str::from_utf8(self.0.get(..length)?).ok()
    }
}

/// The files of a group that say what it uses.
pub(crate) struct Meter {
    unified: bool,
    cpu: File,
    memory: File,
    memory_stat: File,
    /// Of v1: on v2 the first file says it.
    throttling: Option<File>,
    processes: Option<File>,
    pressures: Option<[File; 3]>,
}

impl Meter {
    /// Opens them; none when there is no such group.
    pub(crate) fn open(hierarchies: &Hierarchies, group: &Path) -> Option<Self> {
        let file =
            |controller: &str, name: &str| hierarchies.controller(controller, group).join(name);
        let open = |path: PathBuf| File::open(path).ok();
        let unified = hierarchies.is_unified();
        let memory_stat = open(file("memory", "memory.stat"))?;
        let processes = open(file("pids", "pids.current"));
        if unified {
            return Some(Self {
                unified,
                cpu: open(file("cpu", "cpu.stat"))?,
                memory: open(file("memory", "memory.current"))?,
                memory_stat,
                throttling: None,
                processes,
                pressures: pressure_files(&hierarchies.controller("cpu", group), "pressure"),
            });
        }
        Some(Self {
            unified,
            cpu: open(file("cpuacct", "cpuacct.usage"))?,
            memory: open(file("memory", "memory.usage_in_bytes"))?,
            memory_stat,
            throttling: open(file("cpu", "cpu.stat")),
            processes,
            pressures: None,
        })
    }

    /// What the group uses; none when it is gone.
    pub(crate) fn read(&self, buffer: &mut Buffer) -> Option<Usage> {
        let mut usage = Usage::default();
        let cpu = buffer.read(&self.cpu)?;
        if self.unified {
            usage.cpu_nanos = field(cpu, "usage_usec")?.saturating_mul(1000);
            usage.throttling = throttling(cpu, "throttled_usec", 1000);
        } else {
            usage.cpu_nanos = number(cpu)?;
        }
        if let Some(file) = &self.throttling {
            usage.throttling = throttling(buffer.read(file)?, "throttled_time", 1);
        }
        usage.memory = number(buffer.read(&self.memory)?)?;
        let stat = buffer.read(&self.memory_stat)?;
        let (inactive, rss) = match self.unified {
            true => ("inactive_file", "anon"),
            false => ("total_inactive_file", "total_rss"),
        };
        usage.memory_working_set = usage.memory.saturating_sub(field(stat, inactive)?);
        usage.memory_rss = field(stat, rss)?;
        if let Some(file) = &self.processes {
            usage.processes = number(buffer.read(file)?);
        }
        if let Some(files) = &self.pressures {
            usage.pressures = pressures_of(files, buffer);
        }
        Some(usage)
    }
}

/// The files that say what the whole machine uses.
pub(crate) struct Machine {
    cpu: MachineCpu,
    meminfo: File,
    pressures: Option<[File; 3]>,
}

/// Where the CPU time of all processes stands.
enum MachineCpu {
    /// In the root of a hierarchy of v1.
    Legacy(File),
    /// In that of v2.
    Unified(File),
    /// Where a hierarchy's root does not say it, as of old kernels.
    Proc(File),
}

impl Machine {
    /// Opens them.
    pub(crate) fn open(hierarchies: &Hierarchies) -> io::Result<Self> {
        let file = |controller: &str, name: &str| {
            let root = hierarchies.controller(controller, Path::new("/"));
            File::open(root.join(name))
        };
        let cpu = match hierarchies.is_unified() {
            true => file("cpu", "cpu.stat").map(MachineCpu::Unified),
            false => file("cpuacct", "cpuacct.usage").map(MachineCpu::Legacy),
        };
        let cpu = match cpu {
            Ok(cpu) => cpu,
            Err(_) => MachineCpu::Proc(File::open("/proc/stat")?),
        };
        Ok(Self {
            cpu,
            meminfo: File::open("/proc/meminfo")?,
            pressures: pressure_files(Path::new("/proc/pressure"), ""),
        })
    }

    /// What the machine uses, and the bytes of memory that can still be had.
    pub(crate) fn read(&self, buffer: &mut Buffer) -> Option<(Usage, u64)> {
        let cpu_nanos = match &self.cpu {
            MachineCpu::Legacy(file) => number(buffer.read(file)?)?,
            MachineCpu::Unified(file) => {
                field(buffer.read(file)?, "usage_usec")?.saturating_mul(1000)
            }
            MachineCpu::Proc(file) => ticks(buffer.read(file)?)?.saturating_mul(TICK_NANOS),
        };
        let meminfo = buffer.read(&self.meminfo)?;
        let bytes = |name: &str| kibibytes(meminfo, name)?.checked_mul(1024);
        let memory = bytes("MemTotal")?.saturating_sub(bytes("MemFree")?);
        let available = bytes("MemAvailable")?;
        let usage = Usage {
            cpu_nanos,
            memory,
            memory_working_set: memory.saturating_sub(bytes("Inactive(file)")?),
            memory_rss: bytes("AnonPages")?,
            ..Usage::default()
        };
        let pressures = self.pressures.as_ref();
        let usage = Usage {
            pressures: pressures.and_then(|files| pressures_of(files, buffer)),
            ..usage
        };
        Some((usage, available))
    }
}

/// Where a kernel does not tell it, or not of groups, there are no such files.
fn pressure_files(dir: &Path, suffix: &str) -> Option<[File; 3]> {
    let open = |what: &str| {
        let name = match suffix {
            "" => what.to_owned(),
            suffix => format!("{what}.{suffix}"),
        };
        // The kernel may have it and be told not to count.
        let file = File::open(dir.join(name)).ok()?;
        file.read_at(&mut [0; 1], 0).ok().map(|_| file)
    };
    Some([open("cpu")?, open("memory")?, open("io")?])
}

fn pressures_of(files: &[File; 3], buffer: &mut Buffer) -> Option<Pressures> {
    let [cpu, memory, io] = files;
    Some(Pressures {
        cpu: pressure(buffer.read(cpu)?),
        memory: pressure(buffer.read(memory)?),
        io: pressure(buffer.read(io)?),
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=12`, and `full` likewise, which some files do not have.
fn pressure(text: &str) -> Pressure {
    let total = |which: &str| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(which))?;
        let mut words = line.split(' ');
        words.find_map(|word| word.strip_prefix("total=")?.parse::<u64>().ok())
    };
    Pressure {
        waiting_micros: total("some ").unwrap_or_default(),
        stalled_micros: total("full ").unwrap_or_default(),
    }
}

/// What a cpu.stat says of a limit; nothing where there is none. Times are in units of so many nanoseconds.
fn throttling(text: &str, time: &str, unit: u64) -> Throttling {
    let count = |name: &str| field(text, name).unwrap_or_default();
    Throttling {
        periods: count("nr_periods"),
        throttled_periods: count("nr_throttled"),
        throttled_nanos: count(time).saturating_mul(unit),
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number of a line `name 12`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| number(line.strip_prefix(name)?.strip_prefix(' ')?))
}

/// The number of a line `name:   12 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        number(rest.trim_end().strip_suffix("kB")?)
    })
}

/// The ticks that all processors were busy: `cpu  user nice system idle iowait irq softirq steal`.
fn ticks(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let mut sum = 0_u64;
    for (place, word) in line.split_whitespace().take(8).enumerate() {
        // Neither what was idle nor what waited for disks.
        if place != 3 && place != 4 {
            sum = sum.saturating_add(word.parse().ok()?);
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Writes the files of a group.
    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    const PRESSURE: &str = "some avg10=0.10 avg60=0.00 avg300=0.00 total=70\n\
        full avg10=0.00 avg60=0.00 avg300=0.00 total=30\n";

    #[test]
    fn a_group_of_v2_is_read() {
        let mount = tempfile::tempdir().unwrap();
        let hierarchies = Hierarchies::Unified(mount.path().to_owned());
        let group = Path::new("/gantry/pod");
        assert!(Meter::open(&hierarchies, group).is_none());
        let dir = mount.path().join("gantry/pod");
        write(
            &dir,
            &[
                (
                    "cpu.stat",
                    "usage_usec 1500\nuser_usec 1000\nnr_periods 7\nnr_throttled 2\nthrottled_usec 5\n",
                ),
                ("memory.current", "1000\n"),
                ("memory.stat", "anon 300\nfile 600\ninactive_file 200\n"),
                ("pids.current", "3\n"),
            ],
        );
        let read = || {
            let meter = Meter::open(&hierarchies, group).expect("a group");
            meter.read(&mut Buffer::default()).expect("its usage")
        };
        let expected = Usage {
            cpu_nanos: 1_500_000,
            memory: 1000,
            memory_working_set: 800,
            memory_rss: 300,
            throttling: Throttling {
                periods: 7,
                throttled_periods: 2,
                throttled_nanos: 5000,
            },
            processes: Some(3),
            pressures: None,
        };
        assert_eq!(read(), expected);
        write(
            &dir,
            &[
                ("cpu.pressure", "some avg10=0.00 total=9\n"),
                ("memory.pressure", PRESSURE),
                ("io.pressure", PRESSURE),
            ],
        );
        let pressures = read().pressures.expect("it is told");
        let waited = |one: Pressure| (one.waiting_micros, one.stalled_micros);
        assert_eq!(waited(pressures.cpu), (9, 0));
        assert_eq!(waited(pressures.io), (70, 30));
    }

    #[test]
    fn a_group_of_v1_is_read_from_its_hierarchies() {
        let mounts = tempfile::tempdir().unwrap();
        let names = ["cpu", "cpuacct", "memory", "pids"];
        let hierarchies = Hierarchies::Legacy(
            names
                .iter()
                .map(|name| (vec![(*name).to_owned()], mounts.path().join(name)))
                .collect(),
        );
        let group = Path::new("/gantry/pod");
        let dir = |name: &str| mounts.path().join(name).join("gantry/pod");
        write(&dir("cpuacct"), &[("cpuacct.usage", "12345\n")]);
        write(
            &dir("memory"),
            &[
                ("memory.usage_in_bytes", "100\n"),
                (
                    "memory.stat",
                    "inactive_file 1\nrss 1\ntotal_rss 40\ntotal_inactive_file 300\n",
                ),
            ],
        );
        let meter = Meter::open(&hierarchies, group).expect("a group");
        let usage = meter.read(&mut Buffer::default()).expect("its usage");
        // More of it is inactive than there was a moment ago.
        assert_eq!(
            (usage.cpu_nanos, usage.memory_working_set, usage.memory_rss),
            (12345, 0, 40)
        );
        assert_eq!(
            (usage.processes, usage.throttling),
            (None, Throttling::default())
        );
        write(
            &dir("cpu"),
            &[(
                "cpu.stat",
                "nr_periods 4\nnr_throttled 1\nthrottled_time 77\n",
            )],
        );
        let meter = Meter::open(&hierarchies, group).expect("a group");
        let usage = meter.read(&mut Buffer::default()).expect("its usage");
        assert_eq!(usage.throttling.throttled_nanos, 77);
    }

    #[test]
    fn no_more_of_a_file_is_read_than_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        fs::write(&path, "a 1\n".repeat(LARGEST)).unwrap();
        let (file, mut buffer) = (File::open(&path).unwrap(), Buffer::default());
        assert_eq!(buffer.read(&file).map(str::len), Some(LARGEST));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(buffer.read(&file), None);
    }

    #[test]
    fn words_that_are_no_numbers_are_none() {
        assert_eq!(
            field("inactive_file_x 5\ninactive_file 7\n", "inactive_file"),
            Some(7)
        );
        assert_eq!(field("anon max\n", "anon"), None);
        assert_eq!(number("-1\n"), None);
        assert_eq!(
            ticks("cpu  1 2 4 100 100 8 16 32 64 128\ncpu0 1\n"),
            Some(63)
        );
        assert_eq!(ticks("cpu0 1\n"), None);
        assert_eq!(
            kibibytes("MemFree:   12 kB\nMemFreeX: 1 kB\n", "MemFree"),
            Some(12)
        );
        let torn = pressure("some avg10=0.00 total=x\nfull total=");
        assert_eq!(torn, Pressure::default());
    }

    #[test]
    fn this_machine_is_read() {
        let hierarchies = Hierarchies::detect().unwrap();
        let machine = Machine::open(&hierarchies).unwrap();
        let mut buffer = Buffer::default();
        let (usage, available) = machine.read(&mut buffer).expect("its usage");
        assert!(usage.cpu_nanos > 0 && usage.memory >= usage.memory_working_set && available > 0);
    }
}
