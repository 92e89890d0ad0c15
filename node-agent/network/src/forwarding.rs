//! Lets the host forward packets of pods: the kernel's switch, and the firewalls of others.
//!
//! An accept in our own table cannot undo a drop in another one. Docker, ufw and others set the policy of the
//! `filter` table's FORWARD chain to drop, and with bridge netfilter switched on even packets between two pods of one
//! bridge pass through it. So our bridge is accepted at the head of that chain, wherever it exists.

use std::fs;
use std::net::Ipv4Addr;

use crate::NetworkError;
use crate::commands;
use crate::nft::Nft;

/// The chain that iptables (through nftables) and Docker share.
const CHAIN: [&str; 4] = ["chain", "ip", "filter", "FORWARD"];

/// Sets a kernel parameter of IPv4, such as `ip_forward`.
pub(crate) fn set_parameter(parameter: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv4/{parameter}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| {
        let name = format!("net.ipv4.{}", parameter.replace('/', "."));
        NetworkError::Unsupported(format!(
            "setting {name} to {value}: {error}; pods cannot be reached without it, so set it on the host \
             (sysctl -w {name}={value}) or make /proc/sys writable for the agent"
        ))
    })
}

/// Accepts what the bridge sends and receives in the FORWARD chains of other firewalls. Idempotent.
pub(crate) fn accept(nft: &Nft, bridge: &str) -> Result<(), NetworkError> {
    if let Some(chain) = nft.list(&["list", CHAIN[0], CHAIN[1], CHAIN[2], CHAIN[3]])
        && !chain.contains(&comment(bridge))
    {
        let rules: String = ["iifname", "oifname"]
            .map(|direction| {
                format!(
                    "insert rule ip filter FORWARD {direction} \"{bridge}\" counter accept {}\n",
                    comment(bridge)
                )
            })
            .concat();
        nft.apply(&rules)?;
        tracing::info!(
            bridge,
            "the bridge is accepted in the FORWARD chain of the host's firewall"
        );
    }
    legacy(bridge, true)
}

/// Undoes [`accept`].
pub(crate) fn forget(nft: &Nft, bridge: &str) -> Result<(), NetworkError> {
    if let Some(chain) = nft.list(&["-a", "list", CHAIN[0], CHAIN[1], CHAIN[2], CHAIN[3]]) {
        let rules: String = chain
            .lines()
            .filter(|line| line.contains(&comment(bridge)))
            .filter_map(|line| line.rsplit_once("# handle "))
            .map(|(_, handle)| format!("delete rule ip filter FORWARD handle {}\n", handle.trim()))
            .collect();
        if !rules.is_empty() {
            nft.apply(&rules)?;
        }
    }
    legacy(bridge, false)
}

fn comment(bridge: &str) -> String {
    format!("comment \"gantry: {bridge}\"")
}

/// Makes the rules of the older iptables, which nft does not see, be there or not, for both directions.
fn legacy(bridge: &str, wanted: bool) -> Result<(), NetworkError> {
    let in_use = fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|tables| tables.lines().any(|table| table == "filter"));
    if !in_use {
        return Ok(());
    }
    let Some(program) = commands::find("iptables-legacy") else {
        tracing::warn!(
            bridge,
            "rules of the older iptables are in force and iptables-legacy is missing: should pods not reach each \
             other, accept forwarding for this bridge in them"
        );
        return Ok(());
    };
    let run = |verb: &str, direction: &str| {
        commands::run(
            &program,
            &[
                "-w", "5", verb, "FORWARD", direction, bridge, "-j", "ACCEPT",
            ],
            "",
        )
        .map_err(|source| NetworkError::Io {
            doing: format!("running {}", program.display()),
            source,
        })
    };
    for direction in ["-i", "-o"] {
        if run("-C", direction)?.status.success() == wanted {
            continue;
        }
        let output = run(if wanted { "-I" } else { "-D" }, direction)?;
        if !output.status.success() {
            return Err(NetworkError::Netlink {
                doing: format!("changing the FORWARD chain of iptables-legacy for {bridge}"),
                cause: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
    }
    Ok(())
}

/// Whether some process of the host has the port, by trying to take it.
pub(crate) fn port_is_held(
    protocol: crate::Protocol,
    address: Option<Ipv4Addr>,
    port: u16,
) -> bool {
    let address = (address.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
    let held = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    match protocol {
        crate::Protocol::Tcp => std::net::TcpListener::bind(address).is_err_and(held),
        crate::Protocol::Udp => std::net::UdpSocket::bind(address).is_err_and(held),
        crate::Protocol::Sctp => false,
    }
}
