//! Who a container runs as: numbers from the security contexts, else the image's user, whose names are looked up in
//! the image's own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use rustix::fs::{Mode, OFlags};

/// No image has as many accounts.
const LONGEST_FILE: u64 = 1 << 20;
/// The largest user and group that a container can have, as in Kubernetes. What the kernel takes for "leave it as it is",
/// and so for root, lies above.
const LARGEST: u32 = i32::MAX.cast_unsigned();

/// A user that cannot be used; the container waits with `CreateContainerConfigError` and these words.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum UserError {
    /// The image names a user that it does not have.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// The image names a group that it does not have.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number that nobody can be.
    #[error("unable to run as {0}: uids and gids must be in range 0-{largest}", largest = LARGEST)]
    OutOfRange(i64),
    /// runAsNonRoot, and the image says root.
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    ImageRunsAsRoot {
        /// name_namespace(uid).
        pod: String,
        /// The container.
        container: String,
    },
    /// runAsNonRoot, and the specification says root.
    #[error(
        "container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})"
    )]
    RunsAsRoot {
        /// name_namespace(uid).
        pod: String,
        /// The container.
        container: String,
    },
    /// runAsNonRoot, and the image names its user by a name, which proves nothing.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NotNumeric {
        /// The image's user.
        user: String,
        /// name_namespace(uid).
        pod: String,
        /// The container.
        container: String,
    },
}

/// Numbers to run with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, without duplicates.
    pub groups: Vec<u32>,
}

/// The accounts an image knows.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

/// The beginning of a regular file below a root file system.
fn read_inside(rootfs: &Path, file: &str) -> std::io::Result<String> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    // Opening a pipe must not wait for its writer.
    let plain = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = File::from(gantry_durable::open_inside(&root, Path::new(file), plain)?);
    if !file.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut content = Vec::new();
    file.take(LONGEST_FILE).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

impl Accounts {
    /// Reads both files below a root file system; missing ones are empty. Links in the image lead to files of the image,
    /// never to those of the host.
    pub fn read(rootfs: &Path) -> Self {
        let read = |file| read_inside(rootfs, file).unwrap_or_default();
        Self {
            passwd: read("etc/passwd"),
            group: read("etc/group"),
        }
    }

    fn user(&self, wanted: impl Fn(&str, u32) -> bool) -> Option<(String, u32, u32)> {
        self.passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
            wanted(fields[0], uid).then(|| (fields[0].to_owned(), uid, gid))
        })
    }

    /// The home directory of a user.
    pub fn home(&self, uid: u32) -> Option<String> {
        self.passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let home = fields.get(5).filter(|home| !home.is_empty())?;
            (fields[2].parse() == Ok(uid)).then(|| (*home).to_owned())
        })
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.group.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields[0] == name)
                .then(|| fields.get(2)?.parse().ok())
                .flatten()
        })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let member = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let listed = fields
                .get(3)?
                .split(',')
                .any(|member| member.trim() == user);
            listed.then(|| fields[2].parse().ok()).flatten()
        };
        self.group.lines().filter_map(member).collect()
    }
}

/// A number of a specification.
fn number(value: Option<i64>) -> Result<Option<u32>, UserError> {
    let checked = |value: i64| {
        let number = u32::try_from(value).ok();
        let number = number.filter(|number| *number <= LARGEST);
        number.ok_or(UserError::OutOfRange(value))
    };
    value.map(checked).transpose()
}

/// Decides the identity. `pod` is the pod as messages name it; `image_user` is `user[:group]`, or empty for root.
pub fn identity(
    spec: &PodSpec,
    container: &Container,
    image_user: &str,
    accounts: &Accounts,
    pod: &str,
) -> Result<Identity, UserError> {
    let (own, shared) = (
        container.security_context.as_ref(),
        spec.security_context.as_ref(),
    );
    let user = number(
        own.and_then(|own| own.run_as_user)
            .or_else(|| shared.and_then(|shared| shared.run_as_user)),
    )?;
    let group = number(
        own.and_then(|own| own.run_as_group)
            .or_else(|| shared.and_then(|shared| shared.run_as_group)),
    )?;
    let non_root = own
        .and_then(|own| own.run_as_non_root)
        .or_else(|| shared.and_then(|shared| shared.run_as_non_root));
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    if non_root == Some(true) {
        check_non_root(user, image_name, pod, &container.name)?;
    }

    let (name, uid, default_gid) = match user {
        Some(uid) => match accounts.user(|_, own| own == uid) {
            Some(entry) => entry,
            None => (String::new(), uid, 0),
        },
        None => image_identity(image_name, accounts)?,
    };
    let gid = match (group, user, image_group) {
        (Some(group), ..) => group,
        (None, None, Some(group)) if !group.is_empty() => match group.parse() {
            Ok(number) => number,
            Err(_) => accounts
                .group(group)
                .ok_or_else(|| UserError::UnknownGroup(group.to_owned()))?,
        },
        _ => default_gid,
    };

    let mut groups = Vec::new();
    let merges =
        shared.and_then(|shared| shared.supplemental_groups_policy.as_deref()) != Some("Strict");
    if merges && !name.is_empty() {
        groups.extend(accounts.groups_of(&name));
    }
    groups.extend(number(shared.and_then(|shared| shared.fs_group))?);
    let supplemental = shared.and_then(|shared| shared.supplemental_groups.as_ref());
    for group in supplemental.into_iter().flatten() {
        groups.extend(number(Some(*group))?);
    }
    groups.sort_unstable();
    groups.dedup();
    // The image names users and groups as it likes, by numbers and in its files.
    let all = [uid, gid].into_iter().chain(groups.iter().copied());
    match all.max().filter(|largest| *largest > LARGEST) {
        Some(largest) => Err(UserError::OutOfRange(largest.into())),
        None => Ok(Identity { uid, gid, groups }),
    }
}

fn check_non_root(
    user: Option<u32>,
    image_user: &str,
    pod: &str,
    container: &str,
) -> Result<(), UserError> {
    let (pod, container) = (pod.to_owned(), container.to_owned());
    match (user, image_user.parse::<u32>()) {
        (Some(0), _) => Err(UserError::RunsAsRoot { pod, container }),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err(UserError::ImageRunsAsRoot { pod, container }),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if image_user.is_empty() => {
            Err(UserError::ImageRunsAsRoot { pod, container })
        }
        (None, Err(_)) => Err(UserError::NotNumeric {
            user: image_user.to_owned(),
            pod,
            container,
        }),
    }
}

fn image_identity(name: &str, accounts: &Accounts) -> Result<(String, u32, u32), UserError> {
    if name.is_empty() {
        return Ok(accounts
            .user(|_, uid| uid == 0)
            .unwrap_or_else(|| ("root".to_owned(), 0, 0)));
    }
    if let Ok(number) = name.parse::<u32>() {
        return Ok(accounts
            .user(|_, uid| uid == number)
            .unwrap_or((String::new(), number, 0)));
    }
    match accounts.user(|own, _| own == name) {
        Some(entry) => Ok(entry),
        None if name == "root" => Ok((name.to_owned(), 0, 0)),
        None => Err(UserError::UnknownUser(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn decide(pod: Value, container: Value, image: &str) -> Result<Identity, UserError> {
        let accounts = Accounts {
            passwd: "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/:/bin/false\n".to_owned(),
            group: "root:x:0:\nwww:x:102:\nextra:x:200:web,other\n".to_owned(),
        };
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [], "securityContext": pod})).unwrap();
        let container =
            serde_json::from_value(json!({"name": "c", "securityContext": container})).unwrap();
        identity(&spec, &container, image, &accounts, "p_d(u)")
    }

    #[test]
    fn table() {
        let is = |uid, gid, groups: &[u32]| {
            Ok(Identity {
                uid,
                gid,
                groups: groups.to_vec(),
            })
        };
        let rows = [
            (json!({}), json!({}), "", is(0, 0, &[])),
            (json!({}), json!({}), "web", is(101, 102, &[200])),
            (json!({}), json!({}), "web:www", is(101, 102, &[200])),
            (json!({}), json!({}), "5:6", is(5, 6, &[])),
            (json!({"runAsUser": 7}), json!({}), "web", is(7, 0, &[])),
            (
                json!({"runAsUser": 7, "runAsGroup": 8}),
                json!({"runAsUser": 101}),
                "",
                is(101, 8, &[200]),
            ),
            (
                json!({"fsGroup": 9, "supplementalGroups": [3, 9]}),
                json!({}),
                "",
                is(0, 0, &[3, 9]),
            ),
            (
                json!({"supplementalGroupsPolicy": "Strict"}),
                json!({}),
                "web",
                is(101, 102, &[]),
            ),
            (
                json!({}),
                json!({}),
                "nobody",
                Err(UserError::UnknownUser("nobody".into())),
            ),
            (
                json!({}),
                json!({}),
                "web:none",
                Err(UserError::UnknownGroup("none".into())),
            ),
        ];
        for (pod, container, image, expected) in rows {
            assert_eq!(
                decide(pod.clone(), container.clone(), image),
                expected,
                "{pod} {container} {image:?}"
            );
        }
    }

    #[test]
    fn non_root_is_proven_or_refused() {
        let strict = || json!({"runAsNonRoot": true});
        assert!(matches!(
            decide(strict(), json!({}), ""),
            Err(UserError::ImageRunsAsRoot { .. })
        ));
        assert!(matches!(
            decide(strict(), json!({}), "web"),
            Err(UserError::NotNumeric { .. })
        ));
        assert!(matches!(
            decide(strict(), json!({"runAsUser": 0}), ""),
            Err(UserError::RunsAsRoot { .. })
        ));
        assert!(decide(strict(), json!({}), "101").is_ok());
        assert!(decide(strict(), json!({"runAsNonRoot": false}), "").is_ok());
    }

    #[test]
    fn nobody_is_a_number_that_the_kernel_does_not_take() {
        const NONE: i64 = u32::MAX as i64;
        let refused = |decided: Result<Identity, UserError>| {
            assert_eq!(decided, Err(UserError::OutOfRange(NONE)));
        };
        let accounts = Accounts {
            passwd: format!("none:x:{NONE}:5::/:\nin-none:x:5:{NONE}::/:\nfine:x:6:6::/:\n"),
            group: format!("nobody:x:{NONE}:fine\n"),
        };
        for strict in [true, false] {
            let pod = json!({"containers": [], "securityContext": {"runAsNonRoot": strict}});
            let spec: PodSpec = serde_json::from_value(pod).unwrap();
            for user in [
                format!("{NONE}"),
                format!("5:{NONE}"),
                "5:nobody".to_owned(),
            ] {
                refused(identity(
                    &spec,
                    &Container::default(),
                    &user,
                    &accounts,
                    "p",
                ));
            }
        }
        for user in ["none", "in-none", "fine"] {
            let spec = PodSpec::default();
            refused(identity(&spec, &Container::default(), user, &accounts, "p"));
        }
        for own in ["runAsUser", "runAsGroup", "fsGroup"] {
            refused(decide(json!({own: NONE}), json!({}), "5"));
        }
        refused(decide(
            json!({"supplementalGroups": [1, NONE]}),
            json!({}),
            "5",
        ));
        for outside in [-1, i64::from(i32::MAX) + 1] {
            let expected = Err(UserError::OutOfRange(outside));
            assert_eq!(
                decide(json!({"runAsUser": outside}), json!({}), "5"),
                expected
            );
        }
        let largest = i64::from(i32::MAX);
        assert!(
            decide(
                json!({"runAsUser": largest, "fsGroup": largest}),
                json!({}),
                ""
            )
            .is_ok()
        );
    }

    #[test]
    fn links_of_an_image_stay_in_the_image() {
        let host = tempfile::tempdir().unwrap();
        std::fs::write(host.path().join("passwd"), "host:x:7:7::/:\n").unwrap();
        let image = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(host.path(), image.path().join("etc")).unwrap();
        assert_eq!(Accounts::read(image.path()).home(7), None);
        std::fs::remove_file(image.path().join("etc")).unwrap();
        std::fs::create_dir_all(image.path().join("etc")).unwrap();
        std::fs::write(image.path().join("accounts"), "own:x:7:7::/home/own:\n").unwrap();
        std::os::unix::fs::symlink("/accounts", image.path().join("etc/passwd")).unwrap();
        let own = Accounts::read(image.path());
        assert_eq!(own.home(7).as_deref(), Some("/home/own"));
        assert_eq!(Accounts::read(Path::new("/nowhere")).home(7), None);
    }
}
