//! Kernel settings of a pod: writing them from where nothing else can be reached.

use std::fs;
use std::io;
use std::path::Path;

use gantry_cri::runtime::{SysctlName, SysctlNamespace};
use rustix::thread::CapabilitySet;

use crate::privileges;

const SETTINGS: &str = "/proc/sys";

/// Writes the settings, as a process that is in the pod's namespaces already. `root` is an empty directory to stand on.
/// It ends up with a root directory that holds the settings of those namespaces and nothing else, and with no capability
/// but those that the settings ask for, so that not even a wrong name could lead it to the host's. `owner` is root of
/// the pod's own users, whose some settings are to newer kernels.
pub(crate) fn write(
    settings: &[(SysctlName, String)],
    own: &[SysctlNamespace],
    root: &Path,
    owner: Option<u32>,
) -> io::Result<()> {
    privileges::enter_root_of_its_own(root, 0, |root| {
        if own.contains(&SysctlNamespace::Net) {
            bind(Path::new("net"), root)?;
        }
        if own.contains(&SysctlNamespace::Ipc) {
            for entry in fs::read_dir(Path::new(SETTINGS).join("kernel"))?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if SysctlNamespace::of(&format!("kernel.{name}")).is_some() {
                    bind(&Path::new("kernel").join(name), root)?;
                }
            }
            bind(Path::new("fs/mqueue"), root)?;
        }
        Ok(())
    })?;
    let mut kept = CapabilitySet::NET_ADMIN;
    if owner.is_some() {
        kept |= CapabilitySet::SETUID;
    }
    privileges::bound_capabilities(kept)?;
    privileges::hold_capabilities(kept)?;
    rustix::thread::set_no_new_privs(true)?;
    for (name, value) in settings {
        let path = Path::new("/").join(name.path());
        let set = || {
            let file = fs::OpenOptions::new().write(true).open(&path)?;
            io::Write::write_all(&mut &file, value.as_bytes())
        };
        let written = match (set(), owner) {
            (Err(error), Some(owner)) if error.kind() == io::ErrorKind::PermissionDenied => {
                privileges::as_user(owner, set)
            }
            (written, _) => written,
        };
        written.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("setting the sysctl {}: {error}", name.as_str()),
            )
        })?;
    }
    Ok(())
}

fn bind(part: &Path, root: &Path) -> io::Result<()> {
    let (source, target) = (Path::new(SETTINGS).join(part), root.join(part));
    if source.is_dir() {
        fs::create_dir_all(&target)?;
    } else if source.exists() {
        fs::create_dir_all(target.parent().unwrap_or(root))?;
        fs::write(&target, b"")?;
    } else {
        // A kernel without it.
        return Ok(());
    }
    Ok(rustix::mount::mount_bind(&source, &target)?)
}
