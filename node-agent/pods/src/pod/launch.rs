//! Starting one attempt of a container: image, environment, user, mounts, then the runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use gantry_cri::image::Image;
use gantry_cri::runtime::{
    BindMount, ContainerExit, ContainerId, ContainerSpec, ContainerStatus, PodUid, Propagation,
    RuntimeError, Seccomp,
};
use gantry_cri::words;
use gantry_idmap::Users;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use tokio_util::sync::CancellationToken;

use super::files;
use super::node::{Node, full_name};
use super::pull;
use super::record::{Ended, Journal, now_nanos};
use crate::env::{EnvContext, environment, expand};
use crate::limits;
use crate::traits::Severity;
use crate::users::{self, Accounts};
use crate::volumes;

/// The pod's sandbox as its containers need it.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    /// IPv4 first.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// Host paths of volumes by name.
    pub(crate) volumes: BTreeMap<String, PathBuf>,
    /// Of a pod that does not share the host's.
    pub(crate) users: Option<Users>,
}

/// What is to be started.
pub(crate) struct Launch {
    pub(crate) node: Arc<Node>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: String,
    pub(crate) container: Arc<Container>,
    pub(crate) attempt: u32,
    pub(crate) sandbox: Sandbox,
    pub(crate) journal: Arc<Journal>,
    /// The pod is being stopped: give up while nothing has begun.
    pub(crate) cancel: CancellationToken,
}

/// A started container.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) status: ContainerStatus,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) stop_signal: Option<String>,
    /// What it was started with.
    pub(crate) resources: ResourceRequirements,
}

/// Why nothing runs.
#[derive(Debug)]
pub(crate) enum NotLaunched {
    /// No image; tried again after a pull back-off when `retry`.
    Image(pull::NoImage),
    /// A reference, user or mount is wrong; tried again when something changes, and now and then.
    Config {
        reason: &'static str,
        message: String,
    },
    /// The attempt was made and could not execute; it counts as a failed run.
    Failed(Ended),
    /// The pod is being stopped.
    Cancelled,
}

fn config(reason: &'static str) -> impl Fn(&dyn std::error::Error) -> NotLaunched {
    move |error| NotLaunched::Config {
        reason,
        message: words(error),
    }
}

/// The rootfs key of an attempt.
pub(crate) fn rootfs_key(uid: &str, name: &str, attempt: u32) -> String {
    format!("{uid}-{name}-{attempt}")
}

impl Launch {
    fn event(&self, severity: Severity, reason: &str, message: &str) {
        self.node.reports.event(
            &self.pod,
            Some(&self.container.name),
            severity,
            reason,
            message,
        );
    }

    /// Does it.
    pub(crate) async fn run(self) -> Result<Launched, NotLaunched> {
        let result = self.attempt().await;
        if let Err(NotLaunched::Config { message, .. }) = &result {
            self.event(Severity::Warning, "Failed", &format!("Error: {message}"));
        }
        result
    }

    async fn attempt(&self) -> Result<Launched, NotLaunched> {
        let image = tokio::select! {
            image = pull::image(&self.node, &self.pod, &self.container) => image.map_err(NotLaunched::Image)?,
            () = self.cancel.cancelled() => return Err(NotLaunched::Cancelled),
        };
        let key = rootfs_key(&self.uid, &self.container.name, self.attempt);
        let started = self.start(image, &key).await;
        if started.is_err()
            && let Err(error) = self.node.images.unmount_rootfs(&key).await
        {
            // Tried again when the pod goes.
            tracing::warn!(pod = self.uid, key, %error, "unmounting the root of a container that did not start");
        }
        started
    }

    async fn start(&self, image: Image, key: &str) -> Result<Launched, NotLaunched> {
        let users = self.sandbox.users.clone();
        let rootfs = self.node.images.mount_rootfs(&image.id, key, users).await;
        let rootfs = rootfs.map_err(|error| config("CreateContainerError")(&error))?;
        let volumes = self.image_volumes(&image, key).await?;
        let spec = self.spec(&image, &rootfs, volumes)?;
        // Invariant: an attempt is on disk before the runtime is asked, so that none is ever begun twice.
        let recorded = self.journal.container(&self.container.name, |entry| {
            entry.attempt = Some(self.attempt);
            if let Some(ended) = entry.ended.take() {
                entry.last = Some(ended);
            }
            entry.image = self.container.image.clone().unwrap_or_default();
            entry.image_id = image_id(&image);
            entry.stop_signal = image.config.stop_signal.clone();
            entry.resources = Some(self.container.resources.clone().unwrap_or_default());
        });
        recorded.map_err(|error| config("CreateContainerError")(&error))?;
        self.event(Severity::Normal, "Created", "Container created");
        match self.node.runtime.start_container(spec).await {
            Ok(status) => {
                self.event(Severity::Normal, "Started", "Container started");
                Ok(Launched {
                    status,
                    image: self.container.image.clone().unwrap_or_default(),
                    image_id: image_id(&image),
                    stop_signal: image.config.stop_signal,
                    resources: self.container.resources.clone().unwrap_or_default(),
                })
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &RuntimeError) -> NotLaunched {
        let message = words(error);
        self.event(Severity::Warning, "Failed", &format!("Error: {message}"));
        let exit = ContainerExit {
            code: 128,
            signal: None,
            oom_killed: false,
            // It never ran.
            started_at: 0,
            finished_at: now_nanos(),
            message,
        };
        NotLaunched::Failed(Ended {
            attempt: self.attempt,
            exit,
            reason: "StartError".to_owned(),
        })
    }

    /// The volumes that the image asks for, of this attempt's own; a container that mounts something there has that instead.
    /// They can be written to though the root file system cannot.
    async fn image_volumes(&self, image: &Image, key: &str) -> Result<Vec<BindMount>, NotLaunched> {
        let own = self.container.volume_mounts.iter().flatten();
        let mut taken: Vec<PathBuf> = own.map(|mount| cleaned(&mount.mount_path)).collect();
        let mut volumes = Vec::new();
        for path in &image.config.volumes {
            let target = cleaned(path);
            if taken.contains(&target) {
                continue;
            }
            let (users, path) = (self.sandbox.users.clone(), target.to_string_lossy());
            let source = self.node.images.make_volume(key, &path, users).await;
            volumes.push(BindMount {
                source: source.map_err(|error| config("CreateContainerError")(&error))?,
                target: target.clone(),
                read_only: false,
                propagation: Propagation::None,
            });
            taken.push(target);
        }
        Ok(volumes)
    }

    fn spec(
        &self,
        image: &Image,
        rootfs: &Path,
        image_volumes: Vec<BindMount>,
    ) -> Result<ContainerSpec, NotLaunched> {
        let wrong = config("CreateContainerConfigError");
        let (node, container) = (&self.node, &*self.container);
        let spec = self.pod.spec.clone().unwrap_or_default();
        let context = EnvContext {
            pod: &self.pod,
            objects: &*node.objects,
            pod_ips: &self.sandbox.pod_ips,
            host_ips: &node.addresses,
            allocatable: &node.allocatable,
        };
        let own = environment(&context, container).map_err(|error| wrong(&error))?;
        let hostname = files::kernel_hostname(&self.pod, &node.cluster_domain);
        let hostname = hostname.map_err(|message| NotLaunched::Config {
            reason: "CreateContainerConfigError",
            message,
        })?;
        let accounts = Accounts::read(rootfs);
        let identity = users::identity(
            &spec,
            container,
            &image.config.user,
            &accounts,
            &full_name(&self.pod),
        )
        .map_err(|error| wrong(&error))?;
        let pod_dir = node.pod_dir(&self.uid);
        let volumes = &self.sandbox.volumes;
        let own_mounts = volumes::mounts(&self.pod, &pod_dir, container, volumes, &own)
            .map_err(|error| wrong(&error))?;
        let mut mounts = image_volumes;
        mounts.extend(own_mounts);
        // As those alone are: one below another after it.
        mounts.sort_by_key(|mount| mount.target.components().count());
        add_files(&pod_dir.join("etc"), container, &mut mounts);
        let args = command(container, image, &own);
        if args.is_empty() {
            let message = format!(
                "no command specified: image \"{}\" has no entrypoint",
                container.image.as_deref().unwrap_or_default()
            );
            return Err(NotLaunched::Config {
                reason: "CreateContainerError",
                message,
            });
        }
        let security = container.security_context.as_ref();
        let capabilities = security.and_then(|security| security.capabilities.as_ref());
        let names = |list: Option<&Vec<String>>| -> Vec<String> {
            list.into_iter()
                .flatten()
                .map(|name| name.trim_start_matches("CAP_").to_owned())
                .collect()
        };
        let working_dir = container
            .working_dir
            .as_deref()
            .filter(|dir| !dir.is_empty());
        let image_dir = Some(image.config.working_dir.as_str()).filter(|dir| !dir.is_empty());
        let privileged = security.and_then(|security| security.privileged) == Some(true);
        Ok(ContainerSpec {
            id: ContainerId {
                pod: PodUid(self.uid.clone()),
                name: container.name.clone(),
                attempt: self.attempt,
            },
            rootfs: rootfs.to_owned(),
            args,
            env: env(image, own, hostname, accounts.home(identity.uid)),
            cwd: PathBuf::from(working_dir.or(image_dir).unwrap_or("/")),
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
            mounts,
            read_only_rootfs: read_only_rootfs(container),
            privileged,
            unmasked_proc: security.and_then(|security| security.proc_mount.as_deref())
                == Some("Unmasked"),
            cap_add: names(capabilities.and_then(|all| all.add.as_ref())),
            cap_drop: names(capabilities.and_then(|all| all.drop.as_ref())),
            no_new_privs: security.and_then(|security| security.allow_privilege_escalation)
                == Some(false),
            seccomp: if privileged {
                Seccomp::Unconfined
            } else {
                self.seccomp(&spec)
            },
            resources: limits::container(&spec, container, node.memory, node.memory_policy),
            tty: container.tty == Some(true),
            stdin: container.stdin == Some(true),
            termination_message_path: PathBuf::from(
                container
                    .termination_message_path
                    .as_deref()
                    .unwrap_or("/dev/termination-log"),
            ),
        })
    }

    fn seccomp(&self, spec: &PodSpec) -> Seccomp {
        let own = self
            .container
            .security_context
            .as_ref()
            .and_then(|security| security.seccomp_profile.as_ref());
        let shared = spec
            .security_context
            .as_ref()
            .and_then(|security| security.seccomp_profile.as_ref());
        let Some(profile) = own.or(shared) else {
            return Seccomp::RuntimeDefault;
        };
        match profile.type_.as_str() {
            "Unconfined" => Seccomp::Unconfined,
            "Localhost" => Seccomp::Localhost(
                self.node
                    .seccomp_dir
                    .join(profile.localhost_profile.as_deref().unwrap_or_default()),
            ),
            _ => Seccomp::RuntimeDefault,
        }
    }
}

/// An absolute path by its letters alone, as containerd compares those of mounts: a `..` takes away what is before it.
fn cleaned(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    cleaned
}

/// Whether a container's own files are read-only.
fn read_only_rootfs(container: &Container) -> bool {
    let security = container.security_context.as_ref();
    security.and_then(|security| security.read_only_root_filesystem) == Some(true)
}

/// /etc/hosts and its kind, which are in a directory of the pod, unless the container mounts its own. A container that may
/// not write to its own files may not write to these.
fn add_files(etc: &Path, container: &Container, mounts: &mut Vec<BindMount>) {
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = Path::new("/etc").join(name);
        let source = etc.join(name);
        if source.exists() && !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(BindMount {
                source,
                target,
                read_only: read_only_rootfs(container),
                propagation: Propagation::None,
            });
        }
    }
}

/// The image's variables, overridden by the container's; what programs expect comes first.
fn env(
    image: &Image,
    own: Vec<(String, String)>,
    hostname: String,
    home: Option<String>,
) -> Vec<String> {
    let image_env = image
        .config
        .env
        .iter()
        .filter_map(|line| line.split_once('='));
    let mut all: Vec<(String, String)> = vec![("HOSTNAME".to_owned(), hostname)];
    if let Some(home) = home {
        all.push(("HOME".to_owned(), home));
    }
    for (name, value) in image_env
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(own)
        // An empty one says nothing: the user's stays.
        .filter(|(name, value)| name != "HOME" || !value.is_empty())
    {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => all.push((name, value)),
        }
    }
    all.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// `imageID` as a status shows it: the digest it was pulled by, else its own.
fn image_id(image: &Image) -> String {
    image.digests.first().unwrap_or(&image.id).clone()
}

/// argv: a command replaces the entrypoint and drops the image's arguments; arguments alone replace those.
fn command(container: &Container, image: &Image, env: &[(String, String)]) -> Vec<String> {
    let lookup = |name: &str| {
        env.iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.clone())
    };
    let own = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        let list = list.as_ref().filter(|list| !list.is_empty())?;
        Some(list.iter().map(|text| expand(text, &lookup)).collect())
    };
    let (command, args) = (own(&container.command), own(&container.args));
    match (command, args) {
        (Some(mut command), args) => {
            command.extend(args.unwrap_or_default());
            command
        }
        (None, args) => {
            let mut all = image.config.entrypoint.clone();
            all.extend(args.unwrap_or_else(|| image.config.cmd.clone()));
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_cri::image::ImageConfig;
    use serde_json::{Value, json};

    use super::*;

    fn text(all: &[&str]) -> Vec<String> {
        all.iter().map(|&word| word.to_owned()).collect()
    }

    fn image(config: ImageConfig) -> Image {
        Image {
            id: String::new(),
            tags: Vec::new(),
            digests: Vec::new(),
            size: 0,
            config,
        }
    }

    #[test]
    fn an_empty_home_does_not_hide_the_users() {
        let image = image(ImageConfig {
            env: text(&["HOME=", "A=1"]),
            ..ImageConfig::default()
        });
        let of = |own: &str, home: Option<&str>| {
            let own = vec![("HOME".to_owned(), own.to_owned())];
            env(&image, own, "h".to_owned(), home.map(str::to_owned))
        };
        assert_eq!(of("", Some("/root")), ["HOSTNAME=h", "HOME=/root", "A=1"]);
        assert_eq!(of("/x", Some("/root")), ["HOSTNAME=h", "HOME=/x", "A=1"]);
        assert_eq!(of("", None), ["HOSTNAME=h", "A=1"]);
    }

    #[test]
    fn commands_and_arguments() {
        let image = image(ImageConfig {
            entrypoint: text(&["/entry"]),
            cmd: text(&["a", "b"]),
            ..ImageConfig::default()
        });
        let run = |value: Value| {
            let container = serde_json::from_value(value).unwrap();
            command(&container, &image, &[("N".to_owned(), "7".to_owned())])
        };
        assert_eq!(run(json!({"name": "x"})), ["/entry", "a", "b"]);
        assert_eq!(
            run(json!({"name": "x", "args": ["$(N)", "$$(N)"]})),
            ["/entry", "7", "$(N)"]
        );
        assert_eq!(run(json!({"name": "x", "command": ["/own"]})), ["/own"]);
        assert_eq!(
            run(json!({"name": "x", "command": ["/own"], "args": ["z"]})),
            ["/own", "z"]
        );
    }

    #[test]
    fn the_pods_files_are_as_writable_as_the_containers_own() {
        let etc = tempfile::tempdir().unwrap();
        for name in ["hosts", "resolv.conf"] {
            std::fs::write(etc.path().join(name), "").unwrap();
        }
        let added = |container: Value| {
            let container = serde_json::from_value(container).unwrap();
            let mut mounts = Vec::new();
            add_files(etc.path(), &container, &mut mounts);
            mounts
                .iter()
                .map(|mount| mount.read_only)
                .collect::<Vec<_>>()
        };
        assert_eq!(added(json!({"name": "x"})), [false, false]);
        let strict = json!({"name": "x", "securityContext": {"readOnlyRootFilesystem": true}});
        assert_eq!(added(strict), [true, true]);
    }
}
