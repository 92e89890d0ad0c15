//! The load generator against servers that do everything wrong: each failure is counted, and none slows it down.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::support::{DEADLINE, Program};
use serde_json::{Value, json};

/// A second of requests, or as long as the options say.
fn load(target: &str, options: &[&str]) -> Value {
    let mut arguments = vec!["load", target, "--seconds", "1", "--rate", "20"];
    arguments.extend(options);
    Program::start(&arguments, &[]).total()
}

/// A server that treats each connection alike.
fn server(treat: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            stream
                .set_read_timeout(Some(DEADLINE))
                .expect("a time limit");
            std::thread::spawn(move || treat(stream));
        }
    });
    address
}

fn read_request(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1024]), Ok(count) if count > 0)
}

fn answer(mut stream: TcpStream, text: &str) {
    if read_request(&mut stream) {
        // The generator is gone when it was killed.
        stream.write_all(text.as_bytes()).ok();
    }
}

/// Every request failed, and in this way.
fn all_fail(address: SocketAddr, kind: &str, said: &str) {
    for mode in ["new", "keep-alive"] {
        let url = format!("http://{address}/");
        let total = load(
            &url,
            &["--mode", mode, "--timeout-ms", "300", "--messages", "3"],
        );
        assert_eq!(
            (&total["sent"], &total["ok"], &total["failed"]),
            (&json!(20), &json!(0), &json!(20)),
            "{total}"
        );
        assert_eq!(total["failures"], json!({kind: 20}), "{mode}");
        assert_eq!(total["failed_by_second"], json!({"0": 20}), "{mode}");
        let messages = total["messages"].as_array().expect("messages");
        assert_eq!(messages.len(), 3);
        for message in messages {
            let text = message["message"].as_str().expect("a text");
            assert!(text.starts_with(kind) && text.contains(said), "{text}");
        }
    }
}

#[test]
fn nobody_listens() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    all_fail(address, "refused", "Connection refused");
}

#[test]
fn nobody_answers() {
    let address = server(|mut stream| {
        // Until the generator gives up.
        while read_request(&mut stream) {}
    });
    all_fail(address, "timeout", "reading the answer");
}

#[test]
fn the_connection_is_closed() {
    let address = server(|stream| answer(stream, ""));
    all_fail(address, "closed", "closed without an answer");
}

#[test]
fn the_connection_is_reset() {
    let address = server(|stream| {
        // What was not read when a connection is closed resets it.
        stream.peek(&mut [0]).ok();
    });
    all_fail(address, "reset", "reset by peer");
}

#[test]
fn the_answer_is_not_whole() {
    let address = server(|stream| {
        answer(stream, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort");
    });
    all_fail(address, "short_body", "closed after 5 of 10 bytes");
}

#[test]
fn the_answer_is_another() {
    let address = server(|stream| {
        answer(
            stream,
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 9\r\n\r\nnot ready",
        );
    });
    all_fail(address, "status", "503 not ready");
}

#[test]
fn the_answer_is_none() {
    let address = server(|stream| answer(stream, "220 ready\r\n\r\n"));
    all_fail(address, "malformed", "is no answer");
}

#[test]
fn a_kept_connection_that_ends_between_requests_is_no_failure() {
    // Without a word of closing.
    let address = server(|stream| {
        answer(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let url = format!("http://{address}/");
    let total = load(
        &url,
        &["--mode", "keep-alive", "--connections", "1", "--rate", "5"],
    );
    assert_eq!(
        (&total["ok"], &total["failed"]),
        (&json!(5), &json!(0)),
        "{total}"
    );
    assert_eq!(total["closed_idle"], 4, "{total}");
    assert_eq!(total["connections"], 5, "{total}");
}

#[test]
fn late_answers_do_not_lower_the_rate() {
    let (_server, address) = Program::serve("v1");
    let url = format!("http://{address}/slow?ms=500");
    for mode in ["new", "keep-alive"] {
        let options = [
            "--mode",
            mode,
            "--connections",
            "1",
            "--rate",
            "60",
            "--seconds",
            "2",
        ];
        let total = load(&url, &options);
        assert_eq!(
            (&total["sent"], &total["ok"]),
            (&json!(120), &json!(120)),
            "{total}"
        );
        // One at a time they would take a minute.
        let slowest = total["max_us"].as_u64().expect("a number");
        assert!((500_000..3_000_000).contains(&slowest), "{total}");
    }
}

#[test]
fn kept_connections_are_used_in_turn_and_reports_come_every_second() {
    let (_server, address) = Program::serve("v1");
    let url = format!("http://{address}/");
    let options = ["load", &url, "--mode", "keep-alive", "--connections", "7"];
    let mut load = Program::start(&options, &[]);
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&load.line()).expect("JSON");
        let interval = &line["interval"];
        let ok = interval["ok"].as_u64().expect("a number");
        assert!(ok > 0 && interval["failed"] == 0, "{line}");
    }
    load.terminate();
    let total = load.total();
    assert_eq!(
        (&total["failed"], &total["connections"]),
        (&json!(0), &json!(7)),
        "{total}"
    );
    assert_eq!(total["ok"], total["sent"]);
    let answers = total["answers"].as_object().expect("answers");
    assert!(
        answers
            .keys()
            .all(|answer| answer.starts_with("web v1 from"))
    );
}

#[test]
fn what_is_not_understood_is_refused() {
    for (arguments, complaint) in [
        (vec!["load"], "a URL is missing"),
        (vec!["get"], "get takes one URL"),
        (vec!["load", "https://web"], "no HTTP address"),
        (vec!["serve"], "\"serve\" is nothing this program does"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_gantry-demo-web"))
            .args(&arguments)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(complaint) && said.contains("usage:"),
            "{said}"
        );
    }
    // A name without an address is a failure like any other.
    let total = load("http://nobody.invalid/", &["--rate", "1"]);
    assert_eq!(total["failures"], json!({"resolve": 1}), "{total}");
}
