//! `gantry-runtime`: runs sandboxes and containers on this node.
//!
//! [`ShimRuntime`] is the [`Runtime`] of a node, which pod workers know by that trait alone. Per pod there is one shim process: this binary, re-executed. Whoever links this crate must call
//! [`dispatch`] first thing in `main`, before any thread exists.
//!
//! Depends on libcontainer, cgroups, `gantry-idmap` and `gantry-rpc`'s `shim.proto`. Must never know images, pods' specifications,
//! the API or the network beyond the path of a namespace to join.
//!
//! Invariants: a container is never started twice for one attempt; the agent's death changes nothing for running
//! containers; nothing (cgroup, mount, process, directory) outlives a removed sandbox but its logs; no program runs
//! without the system call filter meant for it.

mod bpf;
mod cgroup;
mod client;
mod device_program;
mod devices;
mod exec;
mod executable;
mod helper;
mod launch;
mod namespaces;
mod privileges;
mod rootfs;
mod runtime;
mod seccomp;
mod session;
mod shim;
mod spec;
mod sys;
mod sysctl;
mod trial;
mod users;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use gantry_cri::runtime::*;
pub use runtime::{ShimRuntime, ShimRuntimeConfig};
pub use trial::{clock_is_kept, try_cgroups};

const SHIM: &str = "__gantry-shim";
const CREATE_HELPER: &str = "__gantry-create";
const EXEC_HELPER: &str = "__gantry-exec";
const NAMESPACES: &str = "__gantry-namespaces";
const PAUSE: &str = "__gantry-pause";
const PAUSE_OF_OWN_USERS: &str = "__gantry-pause-own-users";
const USERS: &str = "__gantry-users";

/// What a server or agent does first: its memory, which holds keys, is neither dumped nor read by others, and the
/// kernel's OOM killer ends everything else before. Says whether the second was allowed.
pub fn guard_process() -> io::Result<bool> {
    privileges::hide()?;
    privileges::die_late(-999)
}

/// Runs the part of the runtime this process was re-executed for, and returns its exit code; `None` when it is an
/// ordinary start. Call it before anything else: those parts fork, and must have a single thread.
pub fn dispatch(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let role = args.next()?.to_str()?.to_owned();
    let part: fn(&Path, Vec<OwnedFd>) -> io::Result<()> = match role.as_str() {
        SHIM => |dir, _| shim::run(dir),
        NAMESPACES => |dir, _| namespaces::run(dir),
        CREATE_HELPER => helper::create,
        EXEC_HELPER => exec::exec,
        PAUSE => |dir, _| namespaces::pause(dir),
        // Its containers make their own file systems of processes.
        PAUSE_OF_OWN_USERS => |empty, _| namespaces::hold(empty),
        USERS => |_, _| users::run(),
        _ => return None,
    };
    let dir = args.next().map(PathBuf::from).unwrap_or_default();
    // These parts fork: a panic must not unwind into what their parent would do next.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        std::process::abort();
    }));
    // Numbers of descriptors that were left open for it.
    let inherited: Vec<i32> = args
        .filter_map(|number| number.to_str()?.parse().ok())
        .collect();
    let run = || {
        privileges::hide()?;
        part(&dir, sys::take_inherited(&inherited)?)
    };
    match run() {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{role}: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}
