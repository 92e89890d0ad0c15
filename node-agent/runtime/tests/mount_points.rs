//! Files and volumes of containers whose images have links where those are mounted.
#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test, and says where"
)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gantry_runtime::*;
use support::*;

fn bind(source: &Path, target: &str) -> BindMount {
    BindMount {
        source: source.to_owned(),
        target: PathBuf::from(target),
        read_only: false,
        propagation: Propagation::None,
    }
}

/// An error with its cause.
fn whole(error: &RuntimeError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

#[tokio::test]
async fn links_that_lead_to_nothing_are_mounted_where_they_lead() {
    let node = Node::new();
    let (file, volume) = (node.dir.path().join("file"), node.dir.path().join("volume"));
    fs::write(&file, "nameserver\n").unwrap();
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("held"), "held\n").unwrap();
    for (target, link) in [
        ("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"),
        ("/mnt/data", "data"),
        ("../../var/log/message", "tmp/message"),
    ] {
        symlink(target, node.rootfs.join(link)).unwrap();
    }
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let mut spec = node.container(
        "pod",
        &[
            "/bin/sh",
            "-c",
            "cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf /data/below/held; echo said > /tmp/message",
        ],
    );
    spec.mounts = vec![
        bind(&file, "/etc/resolv.conf"),
        bind(&volume, "/data/below"),
    ];
    spec.read_only_rootfs = true;
    spec.termination_message_path = PathBuf::from("/tmp/message");
    let exit = node.run(spec).await;
    assert_eq!((exit.code, exit.message.as_str()), (0, "said\n"));
    assert_eq!(node.log("main"), "nameserver\nnameserver\nheld\n");
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_mount_that_cannot_be_is_named_with_its_container() {
    let node = Node::new();
    let volume = node.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    symlink("again", node.rootfs.join("round")).unwrap();
    symlink("round", node.rootfs.join("again")).unwrap();
    fs::write(node.rootfs.join("file"), "").unwrap();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    for target in ["/round", "/round/below", "/file", "/file/below"] {
        let mut spec = node.container("pod", &["/bin/true"]);
        spec.mounts = vec![bind(&volume, target)];
        let refused = node.runtime.start_container(spec).await.unwrap_err();
        let said = whole(&refused);
        assert!(said.contains("container main"), "{said}");
        assert!(said.contains(&format!("at {target}:")), "{said}");
    }
    let mut spec = node.container("pod", &["/bin/true"]);
    spec.cwd = PathBuf::from("/file/below");
    let said = whole(&node.runtime.start_container(spec).await.unwrap_err());
    assert!(
        said.contains("directory /file/below of container main"),
        "{said}"
    );
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}
