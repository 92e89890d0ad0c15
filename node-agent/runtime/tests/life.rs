//! Containers from start to end: output, logs, terminals, memory, agents that come and go.
#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test, and says where"
)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use gantry_runtime::*;
use support::*;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn output_exit_code_and_termination_message_are_kept() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let script = "echo out; echo err >&2; printf tail; echo why > /dev/termination-log; exit 42";
    let exit = node
        .run(node.container("pod", &["/bin/sh", "-c", script]))
        .await;
    assert_eq!(
        (exit.code, exit.signal, exit.message.as_str()),
        (42, None, "why\n")
    );
    let log = fs::read_to_string(node.logs().join("main/0.log")).unwrap();
    let mut records: Vec<&str> = log
        .lines()
        .map(|line| line.split_once(' ').unwrap().1)
        .collect();
    records.sort_unstable();
    assert_eq!(records, ["stderr F err", "stdout F out", "stdout P tail"]);
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert!(node.logs().join("main/0.log").exists(), "logs stay");
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn memory_beyond_the_limit_is_an_oom_kill() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let mut spec = node.container(
        "pod",
        &[
            "/bin/dd",
            "if=/dev/zero",
            "of=/dev/null",
            "bs=200M",
            "count=1",
        ],
    );
    spec.resources.memory_limit = Some(20 << 20);
    let exit = node.run(spec).await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed),
        (137, Some(9), true)
    );
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn limits_change_while_a_container_runs() {
    let node = Node::new();
    let pod = PodUid("pod".to_owned());
    let limits = |memory: i64, quota: i64| Resources {
        memory_limit: Some(memory),
        cpu_quota_micros: Some(quota),
        cpu_period_micros: Some(100_000),
        ..Resources::default()
    };
    let mut sandbox = node.sandbox("pod");
    sandbox.resources = limits(64 << 20, 20_000);
    node.runtime.start_sandbox(sandbox).await.unwrap();
    let mut spec = node.container("pod", &["/bin/sleep", "1000"]);
    spec.resources = limits(64 << 20, 20_000);
    let started = node.runtime.start_container(spec.clone()).await.unwrap();
    // The files of both, on whichever kind of host.
    let group = node.config.cgroup_root.strip_prefix("/").unwrap();
    let found = |controller: &str, files: [&str; 2], whose: &str| {
        let mounts = Path::new("/sys/fs/cgroup");
        let unified = mounts.join(group).join(whose).join(files[0]);
        let legacy = mounts
            .join(controller)
            .join(group)
            .join(whose)
            .join(files[1]);
        let text = fs::read_to_string(unified).or_else(|_| fs::read_to_string(legacy));
        text.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    let written = |whose: &str| {
        let memory = found("memory", ["memory.max", "memory.limit_in_bytes"], whose);
        (memory, found("cpu", ["cpu.max", "cpu.cfs_quota_us"], whose))
    };
    for (memory, quota) in [(128_i64 << 20, 50_000_i64), (32 << 20, 10_000)] {
        let limits = limits(memory, quota);
        // On cgroup v1 the pod may not have less than a container, which comes first when it is less.
        let first = node.runtime.update_sandbox(&pod, &limits).await;
        node.runtime
            .update_container(&spec.id, &limits)
            .await
            .unwrap();
        if first.is_err() {
            node.runtime.update_sandbox(&pod, &limits).await.unwrap();
        }
        let expected = (memory.to_string(), quota.to_string());
        assert_eq!(written("pod"), expected);
        assert_eq!(written("pod/main-0"), expected);
    }
    let found = node.runtime.containers(&pod).await.unwrap();
    assert_eq!(found, [started], "it is the same process");
    node.runtime.remove_sandbox(&pod).await.unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pods_processes_are_limited_together() {
    let node = Node::new();
    let mut sandbox = node.sandbox("pod");
    sandbox.resources.pids_limit = Some(20);
    node.runtime.start_sandbox(sandbox).await.unwrap();
    let fork = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done 2>&1; echo all; wait";
    let mut events = node.runtime.events();
    for name in ["first", "second"] {
        let mut spec = node.container("pod", &["/bin/sh", "-c", fork]);
        spec.id.name = name.to_owned();
        node.runtime.start_container(spec.clone()).await.unwrap();
        if name == "second" {
            let exit = wait_exit(&node.runtime, &mut events, &spec.id).await;
            assert_eq!(exit.code, 2, "the shell gives up when it cannot fork");
        } else {
            let all = async {
                while !node.log(name).contains("all") {
                    pause().await;
                }
            };
            tokio::time::timeout(DEADLINE, all).await.unwrap();
        }
    }
    assert!(
        node.log("second").contains("fork"),
        "{}",
        node.log("second")
    );
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_command_that_cannot_run_leaves_nothing() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let before = node.traces();
    fs::write(node.rootfs.join("bin/script"), "#!/no/such/interpreter\n").unwrap();
    fs::write(node.rootfs.join("bin/plain"), "text").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(node.rootfs.join("bin/script"), executable).unwrap();
    for (argument, cause) in [
        ("/bin/script", "no such file or directory"),
        ("/bin/plain", "permission denied"),
        ("/bin", "is a directory"),
    ] {
        let error = node
            .runtime
            .start_container(node.container("pod", &[argument]))
            .await
            .unwrap_err();
        assert!(
            matches!(error, RuntimeError::CannotExecute { .. }),
            "{error:?}"
        );
        assert_eq!(error.to_string(), format!("exec: \"{argument}\": {cause}"));
    }
    assert_eq!(node.traces(), before);
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn exec_with_a_terminal_resizes_and_ends() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let spec = node.container("pod", &["/bin/sleep", "1000"]);
    let id = spec.id.clone();
    node.runtime.start_container(spec).await.unwrap();
    let shell = ExecSpec {
        tty: true,
        stdin: true,
        ..command(&["/bin/sh"])
    };
    let mut session = node.runtime.exec(&id, shell).await.unwrap();
    assert!(session.stderr.is_none());
    session
        .resize
        .send(TerminalSize {
            width: 123,
            height: 45,
        })
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    // The size arrives beside the input: ask until it has.
    stdin
        .write_all(b"until stty size | grep '45 123'; do :; done; exit 9\n")
        .await
        .unwrap();
    read_until(&mut *session.stdout, "\n45 123").await;
    let (.., code) = finish(session).await;
    assert_eq!(code, 9);
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn a_command_that_takes_too_long_or_is_abandoned_is_killed() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let spec = node.container("pod", &["/bin/sleep", "1000"]);
    let id = spec.id.clone();
    node.runtime.start_container(spec).await.unwrap();
    let long = ExecSpec {
        timeout: Some(Duration::from_millis(200)),
        ..command(&["/bin/sleep", "777"])
    };
    let session = node.runtime.exec(&id, long).await.unwrap();
    let error = tokio::time::timeout(DEADLINE, session.exit)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
    let runs = async |sleep: &str| {
        let looking = node.runtime.exec(&id, command(&["/bin/ps"])).await.unwrap();
        finish(looking).await.0.contains(sleep)
    };
    let gone = async |sleep: &str| {
        tokio::time::timeout(DEADLINE, async { while runs(sleep).await {} })
            .await
            .expect("the command is killed");
    };
    gone("sleep 777").await;
    let abandoned = command(&["/bin/sleep", "778"]);
    let session = node.runtime.exec(&id, abandoned).await.unwrap();
    assert!(runs("sleep 778").await);
    drop(session);
    gone("sleep 778").await;
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn attach_talks_to_the_container_and_the_log_sees_it() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let mut spec = node.container("pod", &["/bin/cat"]);
    spec.stdin = true;
    let id = spec.id.clone();
    let mut events = node.runtime.events();
    node.runtime.start_container(spec).await.unwrap();
    let mut session = node.runtime.attach(&id, true).await.unwrap();
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"hello\n")
        .await
        .unwrap();
    read_until(&mut *session.stdout, "hello\n").await;
    // The end of input is the end of cat.
    let (.., code) = finish(session).await;
    assert_eq!(code, 0);
    wait_exit(&node.runtime, &mut events, &id).await;
    assert_eq!(node.log("main"), "hello\n");
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn a_container_with_a_terminal() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let mut spec = node.container(
        "pod",
        &[
            "/bin/sh",
            "-c",
            "echo ready; read line; stty size; echo got $line; exit 5",
        ],
    );
    (spec.tty, spec.stdin) = (true, true);
    let id = spec.id.clone();
    let mut events = node.runtime.events();
    node.runtime.start_container(spec).await.unwrap();
    let mut session = node.runtime.attach(&id, true).await.unwrap();
    assert!(session.stderr.is_none());
    session
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"input\n")
        .await
        .unwrap();
    read_until(&mut *session.stdout, "got input").await;
    assert_eq!(finish(session).await.2, 5);
    assert_eq!(wait_exit(&node.runtime, &mut events, &id).await.code, 5);
    assert!(node.log("main").contains("ready"), "{}", node.log("main"));
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn logs_rotate() {
    let node = Node::new();
    let sandbox = SandboxSpec {
        log_max_bytes: 2000,
        log_max_files: 2,
        ..node.sandbox("pod")
    };
    node.runtime.start_sandbox(sandbox).await.unwrap();
    node.run(node.container(
        "pod",
        &[
            "/bin/sh",
            "-c",
            "for i in $(seq 500); do echo line $i; done",
        ],
    ))
    .await;
    let mut names: Vec<_> = fs::read_dir(node.logs().join("main"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["0.log", "0.log.1"]);
    assert!(node.log("main").ends_with("line 500\n"));
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_agent_that_comes_back_finds_its_containers() {
    let node = Node::new();
    let first = ShimRuntime::new(node.config.clone()).unwrap();
    first.start_sandbox(node.sandbox("pod")).await.unwrap();
    let started = first
        .start_container(node.container("pod", &["/bin/sleep", "1000"]))
        .await
        .unwrap();
    let mut ended = node.container("pod", &["/bin/sh", "-c", "exit 4"]);
    ended.id.name = "ended".to_owned();
    let mut events = first.events();
    first.start_container(ended.clone()).await.unwrap();
    wait_exit(&first, &mut events, &ended.id).await;
    let mut later = node.container(
        "pod",
        &["/bin/sh", "-c", "until test -e /tmp/go; do :; done; exit 6"],
    );
    later.id.name = "later".to_owned();
    first.start_container(later.clone()).await.unwrap();
    drop((first, events));
    // This one ends while nobody looks.
    fs::write(node.rootfs.join("tmp/go"), "").unwrap();

    let second = ShimRuntime::new(node.config.clone()).unwrap();
    let mut events = second.events();
    let found = second.sandboxes().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].containers[0], started,
        "the same process, started then"
    );
    assert!(
        matches!(&found[0].containers[1].state, ContainerState::Exited(exit) if exit.code == 4)
    );
    assert_eq!(wait_exit(&second, &mut events, &later.id).await.code, 6);
    second.kill(&started.id, libc::SIGKILL).await.unwrap();
    assert_eq!(wait_exit(&second, &mut events, &started.id).await.code, 137);
    second.remove_sandbox(&started.id.pod).await.unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_lost_shim_takes_its_containers_with_it() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    node.runtime
        .start_container(node.container("pod", &["/bin/sleep", "1000"]))
        .await
        .unwrap();
    let mut events = node.runtime.events();
    let shim = node.runtime.sandboxes().await.unwrap()[0].shim_pid;
    let shim = rustix::process::Pid::from_raw(shim).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let lost = tokio::time::timeout(DEADLINE, events.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(lost, RuntimeEvent::SandboxLost { pod } if pod.0 == "pod"));
    assert!(node.runtime.sandboxes().await.unwrap().is_empty());
    assert_eq!(node.traces(), Vec::<String>::new());
    // Its name is free again.
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}
