//! Pods with users of their own (`hostUsers: false`): what root of such a pod may do.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, eventually};
use serde_json::{Value, json};

use super::pods::{create, events, exec, get, pod, refused, running, started};

/// The ids of the node that the pod sees as 0 to 65,535.
fn first_id(cluster: &Cluster, name: &str) -> Result<u32> {
    let map = exec(
        cluster,
        name,
        "cat /proc/self/uid_map; cat /proc/self/gid_map",
    )?;
    let fields: Vec<u32> = map
        .split_whitespace()
        .map(|number| number.parse().context("a number of a map"))
        .collect::<Result<_>>()?;
    ensure!(fields.len() == 6, "{map}");
    ensure!(fields[..3] == fields[3..], "users and groups differ: {map}");
    ensure!((fields[0], fields[2]) == (0, 65_536), "{map}");
    ensure!(fields[1] >= 65_536, "ids of the node's own: {map}");
    Ok(fields[1])
}

#[test]
fn row_06_root_of_a_pod_with_its_own_users_is_nobody_on_the_node() -> Result<()> {
    let cluster = started()?;
    let shared = cluster.data_dir().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("of-root"), "of the node's root\n")?;
    cluster.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=name=value",
    ])?;
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "secret",
        "--from-literal=key=hidden",
    ])?;
    let volumes = json!([
        {"name": "empty", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o400}},
        {"name": "host", "hostPath": {"path": shared}},
    ]);
    let mounts = json!([
        {"name": "empty", "mountPath": "/empty"},
        {"name": "empty", "mountPath": "/part", "subPath": "a/b"},
        {"name": "memory", "mountPath": "/memory"},
        {"name": "settings", "mountPath": "/settings"},
        {"name": "secret", "mountPath": "/secret"},
        {"name": "host", "mountPath": "/host"},
    ]);
    let of = |name: &str, container: Value| {
        let mut container = container;
        container["volumeMounts"] = mounts.clone();
        let shares = name == "one";
        let spec = json!({"hostUsers": false, "volumes": volumes, "shareProcessNamespace": shares});
        pod(name, spec, container)
    };
    create(&cluster, &of("one", json!({})))?;
    let all = json!({"securityContext": {"privileged": true, "procMount": "Unmasked"}});
    create(&cluster, &of("two", all))?;
    running(&cluster, "one")?;
    running(&cluster, "two")?;
    let (one, two) = (first_id(&cluster, "one")?, first_id(&cluster, "two")?);
    ensure!(one.abs_diff(two) >= 65_536, "{one} and {two} overlap");

    // It works as elsewhere.
    let said = exec(
        &cluster,
        "one",
        "id -u; cat /settings/name; echo; cat /secret/key; echo; cat /host/of-root; \
         for place in /empty /part /memory /host; do echo x > $place/made && stat -c %u $place/made; done; \
         cat /etc/hosts | grep -c one; stat -c %u:%g / /bin/busybox; busybox touch /bin/busybox && stat -c %u /bin/busybox; busybox ip addr add 10.99.0.1/32 dev lo 2>&1 || echo no more rights than others",
    )?;
    let expected = "0\nvalue\nhidden\nof the node's root\n0\n0\n0\n0\n1\n0:0\n0:0\n0\n";
    ensure!(said.starts_with(expected), "{said}");
    ensure!(said.contains("no more rights"), "{said}");
    let made = fs::metadata(shared.join("made"))?;
    ensure!(made.uid() == 0, "volumes hold the ids that pods see");
    let address = get(&cluster, "one")?["status"]["podIP"].take();
    let address = address.as_str().context("an address")?.to_owned();
    exec(&cluster, "two", &format!("busybox ping -c 1 {address}"))?;

    // With every capability there is: over the pod, and nothing else.
    let said = exec(
        &cluster,
        "two",
        "mount -t tmpfs none /mnt 2>&1 || mkdir -p /mnt && busybox mount -t tmpfs none /mnt && echo mounted",
    )?;
    ensure!(said.contains("mounted"), "{said}");
    for attack in [
        "echo x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo b > /proc/sysrq-trigger",
        "busybox mknod /empty/disk b 254 0 && busybox head -c 1 /empty/disk",
        "busybox dmesg | grep .",
        "busybox hwclock -w",
        "busybox mount -t ext4 /dev/vda /mnt",
        "ls /proc/1/root/var/lib/gantry",
    ] {
        let said = exec(
            &cluster,
            "two",
            &format!("({attack}) > /dev/null 2>&1 && echo done; true"),
        )?;
        ensure!(said.is_empty(), "{attack}: {said}");
    }
    Ok(())
}

#[test]
fn row_06_what_a_pod_with_its_own_users_cannot_have_is_refused() -> Result<()> {
    let cluster = started()?;
    // Kubernetes names two of them by its internal type's fields.
    for (field, told) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        let spec = json!({"hostUsers": false, field: true});
        let said = refused(&cluster, &pod("shares", spec, json!({})))?;
        let words = format!("spec.{told}: Forbidden: when `hostUsers` is false");
        ensure!(said.contains(&words), "{said}");
    }
    let of = |container: Value| pod("many", json!({"hostUsers": false}), container);
    create(
        &cluster,
        &of(json!({"securityContext": {"runAsUser": 70_000}})),
    )?;
    eventually("a user that there is not to be named", || {
        let said = events(&cluster, "many")?;
        ensure!(said.contains("70000"), "{said}");
        Ok(())
    })
}
