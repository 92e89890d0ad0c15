//! Several hosts on one machine: a bridge, and for each host a network namespace with a link to it. The machine itself is
//! on the bridge too, as the hosts' gateway, so that it reaches them and they reach the world through it.
//!
//! ```text
//! machine:  <prefix>-lan  (subnet).1 ----+---- <prefix>-h1 === eth0 (subnet).11  namespace of host 1
//!                                        +---- <prefix>-h2 === eth0 (subnet).12  namespace of host 2
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::forwarding::Passing;
use crate::names::hardware_address;
use crate::netlink::{Change, Netlink};
use crate::nft::Nft;

use crate::{NetworkError, forwarding, links, netns};

/// A host's end of its link.
const HOST_LINK: &str = "eth0";
const LOOPBACK: u32 = 1;
/// The last part of host 1's address, less one.
const FIRST: u8 = 10;
/// Hosts of one subnet.
const MOST: u8 = 200;

/// Where the hosts of one machine are. Making it touches nothing.
#[derive(Clone, Debug)]
pub struct LocalHosts {
    prefix: String,
    subnet: Ipv4Net,
    directory: PathBuf,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalHost {
    /// Where the others reach it.
    pub address: Ipv4Addr,
    /// Its network namespace: a file to enter it by.
    pub netns: PathBuf,
}

impl LocalHosts {
    /// `prefix` names the links: at most 8 of a-z, 0-9 and `-`. `subnet` is a /24. `directory` is where namespaces are
    /// mounted.
    pub fn new(prefix: &str, subnet: Ipv4Net, directory: &Path) -> Result<Self, NetworkError> {
        if subnet.prefix_len() != 24 {
            return Err(NetworkError::Unsupported(format!(
                "the subnet of hosts {subnet}: it is a /24, such as 10.89.0.0/24"
            )));
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            subnet: subnet.trunc(),
            directory: directory.to_owned(),
        })
    }

    /// The first of some subnets that nothing on this machine is routed to.
    pub fn free_subnet(
        candidates: impl IntoIterator<Item = Ipv4Net>,
    ) -> Result<Option<Ipv4Net>, NetworkError> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessageBuilder::<Ipv4Addr>::new().build());
        let found = Netlink::open()?.dump("listing routes", request)?;
        let routed: Vec<Ipv4Net> = found.iter().filter_map(destination).collect();
        let overlap = |one: &Ipv4Net, other: &Ipv4Net| {
            one.contains(&other.network()) || other.contains(&one.network())
        };
        Ok(candidates
            .into_iter()
            .find(|candidate| !routed.iter().any(|route| overlap(route, candidate))))
    }

    /// Where the machine itself is reached by its hosts.
    pub fn gateway(&self) -> Ipv4Addr {
        self.numbered(1)
    }

    /// Where a host is, counted from 1.
    pub fn address(&self, number: u8) -> Result<Ipv4Addr, NetworkError> {
        if !(1..=MOST).contains(&number) {
            return Err(NetworkError::Unsupported(format!(
                "host {number}: one machine has 1 to {MOST} hosts"
            )));
        }
        Ok(self.numbered(FIRST + number))
    }

    fn numbered(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) | u32::from(last))
    }

    fn bridge(&self) -> String {
        format!("{}-lan", self.prefix)
    }

    /// The machine's end of a host's link.
    pub fn link(&self, number: u8) -> String {
        format!("{}-h{number}", self.prefix)
    }

    fn table(&self) -> String {
        format!("{}-lan", self.prefix)
    }

    fn netns(&self, number: u8) -> PathBuf {
        self.directory.join(format!("host-{number}"))
    }

    /// Makes the bridge, in the namespace of the calling thread, and lets hosts out into the world. Idempotent.
    pub fn set_up(&self) -> Result<(), NetworkError> {
        let nft = Nft::find()?;
        let mut netlink = Netlink::open()?;
        let (bridge, gateway) = (self.bridge(), self.gateway());
        let create = LinkBridge::new(&bridge)
            .forward_delay(0)
            .mcast_snooping(false)
            .address(hardware_address(gateway).to_vec())
            .build();
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match netlink.change(Change::new(
            format!("creating the bridge {bridge}"),
            flags,
            RouteNetlinkMessage::NewLink(create),
        )) {
            Err(refusal) if !refusal.is(libc::EEXIST) => return Err(refusal.into()),
            _ => {}
        }
        let index = index_of(&mut netlink, &bridge)?;
        netlink.batch(vec![
            Change::new(
                format!("bringing up the bridge {bridge}"),
                0,
                RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build()),
            ),
            links::add_address(
                &format!("adding {gateway} to the bridge {bridge}"),
                index,
                gateway,
                self.subnet.prefix_len(),
            ),
        ])?;
        forwarding::switch_on(false)?;
        nft.set_up(&self.rules())?;
        forwarding::accept(&nft, &[Passing::Link(bridge)], false)
    }

    fn rules(&self) -> String {
        let (table, bridge, subnet) = (self.table(), self.bridge(), self.subnet);
        format!(
            r#"add table ip {table}
delete table ip {table}
table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{bridge}" ip daddr != 224.0.0.0/4 masquerade
  }}
}}
"#
        )
    }

    /// Makes a host, or finds it. Its link is up, its default route leads to the machine.
    pub fn add(&self, number: u8) -> Result<LocalHost, NetworkError> {
        let host = LocalHost {
            address: self.address(number)?,
            netns: self.netns(number),
        };
        fs::create_dir_all(&self.directory).map_err(|source| NetworkError::Io {
            doing: format!("creating {}", self.directory.display()),
            source,
        })?;
        let mut netlink = Netlink::open()?;
        let link = self.link(number);
        if netns::is_mounted(&host.netns) {
            if links::find(&mut netlink, &link)?.is_some() {
                return Ok(host);
            }
            netns::remove(&host.netns)?;
        }
        // What is left of a namespace that is gone.
        links::remove(&mut netlink, &link)?;
        let mut inside = netns::create(&host.netns, || Ok(None))?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(HOST_LINK.to_owned())
            .address(hardware_address(host.address).to_vec())
            .setns_by_fd(inside.file.as_raw_fd())
            .build();
        let pair = LinkVeth::new(&link, HOST_LINK)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(index_of(&mut netlink, &self.bridge())?)
            .up()
            .build();
        netlink.change(Change::new(
            format!("creating the link of host {number}, {link}"),
            NLM_F_CREATE | NLM_F_EXCL,
            RouteNetlinkMessage::NewLink(pair),
        ))?;
        let eth0 = index_of(&mut inside.netlink, HOST_LINK)?;
        let up =
            |index| RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build());
        inside.netlink.batch(vec![
            Change::new("bringing up the host's loopback", 0, up(LOOPBACK)),
            Change::new("bringing up the host's link", 0, up(eth0)),
            links::add_address(
                &format!("adding {} to the host's link", host.address),
                eth0,
                host.address,
                self.subnet.prefix_len(),
            ),
            Change::new(
                "adding the host's default route",
                NLM_F_CREATE | NLM_F_REPLACE,
                RouteNetlinkMessage::NewRoute(
                    RouteMessageBuilder::<Ipv4Addr>::new()
                        .gateway(self.gateway())
                        .output_interface(eth0)
                        .build(),
                ),
            ),
        ])?;
        Ok(host)
    }

    /// The hosts there are, by number.
    pub fn present(&self) -> BTreeSet<u8> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_prefix("host-")?.parse().ok()
            })
            .collect()
    }

    /// Whether any host can be entered.
    pub fn any_there(&self) -> bool {
        let present = self.present();
        present
            .iter()
            .any(|number| netns::is_mounted(&self.netns(*number)))
    }

    /// The machine's ends of hosts' links, of whichever hosts.
    fn links(&self, netlink: &mut Netlink) -> Result<Vec<String>, NetworkError> {
        let of_hosts = format!("{}-h", self.prefix);
        let mut names = links::names(netlink)?;
        names.retain(|name| {
            let number = name.strip_prefix(&of_hosts);
            number.is_some_and(|number| number.parse::<u8>().is_ok())
        });
        Ok(names)
    }

    /// Removes the hosts, the bridge and the rules, whatever of them is there; goes on after an error and answers the
    /// first. Processes that still run in a host keep its namespace, without a link, until they end.
    pub fn teardown(&self) -> Result<(), NetworkError> {
        let mut first = Ok(());
        let mut keep = |result: Result<(), NetworkError>| {
            if first.is_ok() {
                first = result;
            }
        };
        match Netlink::open() {
            Ok(mut netlink) => {
                // Not by the hosts that are there: whoever was killed while making one may have left either without the other.
                match self.links(&mut netlink) {
                    Ok(names) => {
                        for name in names {
                            keep(links::remove(&mut netlink, &name));
                        }
                    }
                    Err(error) => keep(Err(error)),
                }
                for number in self.present() {
                    keep(netns::remove(&self.netns(number)));
                }
                keep(links::remove(&mut netlink, &self.bridge()));
            }
            Err(error) => keep(Err(error)),
        }
        match Nft::find() {
            Ok(nft) => {
                let table = self.table();
                keep(nft.apply(&format!("add table ip {table}\ndelete table ip {table}\n")));
                keep(forwarding::forget(&nft, &[Passing::Link(self.bridge())]));
            }
            // Rules that were made go with the kernel at the latest; without the program there were none to begin with.
            Err(error) => tracing::warn!(%error, "rules of hosts, if any, are left"),
        }
        match fs::remove_dir_all(&self.directory) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                keep(Err(NetworkError::Io {
                    doing: format!("removing {}", self.directory.display()),
                    source,
                }));
            }
            _ => {}
        }
        first
    }
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, NetworkError> {
    let link = links::find(netlink, name)?.ok_or_else(|| NetworkError::Netlink {
        doing: format!("finding the link {name}"),
        cause: "it vanished right after it was made".to_owned(),
    })?;
    Ok(link.header.index)
}

/// What a route leads to, unless it is the default.
pub(crate) fn destination(message: &RouteNetlinkMessage) -> Option<Ipv4Net> {
    let RouteNetlinkMessage::NewRoute(route) = message else {
        return None;
    };
    let length = route.header.destination_prefix_length;
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        })?;
    Ipv4Net::new(address, length).ok().filter(|_| length > 0)
}
