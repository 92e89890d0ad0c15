//! What the configuration says of every container, whatever it asks for.

use gantry_cri::runtime::{ContainerId, PodUid, Seccomp};

use super::*;
use crate::privileges::UNCHANGED;

/// A container of nothing but a root file system.
pub(crate) fn container(rootfs: &Path) -> ContainerSpec {
    ContainerSpec {
        id: ContainerId {
            pod: PodUid("pod".to_owned()),
            name: "main".to_owned(),
            attempt: 0,
        },
        rootfs: rootfs.to_owned(),
        args: vec!["/bin/true".to_owned()],
        env: Vec::new(),
        cwd: PathBuf::from("/"),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        mounts: Vec::new(),
        read_only_rootfs: false,
        unmasked_proc: false,
        privileged: false,
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        no_new_privs: false,
        seccomp: Seccomp::RuntimeDefault,
        resources: Resources::default(),
        tty: false,
        stdin: false,
        termination_message_path: PathBuf::from("/dev/termination-log"),
    }
}

fn sandbox() -> SandboxSpec {
    SandboxSpec {
        pod: PodUid("pod".to_owned()),
        namespace: "default".to_owned(),
        name: "pod".to_owned(),
        hostname: "pod".to_owned(),
        netns: None,
        host_pid: false,
        host_ipc: false,
        share_pid: false,
        users: None,
        sysctls: Default::default(),
        resources: Resources::default(),
        log_dir: PathBuf::from("/logs"),
        log_max_bytes: 1,
        log_max_files: 1,
    }
}

fn around<'a>(sandbox: &'a SandboxSpec, shared_proc: Option<&'a Path>) -> Surroundings<'a> {
    Surroundings {
        sandbox,
        cgroup: Path::new("/gantry/pod/main-0"),
        unified: true,
        shm: Path::new("/run/pod/shm"),
        termination: Path::new("/run/pod/termination"),
        shared_proc,
        available: u64::MAX,
    }
}

fn configured(spec: &ContainerSpec, shared_proc: Option<&Path>) -> Result<Value, RuntimeError> {
    config(spec, &around(&sandbox(), shared_proc))
}

#[test]
fn there_is_one_home_and_it_is_never_empty() {
    for (given, expected) in [
        (&[][..], "HOME=/"),
        (&["HOME="], "HOME=/"),
        (&["HOME"], "HOME=/"),
        (&["HOME=", "HOME=", "HOMER=x"], "HOME=/"),
        (&["HOME=/root"], "HOME=/root"),
        (&["HOME=/a", "HOME=/b"], "HOME=/a"),
        (&["HOME=/a", "HOME="], "HOME=/a"),
        (&["HOME", "HOME=", "HOME=/b=c"], "HOME=/b=c"),
    ] {
        let mut spec = container(Path::new("/rootfs"));
        spec.env = given.iter().map(|&entry| entry.to_owned()).collect();
        for shared_proc in [None, Some(Path::new("/run/pod/proc"))] {
            let config = configured(&spec, shared_proc).unwrap();
            let env = config["process"]["env"].as_array().unwrap();
            let homes: Vec<&str> = env
                .iter()
                .filter_map(Value::as_str)
                .filter(|entry| entry.split('=').next() == Some("HOME"))
                .collect();
            assert_eq!(homes, [expected], "{given:?}");
        }
        let exec = ExecSpec {
            args: spec.args.clone(),
            tty: false,
            stdin: false,
            timeout: None,
        };
        let command =
            exec_command(&spec, &exec, u64::MAX, None, Vec::new(), PathBuf::new()).unwrap();
        assert!(
            command.env.iter().any(|entry| entry == expected),
            "{given:?}"
        );
    }
}

#[test]
fn a_number_that_changes_nothing_is_no_user() {
    let changes: [fn(&mut ContainerSpec); 3] = [
        |spec| spec.uid = UNCHANGED,
        |spec| spec.gid = UNCHANGED,
        |spec| spec.groups = vec![5, UNCHANGED],
    ];
    for change in changes {
        let mut spec = container(Path::new("/rootfs"));
        spec.uid = 7;
        configured(&spec, None).unwrap();
        change(&mut spec);
        let refused = configured(&spec, None).unwrap_err();
        assert!(
            refused.to_string().contains("no user or group"),
            "{refused}"
        );
    }
}

#[test]
fn volumes_hear_of_mounts_when_one_of_them_asks_to() {
    use Propagation::{Bidirectional, HostToContainer, None};
    for (propagations, expected) in [
        (&[][..], "private"),
        (&[None, None], "private"),
        (&[None, HostToContainer], "slave"),
        (&[Bidirectional, HostToContainer, None], "shared"),
    ] {
        let mut spec = container(Path::new("/rootfs"));
        let mounts = propagations.iter().map(|&propagation| BindMount {
            source: PathBuf::from("/source"),
            target: PathBuf::from("/target"),
            read_only: false,
            propagation,
        });
        spec.mounts = mounts.collect();
        let config = configured(&spec, Option::None).unwrap();
        assert_eq!(config["linux"]["rootfsPropagation"], expected);
    }
}

#[test]
fn for_users_of_its_own_a_configuration_names_nothing_of_the_hosts() {
    let mut config = json!({
        "root": {"path": "/data/rootfs/x/merged"},
        "mounts": [
            {"type": "proc", "source": "proc"},
            {"type": "bind", "source": "/data/pods/1/volume"},
            {"type": "bind", "source": "/data/pods/1/etc/hosts"},
            {"type": "bind", "source": "/run/pod/shm"},
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    });
    let ids = IdBlock::of(std::net::Ipv4Addr::new(10, 0, 0, 7)).unwrap();
    let sandbox = sandbox();
    let view = for_own_users(&mut config, ids, &around(&sandbox, None), true);
    assert_eq!(view.rootfs, Path::new("/data/rootfs/x/merged"));
    let brought = [
        ("/data/pods/1/volume", true),
        ("/data/pods/1/etc/hosts", true),
        ("/run/pod/shm", false),
    ];
    let brought = brought.map(|(source, mapped)| Brought {
        source: PathBuf::from(source),
        mapped,
    });
    assert_eq!(view.mounts, brought);
    let said = config.to_string();
    assert!(!said.contains("/data") && !said.contains("/run"), "{said}");
    let namespaces = &config["linux"]["namespaces"];
    assert_eq!(namespaces.as_array().unwrap().len(), 3, "{namespaces}");
    assert_eq!(namespaces[2], json!({"type": "pid", "path": "/pid"}));
}
