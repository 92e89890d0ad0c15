//! Streams against a runtime in memory: what a client sends and reads, without a server in between.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use gantry_cri::runtime::{ContainerSpec, FakeRuntime, Resources, SandboxSpec, Seccomp};
use gantry_rpc::node::{
    AttachOptions, ExecOptions, LogOptions, PageOptions, PortForwardOptions, Resource, TerminalSize,
};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;
use crate::desired::tests::change;

const DEADLINE: Duration = Duration::from_secs(30);
/// Of the node, and so of its pods without a network of their own.
const OWN_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

/// A pod `d/p` (uid `u`) whose container `c` runs a command of the fake runtime.
struct Bed {
    directory: tempfile::TempDir,
    runtime: FakeRuntime,
    streams: Arc<Streams>,
}

/// The client's end of a stream.
struct Client {
    to_node: Option<mpsc::Sender<StreamFrame>>,
    from_node: mpsc::Receiver<StreamFrame>,
    served: tokio::task::JoinHandle<Result<Value, Failure>>,
}

impl Bed {
    async fn running(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::new();
        let pod = PodUid("u".to_owned());
        let logs_dir = directory.path().to_owned();
        let sandbox = SandboxSpec {
            pod: pod.clone(),
            namespace: "d".to_owned(),
            name: "p".to_owned(),
            hostname: "p".to_owned(),
            netns: None,
            host_pid: false,
            host_ipc: false,
            share_pid: false,
            users: None,
            sysctls: BTreeMap::new(),
            resources: Resources::default(),
            log_dir: logs_dir.clone(),
            log_max_bytes: 1 << 20,
            log_max_files: 2,
        };
        runtime.start_sandbox(sandbox).await.unwrap();
        let container = ContainerSpec {
            id: id(),
            rootfs: PathBuf::from("/"),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
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
            stdin: true,
            termination_message_path: PathBuf::from("/dev/termination-log"),
        };
        runtime.start_container(container).await.unwrap();
        std::fs::create_dir_all(logs_dir.join("d_p_u/c")).unwrap();
        std::fs::write(logs_dir.join("d_p_u/c/0.log"), "").unwrap();
        let desired = Arc::new(Desired::default());
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {}});
        desired.apply(&change(Resource::Pod, &object)).unwrap();
        let pages = Pages::new("n", Arc::default(), desired.clone());
        let streams = Streams::new(
            Arc::new(runtime.clone()),
            desired,
            Arc::default(),
            vec![OWN_ADDRESS],
            logs_dir,
            Arc::new(pages),
        );
        Self {
            directory,
            runtime,
            streams: Arc::new(streams),
        }
    }

    fn log(&self, text: &str) {
        let path = self.directory.path().join("d_p_u/c/0.log");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(file, "2026-01-01T00:00:00.000000000Z stdout F {text}").unwrap();
    }

    fn open(&self, kind: Kind) -> Client {
        self.open_as("u", kind)
    }

    fn open_as(&self, uid: &str, kind: Kind) -> Client {
        let (to_node, down) = mpsc::channel(4);
        let (up, from_node) = mpsc::channel(4);
        let open = OpenStream {
            namespace: "d".to_owned(),
            pod: "p".to_owned(),
            pod_uid: uid.to_owned(),
            container: "c".to_owned(),
            kind: Some(kind),
            ..OpenStream::default()
        };
        let streams = self.streams.clone();
        Client {
            to_node: Some(to_node),
            from_node,
            served: tokio::spawn(async move { streams.serve(open, Wire { up, down }).await }),
        }
    }
}

fn id() -> ContainerId {
    ContainerId {
        pod: PodUid("u".to_owned()),
        name: "c".to_owned(),
        attempt: 0,
    }
}

impl Client {
    async fn send(&self, sent: Frame) {
        let to_node = self.to_node.as_ref().expect("not hung up");
        to_node.send(frame(sent)).await.unwrap();
    }

    fn hang_up(&mut self) {
        self.to_node = None;
    }

    /// Reads output until `wanted` has arrived.
    async fn reads(&mut self, wanted: &str) {
        let mut text = String::new();
        while !text.contains(wanted) {
            let next = tokio::time::timeout(DEADLINE, self.from_node.recv()).await;
            let next = next.unwrap_or_else(|_| panic!("only {text:?} came"));
            match next.and_then(|frame| frame.frame) {
                Some(Frame::Stdout(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("{other:?} after {text:?}"),
            }
        }
    }

    async fn next(&mut self) -> Option<Frame> {
        let next = tokio::time::timeout(DEADLINE, self.from_node.recv()).await;
        next.expect("a frame in time").and_then(|frame| frame.frame)
    }

    async fn ended(self) -> Result<Value, Failure> {
        tokio::time::timeout(DEADLINE, self.served)
            .await
            .expect("it ends in time")
            .expect("no panic")
    }

    async fn refused(self) -> (u16, String) {
        let failure = self.ended().await.expect_err("refused");
        (failure.code, failure.message)
    }
}

fn exec(command: &[&str], stdin: bool) -> Kind {
    Kind::Exec(ExecOptions {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        stdin,
        stdout: true,
        stderr: true,
        tty: false,
    })
}

fn follow() -> Kind {
    Kind::Logs(LogOptions {
        follow: true,
        ..LogOptions::default()
    })
}

#[tokio::test]
async fn the_nodes_pages_are_read_through_the_link() {
    let bed = Bed::running(&["sleep"]).await;
    let mut client = bed.open(Kind::Pages(PageOptions {}));
    let request = b"GET /metrics/resource HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n";
    client.send(Frame::Stdin(Bytes::from_static(request))).await;
    client.reads("\nresource_scrape_error 1 ").await;
    loop {
        match client.next().await {
            Some(Frame::Stdout(_)) => {}
            Some(Frame::CloseStdout(_)) => break,
            other => panic!("{other:?} before the end"),
        }
    }
    client.send(Frame::CloseStdin(true)).await;
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");
    // One that leaves ends it too.
    let mut client = bed.open(Kind::Pages(PageOptions {}));
    client.hang_up();
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");
}

#[tokio::test]
async fn exec_sends_output_and_exit_code() {
    let bed = Bed::running(&["sleep"]).await;
    let mut client = bed.open(exec(&["echo", "hello"], false));
    client.reads("hello\n").await;
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");
    let status = bed.open(exec(&["sh", "-c", "exit 3"], false)).ended().await;
    assert_eq!(status.ok().unwrap()["details"]["causes"][0]["message"], "3");
    let (code, message) = bed.open(exec(&["nonsense"], false)).refused().await;
    assert_eq!(code, 500);
    assert!(message.contains("executable file not found"), "{message}");
}

#[tokio::test]
async fn exec_reads_stdin_until_its_end() {
    let bed = Bed::running(&["sleep"]).await;
    let mut client = bed.open(exec(&["cat"], true));
    client.send(Frame::Stdin(Bytes::from_static(b"one"))).await;
    client.reads("one").await;
    let size = TerminalSize {
        width: 80,
        height: 1 << 20,
    };
    client.send(Frame::Resize(size)).await;
    client.send(Frame::Stdin(Bytes::from_static(b"two"))).await;
    client.send(Frame::CloseStdin(true)).await;
    client.reads("two").await;
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_command() {
    let bed = Bed::running(&["sleep"]).await;
    let mut client = bed.open(exec(&["sleep"], false));
    client.hang_up();
    let (_, message) = client.refused().await;
    assert_eq!(message, "the client closed the stream");
}

#[tokio::test]
async fn a_stream_that_is_stuck_ends_when_the_link_says_so() {
    let bed = Bed::running(&["sleep"]).await;
    let (to_node, down) = mpsc::channel(4);
    let (up, _from_node) = mpsc::channel(4);
    let open = OpenStream {
        stream_id: "s".to_owned(),
        namespace: "d".to_owned(),
        pod: "p".to_owned(),
        container: "c".to_owned(),
        kind: Some(exec(&["sleep"], true)),
        ..OpenStream::default()
    };
    let streams = bed.streams.clone();
    let attending = tokio::spawn(async move { streams.attend(open, Wire { up, down }).await });
    // More than the command, which reads nothing, and the queue will take.
    let full = || frame(Frame::Stdin(vec![0; 1 << 20].into()));
    while to_node.try_send(full()).is_ok() || bed.streams.running.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    bed.streams.close("another");
    bed.streams.close("s");
    let status = tokio::time::timeout(DEADLINE, attending).await;
    let status = status.expect("it ends in time").expect("no panic");
    assert_eq!(status, None);
    assert!(bed.streams.running.lock().is_empty());
}

#[tokio::test]
async fn attach_is_the_containers_own_stdio() {
    let bed = Bed::running(&["cat"]).await;
    let mut client = bed.open(Kind::Attach(AttachOptions {
        stdin: true,
        stdout: true,
        ..AttachOptions::default()
    }));
    client.send(Frame::Stdin(Bytes::from_static(b"hi"))).await;
    client.reads("hi").await;
    client.hang_up();
    client.refused().await;
    let sandboxes = bed.runtime.sandboxes().await.unwrap();
    assert!(
        matches!(
            sandboxes[0].containers[0].state,
            gantry_cri::runtime::ContainerState::Running { .. }
        ),
        "detaching ends nothing"
    );
    bed.runtime.finish(&id(), 0);
    let (_, message) = bed
        .open(Kind::Attach(AttachOptions::default()))
        .refused()
        .await;
    assert!(message.contains("not running"), "{message}");
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container() {
    let bed = Bed::running(&["sleep"]).await;
    bed.log("before");
    let mut client = bed.open(follow());
    client.reads("before\n").await;
    bed.log("meanwhile");
    client.reads("meanwhile\n").await;
    bed.log("last words");
    bed.runtime.finish(&id(), 0);
    client.reads("last words\n").await;
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");
}

#[tokio::test]
async fn a_followed_log_ends_with_its_sandbox_or_its_client() {
    let bed = Bed::running(&["sleep"]).await;
    let mut left = bed.open(follow());
    left.hang_up();
    left.ended().await.ok().unwrap();
    bed.log("x");
    let mut client = bed.open(follow());
    client.reads("x\n").await;
    bed.runtime.lose_sandbox(&PodUid("u".to_owned()));
    client.ended().await.ok().unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let bed = Bed::running(&["sleep"]).await;
    let previous = LogOptions {
        previous: true,
        ..LogOptions::default()
    };
    assert_eq!(
        bed.open(Kind::Logs(previous)).refused().await.1,
        "previous terminated container \"c\" in pod \"p\" not found"
    );
    let (code, message) = bed.open_as("another", follow()).refused().await;
    assert_eq!((code, message.as_str()), (404, "pods \"p\" not found"));
    std::fs::remove_dir_all(bed.directory.path().join("d_p_u")).unwrap();
    for kind in [exec(&["true"], false), follow()] {
        assert_eq!(
            bed.open(kind).refused().await.1,
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
        );
    }
}

fn forward_to(port: u32) -> Kind {
    at_address("", port)
}

fn at_address(address: &str, port: u32) -> Kind {
    Kind::PortForward(PortForwardOptions {
        port,
        address: address.to_owned(),
        ..PortForwardOptions::default()
    })
}

#[tokio::test]
async fn a_pods_address_is_dialled_and_nobody_elses() {
    let bed = Bed::running(&["sleep"]).await;
    let own = OWN_ADDRESS.to_string();
    let listener = TcpListener::bind((OWN_ADDRESS, 0)).await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let mut client = bed.open(at_address(&own, port));
    let (mut server, _) = tokio::time::timeout(DEADLINE, listener.accept())
        .await
        .expect("a connection in time")
        .unwrap();
    server.write_all(b"answer").await.unwrap();
    client.reads("answer").await;
    drop((server, listener));
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");

    // What listens on the loopback alone is not reached.
    let inward = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(inward.local_addr().unwrap().port());
    let refused = bed.open(at_address(&own, port));
    assert_eq!(
        refused.refused().await,
        (
            500,
            format!("dial tcp {own}:{port}: connect: connection refused")
        )
    );
    for address in ["127.0.0.1", "169.254.169.254", "example.com"] {
        let refused = bed.open(at_address(address, port));
        assert_eq!(
            refused.refused().await,
            (400, format!("{address:?} is no address of the pod"))
        );
    }
    bed.runtime.lose_sandbox(&PodUid("u".to_owned()));
    let gone = bed.open(at_address(&own, port));
    assert_eq!(gone.refused().await.1, "pod p does not run on its node");
}

#[tokio::test]
async fn each_direction_of_a_forwarded_port_ends_by_itself() {
    let bed = Bed::running(&["sleep"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let open = || {
        bed.open(Kind::PortForward(PortForwardOptions {
            port,
            half_close: true,
            ..PortForwardOptions::default()
        }))
    };
    let stdin = |text: &'static str| Frame::Stdin(Bytes::from_static(text.as_bytes()));

    // The client ends first, and reads all of what the pod answers then.
    let mut client = open();
    let (mut pod, _) = listener.accept().await.unwrap();
    client.send(stdin("question")).await;
    client.send(Frame::CloseStdin(true)).await;
    let mut heard = String::new();
    pod.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "question");
    pod.write_all(b"answer").await.unwrap();
    drop(pod);
    client.reads("answer").await;
    assert_eq!(client.next().await, Some(Frame::CloseStdout(true)));
    client.ended().await.ok().unwrap();

    // The pod ends first, and reads all of what the client still says.
    let mut client = open();
    let (mut pod, _) = listener.accept().await.unwrap();
    pod.write_all(b"greeting").await.unwrap();
    pod.shutdown().await.unwrap();
    client.reads("greeting").await;
    assert_eq!(client.next().await, Some(Frame::CloseStdout(true)));
    client.send(stdin("more")).await;
    client.send(Frame::CloseStdin(true)).await;
    let mut heard = String::new();
    pod.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "more");
    client.ended().await.ok().unwrap();

    // A client that leaves ends both.
    let mut client = open();
    let (mut pod, _) = listener.accept().await.unwrap();
    pod.shutdown().await.unwrap();
    assert_eq!(client.next().await, Some(Frame::CloseStdout(true)));
    client.hang_up();
    client.ended().await.ok().unwrap();
    let mut heard = Vec::new();
    pod.read_to_end(&mut heard).await.ok();
    assert!(heard.is_empty());
}

#[tokio::test]
async fn a_port_is_forwarded_both_ways() {
    let bed = Bed::running(&["sleep"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let mut client = bed.open(forward_to(port));
    let (mut server, _) = tokio::time::timeout(DEADLINE, listener.accept())
        .await
        .expect("a connection in time")
        .unwrap();
    client.send(Frame::Stdin(Bytes::from_static(b"ask"))).await;
    client.send(Frame::CloseStdin(true)).await;
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "ask", "and the end is passed on");
    server.write_all(b"answer").await.unwrap();
    client.reads("answer").await;
    drop(server);
    assert_eq!(client.ended().await.ok().unwrap()["status"], "Success");

    let mut abandoned = bed.open(forward_to(port));
    let (mut server, _) = listener.accept().await.unwrap();
    abandoned.hang_up();
    abandoned.ended().await.ok().unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "it is closed");

    drop(listener);
    let refused = bed.open(forward_to(port));
    let (code, message) = refused.refused().await;
    assert_eq!(code, 500);
    assert!(
        message.starts_with(&format!("error forwarding port {port} to pod p: ")),
        "{message}"
    );
    for port in [0, 65_536] {
        let refused = bed.open(forward_to(port));
        assert_eq!(refused.refused().await.0, 400);
    }
    bed.runtime.lose_sandbox(&PodUid("u".to_owned()));
    let gone = bed.open(forward_to(port));
    assert_eq!(gone.refused().await.1, "pod p does not run on its node");
}
