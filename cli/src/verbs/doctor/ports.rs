//! Who listens on the ports that Gantry uses: nobody, Gantry itself, or somebody else.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use gantry_network::Protocol;

use super::finding::Finding;

/// Whether somebody has a port, the kernel itself included.
fn is_held(protocol: Protocol, port: u16) -> bool {
    let address = (Ipv4Addr::UNSPECIFIED, port);
    let error = match protocol {
        Protocol::Udp => UdpSocket::bind(address).err(),
        _ => TcpListener::bind(address).err(),
    };
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
    is_gantry: bool,
}

/// The first process with one of these sockets that may be seen.
fn holder(inodes: &BTreeSet<u64>) -> Option<Holder> {
    let wanted: BTreeSet<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let holds = descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| {
                target
                    .to_str()
                    .is_some_and(|target| wanted.contains(target))
            });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let program = fs::read_link(process.path().join("exe")).ok();
            let program = program.and_then(|program| {
                let name = program.file_name()?;
                // A program that was replaced is called so.
                let name = name.to_string_lossy();
                Some(name.trim_end_matches(" (deleted)").to_owned())
            });
            return Some(Holder {
                pid,
                name: name.trim().to_owned(),
                is_gantry: program.is_some_and(|program| program == "gantry"),
            });
        }
    }
    None
}

/// Whether Gantry has a port, or could have it. `option` moves it.
pub(super) fn check(protocol: Protocol, port: u16, purpose: &str, option: &str) -> Finding {
    let check = format!("port {port}/{}", protocol.word());
    if !is_held(protocol, port) {
        return Finding::ok(check, format!("free, for {purpose}"));
    }
    if protocol == Protocol::Udp {
        match gantry_network::vxlan_devices(port) {
            Ok(devices) if !devices.is_empty() => {
                let devices = devices.join(", ");
                return Finding::ok(check, format!("{purpose}: the VXLAN device {devices}"));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "listing VXLAN devices"),
        }
    }
    let inodes = gantry_network::listening(protocol, port).unwrap_or_else(|error| {
        tracing::debug!(%error, "listing sockets");
        BTreeSet::new()
    });
    verdict(check, purpose, option, holder(&inodes))
}

fn verdict(check: String, purpose: &str, option: &str, holder: Option<Holder>) -> Finding {
    match holder {
        Some(Holder {
            is_gantry: true,
            pid,
            ..
        }) => Finding::ok(check, format!("{purpose}: Gantry, process {pid}")),
        Some(Holder { pid, name, .. }) => Finding::failed(
            check,
            format!("{name} (process {pid}) has the port of {purpose}"),
            format!("stop it, or {option}"),
        ),
        None => Finding::warning(
            check,
            format!("the port of {purpose} is taken, by a process that cannot be seen from here"),
            format!("run 'gantry doctor' with sudo; if it is not Gantry, stop it, or {option}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    #[test]
    fn a_port_that_another_program_has_is_named_with_its_process() {
        let holder = |is_gantry| {
            Some(Holder {
                pid: 7,
                name: "nginx".to_owned(),
                is_gantry,
            })
        };
        let verdict = |holder| verdict("port 1/tcp".to_owned(), "metrics", "use --metrics", holder);
        assert_eq!(verdict(holder(true)).outcome, Outcome::Ok);
        assert_eq!(verdict(None).outcome, Outcome::Warning);
        let bad = verdict(holder(false));
        assert_eq!(bad.outcome, Outcome::Failed);
        assert!(bad.message.contains("nginx (process 7)"), "{bad:?}");
        assert_eq!(bad.fix.as_deref(), Some("stop it, or use --metrics"));
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let found = check(Protocol::Tcp, port, "a test", "end it");
        assert_eq!(found.outcome, Outcome::Failed, "{found:?}");
        let own = format!("(process {})", std::process::id());
        assert!(found.message.contains(&own), "{found:?}");
        drop(listener);
    }
}
