//! The web server's end: nobody who was let in goes without an answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::{DEADLINE, Door, Program, eventually};

fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
}

/// Reads what arrives until a text is complete.
fn hear(stream: &mut TcpStream, end: &str) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(end.as_bytes()) {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).expect("more is read");
        assert!(
            count > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&heard)
        );
        heard.extend_from_slice(&bytes[..count]);
    }
    String::from_utf8(heard).expect("text")
}

/// Whether a connection ends in good order.
fn is_closed(stream: &mut TcpStream) {
    let count = stream.read(&mut [0]).expect("closed rather than reset");
    assert_eq!(count, 0, "something else came");
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a time limit");
    stream
}

fn refuses(address: SocketAddr) {
    eventually("the server to listen no more", || {
        let error = TcpStream::connect(address).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
}

#[test]
fn whoever_was_let_in_before_the_end_is_answered() {
    let (server, address) = Program::serve("v1");
    let (mut kept, mut silent, mut new, mut slow) = (
        connect(address),
        connect(address),
        connect(address),
        connect(address),
    );
    for stream in [&mut kept, &mut silent] {
        ask(stream, "/");
        let heard = hear(stream, "\n");
        assert!(heard.contains("connection: keep-alive"), "{heard}");
    }
    ask(&mut slow, "/slow?ms=1500");
    server.terminate();
    refuses(address);
    // On a connection that was idle, and on one that has not asked for anything before.
    for stream in [&mut kept, &mut new] {
        ask(stream, "/");
        let heard = hear(stream, "\n");
        assert!(
            heard.starts_with("HTTP/1.1 200 OK") && heard.contains("connection: close"),
            "{heard}"
        );
        is_closed(stream);
    }
    is_closed(&mut silent);
    let heard = hear(&mut slow, "waited 1500 ms\n");
    assert!(heard.contains("connection: close"), "{heard}");
    is_closed(&mut slow);
    let (status, said) = server.end();
    assert!(status.success(), "{status}");
    assert!(
        said.contains("web v1 served 5 requests and stops"),
        "{said}"
    );
}

#[test]
fn a_server_that_nobody_is_connected_to_ends_at_once() {
    let (server, address) = Program::serve("v1");
    let mut stream = connect(address);
    ask(&mut stream, "/client");
    assert!(hear(&mut stream, "\n").ends_with("127.0.0.1\n"));
    drop(stream);
    server.terminate();
    assert!(server.end().0.success());
}

/// Waits until others have asked a server too.
fn is_asked(address: SocketAddr) {
    let mut own = 0;
    eventually("a request", || {
        let mut stream = connect(address);
        ask(&mut stream, "/info");
        let info = hear(&mut stream, "}\n");
        let (_, served) = info.rsplit_once(':').expect("how many it has served");
        let served: u32 = served.trim_end_matches("}\n").parse().expect("a number");
        let others = served > own;
        own += 1;
        others.then_some(())
    });
}

/// Replaces the server behind a door again and again under load, as a rollout does.
fn replaced_under_load(mode: &str) {
    const ROUNDS: usize = 6;
    let (mut server, address) = Program::serve("v0");
    let door = Door::open(address);
    let url = format!("http://{}/", door.address);
    let mut load = Program::start(
        &[
            "load",
            &url,
            "--mode",
            mode,
            "--rate",
            "200",
            "--connections",
            "8",
        ],
        &[],
    );
    load.line();
    for round in 1..=ROUNDS {
        let (next, address) = Program::serve(&format!("v{round}"));
        door.lead_to(address);
        let old = std::mem::replace(&mut server, next);
        old.terminate();
        assert!(old.end().0.success());
        is_asked(address);
    }
    load.line();
    load.terminate();
    let total = load.total();
    assert_eq!(total["failed"], 0, "{total}");
    assert_eq!(total["ok"], total["sent"]);
    let answers = total["answers"].as_object().expect("answers");
    assert_eq!(answers.len(), ROUNDS + 1, "{answers:?}");
    if mode == "keep-alive" {
        let told = total["told_to_close"].as_u64().expect("a number");
        assert!(told >= 8, "{total}");
        assert_eq!(
            total["closed_idle"], 0,
            "every connection is told so: {total}"
        );
    }
}

#[test]
fn replacing_servers_fails_no_request_on_new_connections() {
    replaced_under_load("new");
}

#[test]
fn replacing_servers_fails_no_request_on_kept_connections() {
    replaced_under_load("keep-alive");
}

#[test]
fn a_single_request_prints_the_answer_or_what_is_wrong() {
    let (_server, address) = Program::serve("v1");
    let (status, said) = Program::start(&["get", &format!("http://{address}/client")], &[]).end();
    assert_eq!((status.code(), said.as_str()), (Some(0), "127.0.0.1\n"));
    let (status, said) = Program::start(&["get", &format!("http://{address}/nothing")], &[]).end();
    assert_eq!((status.code(), said.as_str()), (Some(1), ""));
}
