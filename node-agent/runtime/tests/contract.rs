//! What every runtime must do, run against the one in memory and the real one.
#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test, and says where"
)]

mod support;

use std::path::Path;

use gantry_runtime::*;
use support::*;
use tokio::io::AsyncWriteExt;

fn id(pod: &str, name: &str, attempt: u32) -> ContainerId {
    ContainerId {
        pod: PodUid(pod.to_owned()),
        name: name.to_owned(),
        attempt,
    }
}

async fn contract(runtime: &dyn Runtime, rootfs: &Path, logs: &Path) {
    let pod = PodUid("contract-pod".to_owned());
    let main = id(&pod.0, "main", 0);
    let spec = |args: &[&str]| container("contract-pod", rootfs, args);
    let mut events = runtime.events();

    // Nothing is there at first, and asking for something of it says what is missing.
    assert!(runtime.sandboxes().await.unwrap().is_empty());
    assert!(runtime.sandbox(&pod).is_none());
    assert!(matches!(
        runtime.containers(&pod).await,
        Err(RuntimeError::NoSandbox(_))
    ));
    let refused = runtime.start_container(spec(&["/bin/true"])).await;
    assert!(
        matches!(refused, Err(RuntimeError::NoSandbox(_))),
        "{refused:?}"
    );
    assert!(matches!(
        runtime.kill(&main, 15).await,
        Err(RuntimeError::NoSandbox(_))
    ));
    runtime.remove_sandbox(&pod).await.unwrap();

    // Starting twice is starting once.
    runtime.start_sandbox(sandbox(&pod.0, logs)).await.unwrap();
    let shim = runtime.sandboxes().await.unwrap()[0].shim_pid;
    assert_eq!(runtime.sandbox(&pod).unwrap().pod, pod);
    assert!(runtime.containers(&pod).await.unwrap().is_empty());
    runtime.start_sandbox(sandbox(&pod.0, logs)).await.unwrap();
    assert_eq!(runtime.sandboxes().await.unwrap()[0].shim_pid, shim);
    assert!(matches!(
        runtime.kill(&main, 15).await,
        Err(RuntimeError::NotRunning(_))
    ));

    let started = runtime
        .start_container(spec(&["/bin/sleep", "1000"]))
        .await
        .unwrap();
    assert!(
        matches!(started.state, ContainerState::Running { pid, started_at } if pid > 0 && started_at > 0)
    );
    assert_eq!(
        runtime
            .start_container(spec(&["/bin/sleep", "1000"]))
            .await
            .unwrap(),
        started
    );
    assert_eq!(
        runtime.containers(&pod).await.unwrap(),
        std::slice::from_ref(&started)
    );
    assert_eq!(runtime.sandboxes().await.unwrap()[0].containers, [started]);

    // exec: output, codes, stdin and its end, what cannot be executed.
    let (out, err, code) = finish(
        runtime
            .exec(&main, command(&["/bin/echo", "a", "b"]))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((out.as_str(), err.as_str(), code), ("a b\n", "", 0));
    let (.., code) = finish(
        runtime
            .exec(&main, command(&["/bin/sh", "-c", "exit 7"]))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(code, 7);
    let copying = ExecSpec {
        stdin: true,
        ..command(&["/bin/cat"])
    };
    let mut session = runtime.exec(&main, copying).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"through")
        .await
        .unwrap();
    let (out, _, code) = finish(session).await;
    assert_eq!((out.as_str(), code), ("through", 0));
    let missing = runtime
        .exec(&main, command(&["nope"]))
        .await
        .err()
        .expect("it does not exist");
    assert_eq!(
        missing.to_string(),
        r#"exec: "nope": executable file not found in $PATH"#
    );

    assert!(runtime.usage(&pod).await.unwrap().contains_key("main"));
    let measured = runtime.measure().await.unwrap();
    assert!(measured.machine.cpu_nanos > 0 && measured.memory_available > 0);
    let own = &measured.pods[0];
    assert_eq!((&own.pod, own.containers.len()), (&pod, 1));
    let running = &own.containers[0];
    assert_eq!(
        (running.name.as_str(), running.attempt),
        ("main", main.attempt)
    );
    assert!(running.usage.memory >= running.usage.memory_working_set);
    assert!(own.usage.memory > 0 && own.read_at >= measured.read_at);

    // What runs may get more or less of something; what does not run has nothing.
    let more = Resources {
        memory_limit: Some(64 << 20),
        cpu_shares: Some(512),
        ..Resources::default()
    };
    runtime.update_sandbox(&pod, &more).await.unwrap();
    runtime.update_container(&main, &more).await.unwrap();
    assert!(matches!(
        runtime
            .update_container(&id(&pod.0, "other", 0), &more)
            .await,
        Err(RuntimeError::NotRunning(_))
    ));
    let nobody = PodUid("nobody".to_owned());
    assert!(matches!(
        runtime.update_sandbox(&nobody, &more).await,
        Err(RuntimeError::NoSandbox(_))
    ));

    // A running container is not forgotten; a killed one ends with its signal, and is reported until removed.
    assert!(runtime.remove_container(&main).await.is_err());
    runtime.kill(&main, libc::SIGKILL).await.unwrap();
    let exit = wait_exit(runtime, &mut events, &main).await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed),
        (137, Some(9), false)
    );
    assert!(exit.finished_at >= exit.started_at);
    assert!(matches!(
        runtime.exec(&main, command(&["/bin/true"])).await.err(),
        Some(RuntimeError::NotRunning(_))
    ));
    runtime.kill(&main, libc::SIGTERM).await.unwrap();
    let again = runtime
        .start_container(spec(&["/bin/sleep", "1000"]))
        .await
        .unwrap();
    assert_eq!(
        again.state,
        ContainerState::Exited(exit),
        "one attempt is started once"
    );
    runtime.remove_container(&main).await.unwrap();
    runtime.remove_container(&main).await.unwrap();
    assert!(runtime.sandboxes().await.unwrap()[0].containers.is_empty());
    let pods = runtime.measure().await.unwrap().pods;
    assert_eq!((pods.len(), pods[0].containers.len()), (1, 0));

    // The next attempt, and what ends by itself.
    let mut second = spec(&["/bin/sh", "-c", "exit 3"]);
    second.id.attempt = 1;
    runtime.start_container(second).await.unwrap();
    assert_eq!(
        wait_exit(runtime, &mut events, &id(&pod.0, "main", 1))
            .await
            .code,
        3
    );

    for (args, message) in [
        (
            vec!["nope"],
            r#"exec: "nope": executable file not found in $PATH"#,
        ),
        (
            vec!["/no/pe"],
            r#"exec: "/no/pe": stat /no/pe: no such file or directory"#,
        ),
    ] {
        let mut bad = spec(&args);
        bad.id.name = "bad".to_owned();
        let error = runtime.start_container(bad).await.unwrap_err();
        assert!(
            matches!(error, RuntimeError::CannotExecute { .. }),
            "{error:?}"
        );
        assert_eq!(error.to_string(), message);
    }

    runtime.remove_sandbox(&pod).await.unwrap();
    runtime.remove_sandbox(&pod).await.unwrap();
    assert!(runtime.sandboxes().await.unwrap().is_empty());
    assert_eq!(runtime.measure().await.unwrap().pods, []);
    assert!(matches!(
        runtime.usage(&pod).await,
        Err(RuntimeError::NoSandbox(_))
    ));
}

#[tokio::test]
async fn fake() {
    contract(
        &FakeRuntime::new(),
        Path::new("/nowhere"),
        Path::new("/nowhere"),
    )
    .await;
}

#[tokio::test]
async fn shims() {
    let node = Node::new();
    contract(&node.runtime, &node.rootfs, &node.logs()).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}
