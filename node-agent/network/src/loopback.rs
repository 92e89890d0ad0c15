//! Connections from the host's loopback that leave it by a link, and what must not come in because of them.
//!
//! Host ports and node ports answer at 127.0.0.1 too. The kernel lets a packet from there leave by a link, and the reply
//! come in by it, only where the link's `route_localnet` is on. The switch also lifts the kernel's own protection:
//! whoever reaches the link could send to what listens on the loopback, and is meant for this host alone, or pretend to
//! be there. So a table drops whatever comes in by a link and has an address of 127.0.0.0/8, before anything is
//! translated: a reply still has the address then that its connection left with.
//!
//! Invariant: the table is there before the first link is opened and until the last one is closed. It is never
//! replaced, since single packets would pass in between.

use std::fs;
use std::io;

use crate::names::Names;
use crate::nft::Nft;
use crate::{NetworkError, forwarding};

const CHAIN: &str = "incoming";
/// As nft prints them.
const RULES: [&str; 2] = [
    "iifname != \"lo\" ip daddr 127.0.0.0/8 drop",
    "iifname != \"lo\" ip saddr 127.0.0.0/8 drop",
];

/// The kernel's switch for a link.
pub(crate) fn parameter(link: &str) -> String {
    format!("ipv4/conf/{link}/route_localnet")
}

/// Sees to it that nothing of the loopback's addresses comes in by a link. Cheap when it is so.
pub(crate) fn guard(nft: &Nft, names: &Names) -> Result<(), NetworkError> {
    let table = names.loopback_table();
    let listed = nft.list(&["list", "chain", "ip", &table, CHAIN]);
    if listed.is_some_and(|chain| RULES.iter().all(|rule| chain.contains(rule))) {
        return Ok(());
    }
    nft.set_up(&script(&table))
}

/// Fills what is there, in one transaction.
fn script(table: &str) -> String {
    let rules = RULES.map(|rule| format!("add rule ip {table} {CHAIN} {rule}\n"));
    format!(
        "add table ip {table}\n\
         add chain ip {table} {CHAIN} {{ type filter hook prerouting priority raw; policy accept; }}\n\
         flush chain ip {table} {CHAIN}\n{}",
        rules.concat()
    )
}

/// Opens a link that is not ours: [`close`] closes it again, unless somebody else had opened it before.
pub(crate) fn open(names: &Names, link: &str) -> Result<(), NetworkError> {
    let parameter = parameter(link);
    let now = fs::read_to_string(format!("/proc/sys/net/{parameter}"));
    if now.is_ok_and(|now| now.trim() == "1") {
        return Ok(());
    }
    let mut opened = opened(names)?;
    if !opened.iter().any(|known| known == link) {
        opened.push(link.to_owned());
        let file = names.opened_links_file();
        let written = file
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&file, opened.join("\n")));
        written.map_err(|source| doing(names, "writing", source))?;
    }
    forwarding::set(&parameter, "1")
}

/// Closes the links that were opened. Idempotent.
pub(crate) fn close(names: &Names) -> Result<(), NetworkError> {
    for link in opened(names)? {
        match fs::write(format!("/proc/sys/net/{}", parameter(&link)), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(NetworkError::Io {
                    doing: format!(
                        "closing the link {link} for the loopback's addresses: do so on the host (sysctl -w \
                         net.ipv4.conf.{link}.route_localnet=0)"
                    ),
                    source: error,
                });
            }
            // Closed, or gone.
            _ => {}
        }
    }
    match fs::remove_file(names.opened_links_file()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(doing(names, "removing", error))
        }
        _ => Ok(()),
    }
}

/// The links that were opened, by this process or an earlier one.
fn opened(names: &Names) -> Result<Vec<String>, NetworkError> {
    match fs::read_to_string(names.opened_links_file()) {
        Ok(links) => Ok(links.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(doing(names, "reading", error)),
    }
}

fn doing(names: &Names, what: &str, source: io::Error) -> NetworkError {
    NetworkError::Io {
        doing: format!("{what} {}", names.opened_links_file().display()),
        source,
    }
}
