//! This machine, as the commands that run on it need it: its name and its address, who may run them, and when they are told
//! to end.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// This machine's name, as a Kubernetes object may be named.
pub(super) fn default_node_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || letter == '.' {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}

/// Containers, networks and mounts need it.
pub(super) fn require_root(command: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("'gantry {command}' runs containers through the kernel and needs root: run it with sudo");
}

/// The address this machine uses towards the default route; loopback when it has none. Sends nothing.
pub(super) fn default_address() -> Ipv4Addr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // TEST-NET-1: connecting a datagram socket only looks up the route.
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    match probe() {
        Ok(IpAddr::V4(address)) => address,
        _ => Ipv4Addr::LOCALHOST,
    }
}

/// Waits for SIGTERM or SIGINT.
pub(super) async fn terminated() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}
