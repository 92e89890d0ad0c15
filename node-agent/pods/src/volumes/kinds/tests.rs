use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::super::{
    PodTokens, TokenSource, mounts, reclaim, refresh, set_up, shown_token, tear_down, token_sources,
};
use super::*;
use crate::traits::Objects as _;
use crate::traits::fake::{FakeObjects, Resource, change};

struct Bed {
    directory: tempfile::TempDir,
    objects: FakeObjects,
    tokens: PodTokens,
}

impl Bed {
    fn new(objects: &[(Resource, Value)]) -> Self {
        let known = FakeObjects::default();
        for (resource, object) in objects {
            known.apply(&change(*resource, object)).unwrap();
        }
        Self {
            directory: tempfile::tempdir().unwrap(),
            objects: known,
            tokens: PodTokens::new(),
        }
    }

    fn with<T>(&self, spec: Value, run: impl FnOnce(&VolumeContext<'_>) -> T) -> T {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "labels": {"app": "x"}}, "spec": spec
        }))
        .unwrap();
        run(&VolumeContext {
            pod: &pod,
            objects: &self.objects,
            pod_dir: &self.directory.path().join("pod"),
            pod_ips: &["10.0.0.5".parse().unwrap()],
            host_ips: &["10.0.0.1".parse().unwrap()],
            allocatable: &BTreeMap::new(),
            tokens: &self.tokens,
        })
    }
}

fn map(value: &str) -> (Resource, Value) {
    (
        Resource::ConfigMap,
        json!({"metadata": {"name": "c", "namespace": "d"}, "data": {"k": value, "l": "2"}}),
    )
}

/// Needs root: a part of a volume is mounted.
#[test]
fn a_config_map_is_written_and_follows_its_object() {
    let bed = Bed::new(&[map("1")]);
    let spec = json!({"containers": [], "volumes": [
        {"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "sub/file", "mode": 0o400}]}},
        {"name": "e", "emptyDir": {}}
    ]});
    let paths = bed.with(spec.clone(), |context| set_up(context).unwrap());
    let file = paths["v"].join("sub/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "1");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o400
    );
    assert_eq!(
        fs::metadata(&paths["e"]).unwrap().permissions().mode() & 0o777,
        0o777
    );
    let (resource, object) = map("changed");
    bed.objects.apply(&change(resource, &object)).unwrap();
    bed.with(spec.clone(), |context| refresh(context).unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), "changed");
    let container = serde_json::from_value(json!({"name": "x", "volumeMounts": [
        {"name": "v", "mountPath": "/etc/x/deep", "subPath": "sub/file", "readOnly": true},
        {"name": "e", "mountPath": "/etc"}]}))
    .unwrap();
    // A container that starts again has its mounts made anew.
    for _ in 0..2 {
        let binds = bed.with(spec.clone(), |context| {
            mounts(context.pod, context.pod_dir, &container, &paths, &[])
                .expect("this test needs root")
        });
        assert_eq!(binds[0].target, Path::new("/etc"));
        assert_eq!(fs::read_to_string(&binds[1].source).unwrap(), "changed");
        assert!(!binds[1].source.starts_with(&paths["v"]));
        let mounted = mounts_below(&bed.directory.path().join("pod")).unwrap();
        assert_eq!(mounted.len(), 1);
    }
    reclaim(&bed.directory.path().join("pod")).unwrap();
    assert!(!file.exists());
    tear_down(&bed.directory.path().join("pod")).unwrap();
    assert!(!bed.directory.path().join("pod").exists());
}

#[test]
fn containers_write_to_what_is_theirs_alone() {
    let secret = json!({"metadata": {"name": "s", "namespace": "d"}, "data": {"k": "dg=="}});
    let bed = Bed::new(&[(Resource::Secret, secret), map("1")]);
    let spec = json!({"containers": [], "volumes": [
        {"name": "map", "configMap": {"name": "c"}},
        {"name": "secret", "secret": {"secretName": "s"}},
        {"name": "projected", "projected": {"sources": [{"configMap": {"name": "c"}}]}},
        {"name": "downward", "downwardAPI": {"items": []}},
        {"name": "empty", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": "/"}}
    ]});
    let names = ["map", "secret", "projected", "downward", "empty", "host"];
    let paths = names.map(|name| (name.to_owned(), PathBuf::from("/")));
    let container = |read_only: bool| {
        let all = names.map(
            |name| json!({"name": name, "mountPath": format!("/{name}"), "readOnly": read_only}),
        );
        serde_json::from_value(json!({"name": "x", "volumeMounts": all})).unwrap()
    };
    let read_only = |wanted: bool| {
        let binds = bed.with(spec.clone(), |context| {
            let paths = paths.clone().into();
            mounts(
                context.pod,
                context.pod_dir,
                &container(wanted),
                &paths,
                &[],
            )
            .unwrap()
        });
        binds.iter().map(|bind| bind.read_only).collect::<Vec<_>>()
    };
    assert_eq!(read_only(false), [true, true, true, true, false, false]);
    assert_eq!(read_only(true), [true; 6]);
}

#[test]
fn paths_are_read_as_the_kernel_writes_them() {
    let path = |written: &[u8]| unescaped(written).into_os_string().into_vec();
    assert_eq!(path(b"/a\\040b\\134\\012c"), b"/a b\\\nc");
    assert_eq!(path(b"/\xff\\"), b"/\xff\\");
}

#[test]
fn missing_objects_and_keys_say_so() {
    let bed = Bed::new(&[map("1")]);
    let words = |source: Value| {
        let spec = json!({"containers": [], "volumes": [{"name": "v", "configMap": source}]});
        bed.with(spec, |context| {
            set_up(context).map_err(|(_, error)| error.to_string())
        })
    };
    assert_eq!(
        words(json!({"name": "no"})).unwrap_err(),
        "configmap \"no\" not found"
    );
    let absent = json!({"name": "c", "items": [{"key": "z", "path": "z"}]});
    assert_eq!(
        words(absent).unwrap_err(),
        "references non-existent config key: z"
    );
    assert!(words(json!({"name": "no", "optional": true})).is_ok());
}

#[test]
fn what_would_be_on_storage_of_its_own_is_never_made_up() {
    let bed = Bed::new(&[]);
    for (source, words) in [
        (
            json!({"persistentVolumeClaim": {"claimName": "data"}}),
            "persistentvolumeclaim \"data\" cannot be mounted",
        ),
        (
            json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}),
            "volume source of this kind is not supported",
        ),
    ] {
        let mut volume = json!({"name": "v"});
        for (key, value) in source.as_object().unwrap() {
            let fields = volume.as_object_mut().unwrap();
            fields.insert(key.clone(), value.clone());
        }
        let spec = json!({"containers": [], "volumes": [{"name": "e", "emptyDir": {}}, volume]});
        let (name, error) = bed.with(spec, |context| set_up(context).unwrap_err());
        assert_eq!(name, "v");
        assert!(error.to_string().starts_with(words), "{error}");
    }
}

#[test]
fn host_paths_are_checked() {
    let bed = Bed::new(&[]);
    let base = bed.directory.path().to_owned();
    let try_type = |path: &str, kind: &str| {
        let source = json!({"path": base.join(path).to_str().unwrap(), "type": kind});
        let spec = json!({"containers": [], "volumes": [{"name": "v", "hostPath": source}]});
        bed.with(spec, |context| {
            set_up(context)
                .map(drop)
                .map_err(|(_, error)| error.to_string())
        })
    };
    assert!(
        try_type("no", "Directory")
            .unwrap_err()
            .ends_with("is not a directory")
    );
    assert!(try_type("dir", "DirectoryOrCreate").is_ok() && base.join("dir").is_dir());
    assert!(try_type("file", "FileOrCreate").is_ok() && base.join("file").is_file());
    assert!(
        try_type("file", "Socket")
            .unwrap_err()
            .ends_with("is not a socket file")
    );
    assert!(try_type("dir", "File").is_err());
}

#[test]
fn what_is_refreshed_at_once_ends_with_the_latest() {
    let bed = Bed::new(&[map("0")]);
    let spec = json!({"containers": [], "volumes": [{"name": "v", "configMap": {"name": "c"}}]});
    bed.with(spec, |context| {
        let file = set_up(context).unwrap()["v"].join("k");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let bed = &bed;
                scope.spawn(move || {
                    for turn in 0..25 {
                        let (resource, object) = map(&format!("{thread}.{turn}"));
                        bed.objects.apply(&change(resource, &object)).unwrap();
                        refresh(context).unwrap();
                    }
                });
            }
        });
        let object = bed.objects.config_map("d", "c").unwrap();
        let latest = &object.data.as_ref().unwrap()["k"];
        assert_eq!(fs::read_to_string(&file).unwrap(), *latest);
    });
}

/// Needs root: a tmpfs is mounted.
#[test]
fn many_files_have_room_beside_those_that_they_replace() {
    let secret = |key: &str, value: &str| {
        let keys = (0..20_000).map(|number| (format!("{key}{number}"), json!(value)));
        let data: serde_json::Map<String, Value> = keys.collect();
        let secret = json!({"metadata": {"name": "s", "namespace": "d"}, "data": data});
        (Resource::Secret, secret)
    };
    let bed = Bed::new(&[secret("a", "")]);
    let spec = json!({"containers": [], "volumes": [{"name": "s", "secret": {"secretName": "s"}}]});
    bed.with(spec, |context| {
        let path = &set_up(context).expect("this test needs root")["s"];
        // Each of these takes a page.
        for (key, value) in [("b", "dg=="), ("c", "dg==")] {
            let (resource, object) = secret(key, value);
            bed.objects.apply(&change(resource, &object)).unwrap();
            refresh(context).unwrap();
            let read = fs::read_to_string(path.join(format!("{key}19999")));
            assert_eq!(read.unwrap(), "v");
            assert_eq!(fs::read_dir(path).unwrap().count(), 20_002);
        }
    });
    tear_down(&bed.directory.path().join("pod")).unwrap();
}

#[test]
fn what_a_volume_may_hold_is_bounded() {
    let object = |data: Value| {
        let object = json!({"metadata": {"name": "c", "namespace": "d"}, "data": data});
        Bed::new(&[(Resource::ConfigMap, object)])
    };
    let refused = |bed: &Bed, source: Value| {
        let spec = json!({"containers": [], "volumes": [{"name": "v", "configMap": source}]});
        bed.with(spec, |context| set_up(context).map_err(|(_, error)| error))
    };
    let keys = (0..40_000).map(|number| (number.to_string(), json!("")));
    let many = object(Value::Object(keys.collect()));
    let error = refused(&many, json!({"name": "c"})).unwrap_err();
    assert!(matches!(error, VolumeError::TooMuch { .. }), "{error}");
    let one = object(json!({"k": "x".repeat(1 << 20)}));
    let shown = |times: usize| {
        let items = (0..times).map(|time| json!({"key": "k", "path": time.to_string()}));
        refused(
            &one,
            json!({"name": "c", "items": items.collect::<Vec<_>>()}),
        )
    };
    let error = shown(31).unwrap_err();
    assert!(matches!(error, VolumeError::TooMuch { .. }), "{error}");
    assert!(shown(2).is_ok());
    for path in ["a/".repeat(64) + "b", ("x".repeat(200) + "/").repeat(21)] {
        let items = json!([{"key": "k", "path": path}]);
        let error = refused(&one, json!({"name": "c", "items": items})).unwrap_err();
        assert!(matches!(error, VolumeError::LongPath { .. }), "{error}");
    }
}

#[test]
fn memory_is_kept_out_of_swap_where_the_kernel_can() {
    let mount = |knows: bool| {
        let (tried, said) = (RefCell::new(Vec::new()), Cell::new(0));
        let answer = |options: &str| {
            tried.borrow_mut().push(options.to_owned());
            match knows || !options.contains("noswap") {
                true => Ok(()),
                false => Err(Errno::INVAL),
            }
        };
        without_swap("size=1", answer, || said.set(said.get() + 1)).unwrap();
        (tried.into_inner(), said.get())
    };
    let with = "size=1,noswap".to_owned();
    assert_eq!(mount(true), (vec![with.clone()], 0));
    assert_eq!(mount(false), (vec![with, "size=1".to_owned()], 1));
    let denied = without_swap("", |_| Err(Errno::PERM), || panic!("nothing is mounted"));
    assert_eq!(denied, Err(Errno::PERM));
}

/// Needs root: the group is given a directory.
#[test]
fn an_empty_directory_under_its_name_is_complete() {
    let bed = Bed::new(&[]);
    let spec = |medium: &str| {
        json!({"containers": [], "securityContext": {"fsGroup": 1234},
            "volumes": [{"name": "v", "emptyDir": {"medium": medium}}]})
    };
    let place = bed
        .directory
        .path()
        .join("pod/volumes/kubernetes.io~empty-dir");
    for medium in ["", "Memory"] {
        // As after a stop before its owner and mode were set, and as after the machine was started again.
        fs::create_dir_all(place.join("v~")).unwrap();
        for _ in 0..2 {
            let paths = bed.with(spec(medium), |context| {
                set_up(context).expect("this test needs root")
            });
            let found = fs::metadata(&paths["v"]).unwrap();
            assert_eq!((found.gid(), found.mode() & 0o7777), (1234, 0o2777));
            for mount in mounts_below(&paths["v"]).unwrap() {
                unmount(&mount).unwrap();
            }
        }
        assert!(!place.join("v~").exists());
        tear_down(&bed.directory.path().join("pod")).unwrap();
    }
}

/// Needs root: a tmpfs is mounted.
#[test]
fn what_is_mounted_is_known_by_a_path_through_a_link_too() {
    let secret = json!({"metadata": {"name": "s", "namespace": "d"}, "data": {"k": "dg=="}});
    let bed = Bed::new(&[(Resource::Secret, secret)]);
    let (real, pod) = (
        bed.directory.path().join("real"),
        bed.directory.path().join("pod"),
    );
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &pod).unwrap();
    let spec = json!({"containers": [], "volumes": [{"name": "s", "secret": {"secretName": "s"}}]});
    for _ in 0..2 {
        bed.with(spec.clone(), |context| {
            set_up(context).expect("this test needs root")
        });
        assert_eq!(mounts_below(&real).unwrap().len(), 1);
    }
    tear_down(&real).unwrap();
}

/// Needs root: a tmpfs is mounted.
#[test]
fn memory_for_a_volume_is_bounded_by_the_least_limit() {
    let bed = Bed::new(&[]);
    let size = |limit: Value, memory: &str| {
        let spec = json!({"containers": [
            {"name": "c", "resources": {"limits": {"memory": memory}}}],
            "volumes": [{"name": "v", "emptyDir": limit}]});
        let paths = bed.with(spec, |context| {
            set_up(context).expect("this test needs root")
        });
        let found = rustix::fs::statvfs(&paths["v"]).unwrap();
        tear_down(&bed.directory.path().join("pod")).unwrap();
        found.f_blocks * found.f_frsize
    };
    let limited = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    assert_eq!(size(limited.clone(), "2Mi"), 1 << 20);
    assert_eq!(size(limited, "512Ki"), 512 << 10);
    assert_eq!(size(json!({"medium": "Memory"}), "2Mi"), 2 << 20);
}

/// Needs root: a tmpfs is mounted.
#[test]
fn secrets_and_projections_live_in_memory() {
    let secret = json!({"metadata": {"name": "s", "namespace": "d"}, "data": {"k": "dg=="}});
    let bed = Bed::new(&[(Resource::Secret, secret), map("1")]);
    let spec = json!({"containers": [], "securityContext": {"fsGroup": 1234}, "volumes": [
        {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "p", "projected": {"sources": [
            {"configMap": {"name": "c"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}
    ]});
    let paths = bed.with(spec.clone(), |context| {
        set_up(context).expect("this test needs root")
    });
    let again = bed.with(spec, |context| set_up(context).unwrap());
    assert_eq!(paths, again);
    assert_eq!(
        mounts_below(&bed.directory.path().join("pod"))
            .unwrap()
            .len(),
        2,
        "mounted once"
    );
    for name in ["s", "p"] {
        let found = rustix::fs::statvfs(&paths[name]).unwrap();
        assert_eq!(found.f_blocks * found.f_frsize, OBJECTS_BYTES);
        assert_eq!(found.f_files, OBJECTS_INODES);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = fs::canonicalize(&paths[name]).unwrap();
        let mounted = table
            .lines()
            .find(|line| line.contains(place.to_str().unwrap()));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release
            .split(['.', '-'])
            .map(|number| number.parse().unwrap());
        let release: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert_eq!(mounted.unwrap().contains("noswap"), release >= (6, 4));
    }
    assert_eq!(fs::read_to_string(paths["s"].join("k")).unwrap(), "v");
    let mode = fs::metadata(paths["s"].join("k"))
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o440, "the group may read what fsGroup is for");
    assert_eq!(
        fs::read_to_string(paths["p"].join("labels")).unwrap(),
        "app=\"x\""
    );
    assert_eq!(fs::read_to_string(paths["p"].join("k")).unwrap(), "1");
    tear_down(&bed.directory.path().join("pod")).unwrap();
}

/// Needs root: a tmpfs is mounted, and files are given away.
#[test]
fn a_token_is_for_the_user_of_the_pod() {
    let source = TokenSource {
        audience: String::new(),
        seconds: 3607,
    };
    let mut bed = Bed::new(&[]);
    let spec = |security: Value, container: Value| {
        json!({
            "securityContext": security,
            "containers": [{"name": "a", "securityContext": container}, {"name": "b"}],
            "volumes": [{"name": "v", "projected": {"defaultMode": 0o444, "sources": [
                {"serviceAccountToken": {"path": "deep/token", "expirationSeconds": 3607}},
            ]}}],
        })
    };
    let plain = spec(json!({}), json!({}));
    let error = bed.with(plain.clone(), |context| set_up(context).unwrap_err());
    assert!(matches!(error, (name, VolumeError::NoToken(_)) if name == "v"));
    bed.tokens.insert(source.clone(), "one".to_owned());
    let shown = |bed: &Bed, spec: &Value| {
        let paths = bed.with(spec.clone(), |context| set_up(context).unwrap());
        let file = paths["v"].join("deep/token");
        let metadata = fs::metadata(&file).unwrap();
        let found = (metadata.mode() & 0o777, metadata.uid(), metadata.gid());
        (found, fs::read_to_string(file).unwrap())
    };
    let first = |found: (u32, u32, u32)| (found, "one".to_owned());
    for (security, container, expected) in [
        (json!({}), json!({}), (0o444, 0, 0)),
        (json!({"runAsUser": 1000}), json!({}), (0o600, 1000, 0)),
        (
            json!({"runAsUser": 1000}),
            json!({"runAsUser": 1001}),
            (0o444, 0, 0),
        ),
        (json!({}), json!({"runAsUser": 1000}), (0o444, 0, 0)),
        (json!({"fsGroup": 2000}), json!({}), (0o640, 0, 2000)),
        (
            json!({"runAsUser": 1000, "fsGroup": 2000}),
            json!({}),
            (0o640, 1000, 2000),
        ),
    ] {
        let spec = spec(security, container);
        assert_eq!(shown(&bed, &spec), first(expected), "{spec}");
        bed.with(spec, |context| {
            tear_down(&context.pod_dir.join("volumes")).unwrap()
        });
    }
    shown(&bed, &plain);
    bed.tokens.insert(source, "two".to_owned());
    bed.with(plain.clone(), |context| refresh(context).unwrap());
    let kept = bed.with(plain, |context| {
        let sources = token_sources(context.pod);
        let place = sources.values().next().unwrap();
        shown_token(context.pod_dir, place)
    });
    assert_eq!(kept.as_deref(), Some("two"));
    bed.with(json!({"containers": []}), |context| {
        tear_down(context.pod_dir).unwrap()
    });
}

#[test]
fn an_empty_directory_is_on_disk_or_in_memory() {
    let refusal = |medium: Value| {
        let volume = json!({"name": "v", "emptyDir": {"medium": medium}});
        let volume = serde_json::from_value(volume).unwrap();
        of(&volume).err().map(|error| error.to_string())
    };
    for medium in [Value::Null, json!(""), json!("Memory")] {
        assert_eq!(refusal(medium), None);
    }
    for medium in ["HugePages", "HugePages-2Mi"] {
        assert!(refusal(json!(medium)).is_some_and(|words| words.contains(medium)));
    }
}
