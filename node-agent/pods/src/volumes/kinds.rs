//! The kinds of volumes this node knows.

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Once;

use gantry_base::quantity::Quantity;
use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, DownwardAPIVolumeSource};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, HostPathVolumeSource, ProjectedVolumeSource, SecretVolumeSource,
    Volume as Written,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::atomic::{self, File, Files};
use super::payload::{DEFAULT_MODE, Payload};
use super::tokens::PROJECTED;
use super::{Volume, VolumeContext, VolumeError, io};
use crate::limits;

/// What the files of API objects may take of the memory that they are in, in bytes; more when there are so many or so large
/// ones that two generations of them need it. Each file takes whole pages.
const OBJECTS_BYTES: u64 = 64 << 20;
/// How many files, directories and links that may be, at first; what is empty takes none of the bytes.
const OBJECTS_INODES: u64 = 32 << 10;
/// A link that leads to a name longer than this takes a page.
const SHORT_LINK: usize = 100;
/// How file systems in memory are mounted; a change of their bounds says it again.
const IN_MEMORY: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// The implementation for a volume as written.
pub(super) fn of(volume: &Written) -> Result<Box<dyn Volume>, VolumeError> {
    let name = volume.name.clone();
    Ok(if let Some(source) = volume.config_map.clone() {
        Box::new(FromObjects {
            name,
            source: Source::ConfigMap(source),
        })
    } else if let Some(source) = volume.secret.clone() {
        Box::new(FromObjects {
            name,
            source: Source::Secret(source),
        })
    } else if let Some(source) = volume.projected.clone() {
        Box::new(FromObjects {
            name,
            source: Source::Projected(source),
        })
    } else if let Some(source) = volume.downward_api.clone() {
        Box::new(FromObjects {
            name,
            source: Source::Downward(source),
        })
    } else if let Some(source) = volume.host_path.clone() {
        Box::new(HostPath(source))
    } else if let Some(source) = volume.empty_dir.clone() {
        match source.medium.as_deref() {
            None | Some("" | "Memory") => Box::new(EmptyDir { name, source }),
            Some(other) => return Err(VolumeError::Medium(other.to_owned())),
        }
    } else if let Some(claim) = &volume.persistent_volume_claim {
        return Err(VolumeError::Claim(claim.claim_name.clone()));
    } else {
        return Err(VolumeError::Unsupported);
    })
}

struct EmptyDir {
    name: String,
    source: EmptyDirVolumeSource,
}

impl EmptyDir {
    /// How much memory it may take: its limit, no more than the pod may have, and never more than the node has for pods.
    fn memory(&self, context: &VolumeContext<'_>) -> Option<i64> {
        let bytes = |text: &str| {
            let quantity = text.parse::<Quantity>().ok()?;
            Some(quantity.units()).filter(|bytes| *bytes > 0)
        };
        let own = self.source.size_limit.as_ref();
        let spec = context.pod.spec.as_ref();
        let node = context.allocatable.get("memory");
        [
            own.and_then(|limit| bytes(&limit.0)),
            spec.and_then(|spec| limits::total(spec, "memory")),
            node.and_then(|memory| bytes(&memory.0)),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl Volume for EmptyDir {
    fn read_only(&self) -> bool {
        false
    }

    fn set_up(&self, context: &VolumeContext<'_>) -> Result<PathBuf, VolumeError> {
        let path = context.dir("kubernetes.io~empty-dir", &self.name);
        let group = context.fs_group();
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        if !path.exists() {
            // Under its name it is complete: nobody looks at its owner and mode again. No volume has a `~` in its name.
            let fresh = path.with_file_name(format!("{}~", self.name));
            let make = || -> std::io::Result<()> {
                fs::create_dir_all(&fresh)?;
                chown(&fresh, None, group)?;
                fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
                fs::rename(&fresh, &path)
            };
            make().map_err(io(format!("creating {}", path.display())))?;
        }
        if self.source.medium.as_deref() == Some("Memory") {
            let size = self.memory(context).map(|bytes| format!("size={bytes}"));
            let group = group.map(|group| format!("gid={group}"));
            let bounds: Vec<String> = size.into_iter().chain(group).collect();
            mount_tmpfs(&path, mode, &bounds.join(","))?;
        }
        Ok(path)
    }

    fn refresh(&self, _: &VolumeContext<'_>) -> Result<(), VolumeError> {
        Ok(())
    }
}

struct HostPath(HostPathVolumeSource);

impl Volume for HostPath {
    fn read_only(&self) -> bool {
        false
    }

    fn set_up(&self, _: &VolumeContext<'_>) -> Result<PathBuf, VolumeError> {
        let path = PathBuf::from(&self.0.path);
        let kind = self.0.type_.as_deref().unwrap_or_default();
        let doing = || io(format!("creating {}", path.display()));
        if fs::metadata(&path).is_err() {
            match kind {
                // Without a type as container engines do: a missing path is a new directory.
                "DirectoryOrCreate" | "" => atomic::readable_directory(&path).map_err(doing())?,
                "FileOrCreate" => fs::File::create(&path)
                    .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o644)))
                    .map_err(doing())?,
                _ => {}
            }
        }
        let metadata = fs::metadata(&path).ok();
        let is = |test: fn(&fs::FileType) -> bool| {
            metadata
                .as_ref()
                .is_some_and(|metadata| test(&metadata.file_type()))
        };
        let (fits, expected) = match kind {
            "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "a directory"),
            "File" | "FileOrCreate" => (is(fs::FileType::is_file), "a file"),
            "Socket" => (is(FileTypeExt::is_socket), "a socket file"),
            "CharDevice" => (is(FileTypeExt::is_char_device), "a character device"),
            "BlockDevice" => (is(FileTypeExt::is_block_device), "a block device"),
            _ => (metadata.is_some(), "there"),
        };
        if fits {
            Ok(path)
        } else {
            Err(VolumeError::HostPathType {
                path: self.0.path.clone(),
                expected,
            })
        }
    }

    fn refresh(&self, _: &VolumeContext<'_>) -> Result<(), VolumeError> {
        Ok(())
    }
}

/// A volume whose files are written from API objects.
struct FromObjects {
    name: String,
    source: Source,
}

enum Source {
    ConfigMap(ConfigMapVolumeSource),
    Secret(SecretVolumeSource),
    Projected(ProjectedVolumeSource),
    Downward(DownwardAPIVolumeSource),
}

impl FromObjects {
    fn path(&self, context: &VolumeContext<'_>) -> PathBuf {
        let plugin = match self.source {
            Source::ConfigMap(_) => "kubernetes.io~configmap",
            Source::Secret(_) => "kubernetes.io~secret",
            Source::Projected(_) => PROJECTED,
            Source::Downward(_) => "kubernetes.io~downward-api",
        };
        context.dir(plugin, &self.name)
    }

    /// Whether its contents never touch a disk.
    fn in_memory(&self) -> bool {
        matches!(self.source, Source::Secret(_) | Source::Projected(_))
    }

    fn files(&self, context: &VolumeContext<'_>) -> Result<Files, VolumeError> {
        let mut payload = Payload::new(context);
        match &self.source {
            Source::ConfigMap(source) => payload.config_map(
                &source.name,
                source.items.as_ref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                source.optional == Some(true),
            ),
            Source::Secret(source) => payload.secret(
                source.secret_name.as_deref().unwrap_or_default(),
                source.items.as_ref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                source.optional == Some(true),
            ),
            Source::Projected(source) => payload.projected(source),
            Source::Downward(source) => payload.downward(
                source.items.as_ref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
            ),
        }?;
        let mut files = payload.into_files();
        if context.fs_group().is_some() {
            for file in files.values_mut() {
                file.mode |= 0o440;
            }
        }
        Ok(files)
    }

    fn write(
        &self,
        context: &VolumeContext<'_>,
        path: &Path,
        files: &Files,
    ) -> Result<(), VolumeError> {
        if self.in_memory() {
            make_room(path, files)?;
        }
        atomic::write(path, files, context.fs_group())
            .map_err(io(format!("writing volume \"{}\"", self.name)))
    }
}

impl Volume for FromObjects {
    fn set_up(&self, context: &VolumeContext<'_>) -> Result<PathBuf, VolumeError> {
        let path = self.path(context);
        let files = self.files(context)?;
        atomic::readable_directory(&path).map_err(io(format!("creating {}", path.display())))?;
        if self.in_memory() {
            let bounds = format!("size={OBJECTS_BYTES},nr_inodes={OBJECTS_INODES}");
            mount_tmpfs(&path, 0o755, &bounds)?;
        }
        self.write(context, &path, &files)?;
        Ok(path)
    }

    fn refresh(&self, context: &VolumeContext<'_>) -> Result<(), VolumeError> {
        let path = self.path(context);
        if path.exists() {
            self.write(context, &path, &self.files(context)?)
        } else {
            Ok(())
        }
    }
}

/// Sees to it that a file system in memory has room for these files beside those that they replace, which had room beside
/// others. It never shrinks: it takes only the memory of what is in it.
fn make_room(path: &Path, files: &Files) -> Result<(), VolumeError> {
    let doing = || {
        io(format!(
            "making room in the tmpfs at {} (root is needed)",
            path.display()
        ))
    };
    let found = rustix::fs::statvfs(path).map_err(|error| doing()(error.into()))?;
    let pages = |path: &Path, file: &File| {
        let shown = path.iter().next().unwrap_or_default();
        (file.content.len() as u64).div_ceil(found.f_frsize.max(1))
            + u64::from(shown.len() > SHORT_LINK)
    };
    let pages: u64 = files.iter().map(|(path, file)| pages(path, file)).sum();
    let entries: usize = files.keys().map(|path| path.iter().count()).sum();
    // Of either generation its files and directories, its top, and a link to each; and the link to what is shown.
    let inodes = 4 * (entries as u64 + 2);
    if found.f_blocks >= 2 * pages && found.f_files >= inodes {
        return Ok(());
    }
    let bounds = format!(
        "size={},nr_inodes={}",
        found.f_blocks.max(2 * pages) * found.f_frsize,
        found.f_files.max(inodes)
    );
    rustix::mount::mount_remount(path, IN_MEMORY, bounds.as_str())
        .map_err(|error| doing()(error.into()))
}

/// Mounts an empty file system in memory, once. `bounds` are options of tmpfs, such as how much memory. What is in it is not
/// written to swap, where the kernel can do so.
fn mount_tmpfs(path: &Path, mode: u32, bounds: &str) -> Result<(), VolumeError> {
    // The kernel's table of mounts knows no links.
    let place = fs::canonicalize(path).map_err(io(format!("finding {}", path.display())))?;
    if mounts_below(&place)?.contains(&place) {
        return Ok(());
    }
    let options = format!("mode={mode:o},{bounds}");
    let mount = |options: &str| {
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount(
            "tmpfs",
            place.as_path(),
            "tmpfs",
            IN_MEMORY,
            Some(options.as_c_str()),
        )
    };
    without_swap(&options, mount, warn_of_swap).map_err(|error| {
        io(format!(
            "mounting a tmpfs at {} (root is needed)",
            path.display()
        ))(error.into())
    })
}

/// Mounts with `noswap`; without it, and saying so, where the kernel does not know it: before Linux 6.4.
fn without_swap(
    options: &str,
    mount: impl Fn(&str) -> rustix::io::Result<()>,
    say: impl FnOnce(),
) -> rustix::io::Result<()> {
    match mount(&format!("{options},noswap")) {
        Err(Errno::INVAL) => {
            mount(options)?;
            say();
            Ok(())
        }
        mounted => mounted,
    }
}

/// Says once that what should stay in memory may be written to disk, where the machine swaps.
fn warn_of_swap() {
    static SAID: Once = Once::new();
    // The first line is a heading.
    let swaps = fs::read_to_string("/proc/swaps").is_ok_and(|table| table.lines().count() > 1);
    if swaps {
        SAID.call_once(|| {
            tracing::warn!(
                "this kernel cannot keep volumes out of swap (Linux 6.4 can), and swap is on: Secrets may be written to disk; turn swap off or encrypt it"
            );
        });
    }
}

/// Mount points at or below a path, outermost first.
pub(super) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let table = fs::read("/proc/self/mountinfo").map_err(io("reading /proc/self/mountinfo"))?;
    let points = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points
        .map(unescaped)
        .filter(|point| point.starts_with(&path))
        .collect())
}

/// A path as the kernel writes it into its tables: blanks, tabs, line ends and backslashes are `\ooo`, their number.
fn unescaped(written: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((first, others)) = rest.split_first() {
        let number = others.get(..3).filter(|_| *first == b'\\');
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = number.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(byte.unwrap_or(*first));
        rest = byte.map_or(others, |_| &others[3..]);
    }
    OsString::from_vec(path).into()
}

/// Takes a mount off. What else is mounted like it, or through it, is the host's and stays: a mount that shares its changes
/// with others would hand this one on as well.
pub(super) fn unmount(path: &Path) -> Result<(), VolumeError> {
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(path, alone)
        .and_then(|()| rustix::mount::unmount(path, UnmountFlags::DETACH))
        .map_err(|error| io(format!("unmounting {}", path.display()))(error.into()))
}

#[cfg(test)]
mod tests;
