//! `gantry-runtime`: runs sandboxes and containers on this node.
//!
//! [`Runtime`] is the seam pod workers code against; [`ShimRuntime`] is the real thing, [`FakeRuntime`] the one in
//! memory. Per pod there is one shim process: this binary, re-executed. Whoever links this crate must call
//! [`dispatch`] first thing in `main`, before any thread exists.
//!
//! Depends on libcontainer, cgroups and `gantry-rpc`'s `shim.proto`. Must never know images, pods' specifications,
//! the API or the network beyond the path of a namespace to join.
//!
//! Invariants: a container is never started twice for one attempt; the agent's death changes nothing for running
//! containers; nothing (cgroup, mount, process, directory) outlives a removed sandbox but its logs; no program runs
//! without the system call filter meant for it.

pub mod error;
pub mod traits;

mod cgroup;
mod client;
mod fake;
mod helper;
mod rootfs;
mod runtime;
mod seccomp;
mod session;
mod shim;
mod spec;
mod sys;
mod trial;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use error::RuntimeError;
pub use fake::FakeRuntime;
pub use runtime::{ShimRuntime, ShimRuntimeConfig};
pub use shim::TERMINATION;
pub use traits::*;
pub use trial::{clock_is_kept, try_cgroups};

const SHIM: &str = "__gantry-shim";
const CREATE_HELPER: &str = "__gantry-create";
const EXEC_HELPER: &str = "__gantry-exec";
const PAUSE_STARTER: &str = "__gantry-pause-start";
const PAUSE: &str = "__gantry-pause";

/// Runs the part of the runtime this process was re-executed for, and returns its exit code; `None` when it is an
/// ordinary start. Call it before anything else: those parts fork, and must have a single thread.
pub fn dispatch(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let args: Vec<OsString> = args.into_iter().skip(1).take(3).collect();
    let role = args.first()?.to_str()?.to_owned();
    let path = |index: usize| args.get(index).map(PathBuf::from).unwrap_or_default();
    if !role.starts_with("__gantry-") {
        return None;
    }
    let part: &dyn Fn(&Path, &Path) -> std::io::Result<()> = match role.as_str() {
        SHIM => &|dir, _| shim::run(dir),
        CREATE_HELPER => &|dir, _| helper::create(dir),
        EXEC_HELPER => &helper::exec,
        PAUSE_STARTER => &|file, _| helper::start_pause(file),
        PAUSE => &|_, _| helper::pause(),
        _ => return None,
    };
    match sys::close_inherited().and_then(|()| part(&path(1), &path(2))) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{role}: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}
