//! A pod's volumes on the host, and the bind mounts made of them.
//!
//! Each kind is a [`Volume`]. Secrets and projected volumes live in a tmpfs of their own, so that their contents never
//! touch a disk; what is written from API objects is replaced atomically when the objects change, and containers cannot
//! write to it.

mod atomic;
mod kinds;
mod payload;
mod subpath;
mod tokens;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use gantry_cri::runtime::{BindMount, Propagation};
use k8s_openapi::api::core::v1::{Container, Pod, Volume as Written, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::retry_on_intr;

use crate::env::{EnvError, expand};
use crate::traits::Objects;

pub use tokens::{PodTokens, TokenSource};
pub(crate) use tokens::{shown as shown_token, sources as token_sources};

/// Below a pod's directory: its volumes, by kind and name.
const VOLUMES: &str = "volumes";
/// Below a pod's directory: the parts of volumes that its containers have mounted, by container and mount.
const SUBPATHS: &str = "volume-subpaths";

/// A volume that cannot be set up; the pod waits, and the words become a `FailedMount` Event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such ConfigMap or Secret.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// `items` names a key that is not there.
    #[error("references non-existent {kind} key: {key}")]
    Key {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// hostPath is not what its type says.
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPathType {
        /// The path.
        path: String,
        /// e.g. `a directory`.
        expected: &'static str,
    },
    /// A kind that this node does not know.
    #[error(
        "volume source of this kind is not supported by this node; use emptyDir, hostPath, configMap, secret, downwardAPI or projected"
    )]
    Unsupported,
    /// A claim, there or not.
    #[error(
        "persistentvolumeclaim {0:?} cannot be mounted: persistent volumes are not supported by this node"
    )]
    Claim(String),
    /// An emptyDir on something that this node has not.
    #[error("emptyDir.medium {0:?} is not supported by this node; use Memory, or leave it out")]
    Medium(String),
    /// A path that leaves the volume.
    #[error("subPath {0:?} must stay within the volume")]
    Outside(String),
    /// Variables of a subPathExpr that the container does not have, or that are empty.
    #[error("missing value for {0}")]
    NoValue(String),
    /// A path in the volume that is too long or too deep.
    #[error("a path in the volume has more than {bytes} bytes or {levels} names")]
    LongPath {
        /// How long it may be.
        bytes: usize,
        /// How many names it may have.
        levels: usize,
    },
    /// More than one volume may hold.
    #[error(
        "the volume would have more than {bytes} bytes of contents, or more than {entries} files and directories; divide it among several"
    )]
    TooMuch {
        /// How much it may hold.
        bytes: usize,
        /// How many files and directories it may have.
        entries: usize,
    },
    /// A token of the pod's account that nobody has got for it.
    #[error("the token of the service account for audience {0:?} is missing")]
    NoToken(String),
    /// Downward API.
    #[error(transparent)]
    Field(#[from] EnvError),
    /// A mount names a volume that the pod does not have.
    #[error("volume \"{0}\" of a volumeMount is not among the pod's volumes")]
    Unknown(String),
    /// The file system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> VolumeError {
    let doing = doing.into();
    move |source| VolumeError::Io { doing, source }
}

/// What volumes are made from.
pub struct VolumeContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Where references lead.
    pub objects: &'a dyn Objects,
    /// This pod's directory.
    pub pod_dir: &'a Path,
    /// The pod's addresses, IPv4 first, once known.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses, IPv4 first.
    pub host_ips: &'a [IpAddr],
    /// The node's allocatable resources.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// The tokens that its projected volumes show.
    pub tokens: &'a PodTokens,
}

impl VolumeContext<'_> {
    fn dir(&self, plugin: &str, name: &str) -> PathBuf {
        self.pod_dir.join(VOLUMES).join(plugin).join(name)
    }

    fn fs_group(&self) -> Option<u32> {
        let context = self.pod.spec.as_ref()?.security_context.as_ref()?;
        u32::try_from(context.fs_group?).ok()
    }

    /// The user that all containers of the pod run as, where its specification says so: tokens are that one's alone.
    fn fs_user(&self) -> Option<u32> {
        let spec = self.pod.spec.as_ref()?;
        let of_pod = spec.security_context.as_ref();
        let of_pod = of_pod.and_then(|context| context.run_as_user);
        let containers = spec.containers.iter();
        let containers = containers.chain(spec.init_containers.iter().flatten());
        let mut users = containers.map(|container| {
            let own = container.security_context.as_ref();
            own.and_then(|context| context.run_as_user).or(of_pod)
        });
        let first = users.next()??;
        match users.all(|user| user == Some(first)) {
            true => u32::try_from(first).ok(),
            false => None,
        }
    }
}

/// One kind of volume. Both operations are idempotent.
pub trait Volume: Send + Sync {
    /// Makes it exist; answers its path on the host.
    fn set_up(&self, context: &VolumeContext<'_>) -> Result<PathBuf, VolumeError>;
    /// Brings its contents up to date with the API objects they come from.
    fn refresh(&self, context: &VolumeContext<'_>) -> Result<(), VolumeError>;
    /// Whether containers may only read it, whatever their mounts say: so it is with everything that we write to while
    /// they run.
    fn read_only(&self) -> bool {
        true
    }
}

/// Keeps everybody else from writing to the pod's volumes until it is dropped, and waits for who does: also for what a
/// worker that failed has left under way. Containers do not see the directory, so none of them can hold the lock.
fn lock(pod_dir: &Path) -> Result<OwnedFd, VolumeError> {
    let path = pod_dir.join(VOLUMES);
    let locked = || -> std::io::Result<OwnedFd> {
        std::fs::create_dir_all(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())?;
        retry_on_intr(|| rustix::fs::flock(&directory, FlockOperation::LockExclusive))?;
        Ok(directory)
    };
    locked().map_err(io(format!("locking {}", path.display())))
}

/// Whether what is in the pod's volumes comes from objects, its own labels among them, and changes with them.
pub fn follow_objects(pod: &Pod) -> bool {
    volumes(pod).any(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
    })
}

/// Sets up every volume of the pod; answers their host paths by name.
pub fn set_up(
    context: &VolumeContext<'_>,
) -> Result<BTreeMap<String, PathBuf>, (String, VolumeError)> {
    let mut paths = BTreeMap::new();
    let Some(first) = volumes(context.pod).next() else {
        return Ok(paths);
    };
    let _lock = lock(context.pod_dir).map_err(|error| (first.name.clone(), error))?;
    for volume in volumes(context.pod) {
        let path = kinds::of(volume)
            .and_then(|kind| kind.set_up(context))
            .map_err(|error| (volume.name.clone(), error))?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

/// Brings the contents of all volumes up to date; the first error, after all were tried. The objects are read while nobody
/// else writes: what was read first is never written last.
pub fn refresh(context: &VolumeContext<'_>) -> Result<(), (String, VolumeError)> {
    let mut result = Ok(());
    let made = context.pod_dir.join(VOLUMES).is_dir();
    let Some(first) = volumes(context.pod).next().filter(|_| made) else {
        return result;
    };
    let _lock = lock(context.pod_dir).map_err(|error| (first.name.clone(), error))?;
    for volume in volumes(context.pod) {
        let refreshed = kinds::of(volume).and_then(|kind| kind.refresh(context));
        if let (Err(error), true) = (refreshed, result.is_ok()) {
            result = Err((volume.name.clone(), error));
        }
    }
    result
}

/// Unmounts and removes everything below a directory. The caller knows that no container uses it.
pub fn tear_down(directory: &Path) -> Result<(), VolumeError> {
    let mounted = kinds::mounts_below(directory)?;
    for mount in mounted.iter().rev() {
        kinds::unmount(mount)?;
    }
    gantry_durable::remove_tree(directory).map_err(io(format!("removing {}", directory.display())))
}

/// Unmounts and removes a pod's volumes, and nothing else below its directory. The caller knows that no container uses
/// them.
pub fn reclaim(pod_dir: &Path) -> Result<(), VolumeError> {
    // These hold on to files that are removed.
    tear_down(&pod_dir.join(SUBPATHS))?;
    tear_down(&pod_dir.join(VOLUMES))
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Written> {
    pod.spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
}

/// The bind mounts of a container of the pod whose directory this is. `env` is what `subPathExpr` sees. The caller knows
/// that the container does not run: what earlier calls have mounted for it is taken off.
pub fn mounts(
    pod: &Pod,
    pod_dir: &Path,
    container: &Container,
    paths: &BTreeMap<String, PathBuf>,
    env: &[(String, String)],
) -> Result<Vec<BindMount>, VolumeError> {
    let subpaths = pod_dir.join(SUBPATHS).join(&container.name);
    if subpaths.exists() {
        tear_down(&subpaths)?;
    }
    let mut result = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let unknown = || VolumeError::Unknown(mount.name.clone());
        let base = paths.get(&mount.name).ok_or_else(unknown)?;
        let volume = volumes(pod).find(|volume| volume.name == mount.name);
        let kind = kinds::of(volume.ok_or_else(unknown)?)?;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::None,
        };
        let source = match sub_path(mount, env)? {
            Some(path) => {
                let place = subpaths.join(index.to_string());
                subpath::attach(base, &path, &place, propagation)?;
                place
            }
            None => base.clone(),
        };
        result.push(BindMount {
            source,
            target: Path::new("/").join(&mount.mount_path),
            read_only: kind.read_only() || mount.read_only == Some(true),
            propagation,
        });
    }
    // A mount point below another must be mounted after it.
    result.sort_by_key(|mount| mount.target.components().count());
    Ok(result)
}

/// Which part of its volume a mount is of, unless all. A variable without a value would make it another part than was meant.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, VolumeError> {
    let written = |path: &Option<String>| path.clone().filter(|path| !path.is_empty());
    if let Some(path) = written(&mount.sub_path) {
        return Ok(Some(path));
    }
    let Some(expression) = written(&mount.sub_path_expr) else {
        return Ok(None);
    };
    let missing = RefCell::new(BTreeSet::new());
    let lookup = |name: &str| {
        let known = env.iter().find(|(own, _)| own == name);
        let value = known.map(|(_, value)| value.clone()).unwrap_or_default();
        if value.is_empty() {
            missing.borrow_mut().insert(name.to_owned());
        }
        Some(value)
    };
    let path = expand(&expression, &lookup);
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    match missing.is_empty() {
        true => Ok(Some(path)),
        false => Err(VolumeError::NoValue(missing.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_part_is_named_only_by_variables_with_a_value() {
        let env = [("NAME", "web-0"), ("EMPTY", "")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let part = |written: Value| {
            let mut mount = json!({"name": "v", "mountPath": "/v"});
            mount
                .as_object_mut()
                .unwrap()
                .extend(written.as_object().unwrap().clone());
            let mount: VolumeMount = serde_json::from_value(mount).unwrap();
            sub_path(&mount, &env).map_err(|error| error.to_string())
        };
        let is = |path: &str| Ok(Some(path.to_owned()));
        assert_eq!(part(json!({})), Ok(None));
        assert_eq!(part(json!({"subPath": "", "subPathExpr": ""})), Ok(None));
        assert_eq!(part(json!({"subPath": "$(NONE)"})), is("$(NONE)"));
        assert_eq!(part(json!({"subPathExpr": "a/$(NAME)"})), is("a/web-0"));
        assert_eq!(part(json!({"subPathExpr": "$$(NONE)"})), is("$(NONE)"));
        let missing = |names: &str| Err(format!("missing value for {names}"));
        for (expression, names) in [
            ("$(NONE)", "NONE"),
            ("a/$(EMPTY)", "EMPTY"),
            ("$(NONE)/$(NAME)/$(EMPTY)/$(NONE)", "EMPTY, NONE"),
        ] {
            assert_eq!(part(json!({"subPathExpr": expression})), missing(names));
        }
    }
}
