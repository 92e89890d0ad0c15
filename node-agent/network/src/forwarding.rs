//! Lets the host forward packets of pods: the kernel's switch, and the firewalls of others.
//!
//! An accept in our own table cannot undo a drop in another one. Docker, ufw and others set the policy of the
//! `filter` table's FORWARD chain to drop, and with bridge netfilter switched on even packets between two pods of one
//! bridge pass through it. So our bridge, and what travels between nodes, are accepted at the head of that chain,
//! wherever it exists.

use std::fs;
use std::path::Path;

use ipnet::IpNet;

use crate::NetworkError;
use crate::commands;
use crate::nft::Nft;

/// Whether the kernel has a parameter of the network: those of IPv6 are missing where it is switched off.
pub(crate) fn exists(parameter: &str) -> bool {
    Path::new("/proc/sys/net").join(parameter).exists()
}

/// Whether a parameter of the network has a value.
pub(crate) fn is(parameter: &str, value: &str) -> bool {
    let now = fs::read_to_string(format!("/proc/sys/net/{parameter}"));
    now.is_ok_and(|now| now.trim() == value)
}

/// Sets a kernel parameter of the network, such as `ipv4/ip_forward`.
pub(crate) fn set(parameter: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/{parameter}");
    if is(parameter, value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|error| {
        let name = format!("net.{}", parameter.replace('/', "."));
        NetworkError::Unsupported(format!(
            "setting {name} to {value}: {error}; pods cannot be reached without it, so set it on the host \
             (sysctl -w {name}={value}) or make /proc/sys writable for the agent"
        ))
    })
}

/// Lets the host forward packets of IPv4, and of IPv6 where pods have it.
pub(crate) fn switch_on(ipv6: bool) -> Result<(), NetworkError> {
    set("ipv4/ip_forward", "1")?;
    if ipv6 {
        refuse_as_often_as_needed()?;
    }
    let switch = "ipv6/conf/all/forwarding";
    if !ipv6
        || fs::read_to_string(format!("/proc/sys/net/{switch}")).is_ok_and(|on| on.trim() == "1")
    {
        return Ok(());
    }
    // A host that forwards no longer listens to routers unless told to, and would lose its own default route.
    let links = fs::read_dir("/proc/sys/net/ipv6/conf")
        .into_iter()
        .flatten();
    for link in links.flatten() {
        let parameter = format!("ipv6/conf/{}/accept_ra", link.file_name().to_string_lossy());
        if fs::read_to_string(format!("/proc/sys/net/{parameter}"))
            .is_ok_and(|now| now.trim() == "1")
        {
            set(&parameter, "2")?;
        }
    }
    set(switch, "1")
}

/// Takes the limit off the refusals of IPv6 packets, unless somebody has chosen limits.
///
/// Packets between pods come in and leave by the bridge. For each, the kernel would advise a shorter way, which IPv6 has
/// no switch against, and the advice uses up what a pod may be sent of ICMP: it would not hear, for a second and more,
/// that a service of UDP has no endpoint.
fn refuse_as_often_as_needed() -> Result<(), NetworkError> {
    const LIMITED: &str = "ipv6/icmp/ratemask";
    const BY_DEFAULT: &str = "0-1,3-127";
    /// Without type 1, "destination unreachable" (RFC 4443).
    const WANTED: &str = "0,3-127";
    match fs::read_to_string(format!("/proc/sys/net/{LIMITED}")) {
        Ok(now) if now.trim() == BY_DEFAULT => set(LIMITED, WANTED),
        _ => Ok(()),
    }
}

/// An exception from the firewalls of others: what they must let through, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    /// What comes in or leaves by a link.
    Link(String),
    /// What comes from or goes to addresses; with the node's prefix, which tells its rules from those of others.
    Range(String, IpNet),
}

impl Passing {
    fn ipv6(&self) -> bool {
        matches!(self, Self::Range(_, IpNet::V6(_)))
    }

    /// nft's words, for either direction.
    fn matches(&self) -> [String; 2] {
        match self {
            Self::Link(link) => ["iifname", "oifname"].map(|end| format!("{end} \"{link}\"")),
            Self::Range(_, range @ IpNet::V4(_)) => {
                ["saddr", "daddr"].map(|end| format!("ip {end} {range}"))
            }
            Self::Range(_, range @ IpNet::V6(_)) => {
                ["saddr", "daddr"].map(|end| format!("ip6 {end} {range}"))
            }
        }
    }

    /// The words of the older iptables.
    fn options(&self) -> [[String; 2]; 2] {
        match self {
            Self::Link(link) => ["-i", "-o"].map(|end| [end.to_owned(), link.clone()]),
            Self::Range(_, range) => ["-s", "-d"].map(|end| [end.to_owned(), range.to_string()]),
        }
    }

    /// How a rule of ours is found again.
    fn comment(&self) -> String {
        match self {
            Self::Link(link) => format!("comment \"gantry: {link}\""),
            Self::Range(prefix, range) => format!("comment \"gantry: {prefix} {range}\""),
        }
    }
}

/// The two IP versions' firewalls: nft's family, the older program, and where the kernel lists its tables.
const FIREWALLS: [(&str, &str, &str); 2] = [
    (
        "ip",
        "iptables-legacy",
        "/proc/thread-self/net/ip_tables_names",
    ),
    (
        "ip6",
        "ip6tables-legacy",
        "/proc/thread-self/net/ip6_tables_names",
    ),
];

/// Accepts packets in the FORWARD chains of other firewalls, which iptables (through nftables), Docker and others share.
/// Idempotent.
pub(crate) fn accept(nft: &Nft, passing: &[Passing], ipv6: bool) -> Result<(), NetworkError> {
    for (family, program, tables) in FIREWALLS.iter().take(if ipv6 { 2 } else { 1 }) {
        let of_family = || passing.iter().filter(|passing| concerns(passing, family));
        if let Some(chain) = nft.list(&["list", "chain", family, "filter", "FORWARD"]) {
            let missing = of_family().filter(|passing| !chain.contains(&passing.comment()));
            let rules: String = missing
                .flat_map(|passing| {
                    passing.matches().map(|words| {
                        format!(
                            "insert rule {family} filter FORWARD {words} counter accept {}\n",
                            passing.comment()
                        )
                    })
                })
                .collect();
            if !rules.is_empty() {
                nft.apply(&rules)?;
                tracing::info!(
                    family,
                    ?passing,
                    "pods' packets are accepted in the FORWARD chain of the host's firewall"
                );
            }
        }
        for passing in of_family() {
            legacy(program, tables, passing, true)?;
        }
    }
    Ok(())
}

/// A link carries both IP versions, a range is of one.
fn concerns(passing: &Passing, family: &str) -> bool {
    matches!(passing, Passing::Link(_)) || passing.ipv6() == (family == "ip6")
}

/// Undoes [`accept`].
pub(crate) fn forget(nft: &Nft, passing: &[Passing]) -> Result<(), NetworkError> {
    for (family, program, tables) in FIREWALLS {
        let of_family = || passing.iter().filter(|passing| concerns(passing, family));
        if let Some(chain) = nft.list(&["-a", "list", "chain", family, "filter", "FORWARD"]) {
            let ours = |line: &&str| of_family().any(|passing| line.contains(&passing.comment()));
            let rules: String = chain
                .lines()
                .filter(ours)
                .filter_map(|line| line.rsplit_once("# handle "))
                .map(|(_, handle)| {
                    format!(
                        "delete rule {family} filter FORWARD handle {}\n",
                        handle.trim()
                    )
                })
                .collect();
            if !rules.is_empty() {
                nft.apply(&rules)?;
            }
        }
        for passing in of_family() {
            legacy(program, tables, passing, false)?;
        }
    }
    Ok(())
}

/// Makes the rules of the older iptables, which nft does not see, be there or not, for both directions.
fn legacy(name: &str, tables: &str, passing: &Passing, wanted: bool) -> Result<(), NetworkError> {
    let in_use = fs::read_to_string(tables)
        .is_ok_and(|tables| tables.lines().any(|table| table == "filter"));
    if !in_use {
        return Ok(());
    }
    let Some(program) = commands::find(name) else {
        tracing::warn!(
            ?passing,
            "rules of the older iptables are in force and {name} is missing: should pods not reach each other, accept \
             forwarding of their packets in them"
        );
        return Ok(());
    };
    let run = |verb: &str, [option, value]: &[String; 2]| {
        commands::run(
            &program,
            &["-w", "5", verb, "FORWARD", option, value, "-j", "ACCEPT"],
            "",
        )
        .map_err(|source| NetworkError::Io {
            doing: format!("running {}", program.display()),
            source,
        })
    };
    for options in passing.options() {
        if run("-C", &options)?.status.success() == wanted {
            continue;
        }
        let output = run(if wanted { "-I" } else { "-D" }, &options)?;
        if !output.status.success() {
            return Err(NetworkError::Netlink {
                doing: format!("changing the FORWARD chain of {name} for {passing:?}"),
                cause: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
    }
    Ok(())
}
