//! What a pod may say, and what it says in the name of others.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

/// The gateway of the lab's pods.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const LLDP: Mac = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
const SPANNING_TREE: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];
/// The next header that says that hop-by-hop options follow, a fragment's header, destination options.
const EXTENSIONS: [u8; 3] = [0, 44, 60];
const ICMPV6: u8 = 58;

/// A pod as others on its link see it.
#[derive(Clone, Copy)]
pub(crate) struct Own {
    pub(crate) ip: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    pub(crate) mac: Mac,
}

impl Own {
    pub(crate) fn of(ip: Ipv4Addr) -> Self {
        let ip6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, u16::from(ip.octets()[3]));
        Self {
            ip,
            ip6,
            mac: mac_of(ip),
        }
    }
}

/// An IPv6 packet whose message is behind an extension header, with a mark where there is room.
fn behind(extension: u8, from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let header: [u8; 8] = match extension {
        // A first fragment of more.
        44 => [next, 0, 0, 1, 0, 0, 0, 7],
        // Padding of six bytes.
        _ => [next, 0, 1, 4, 0, 0, 0, 0],
    };
    ipv6(from, to, extension, &[&header[..], payload].concat())
}

/// ICMPv6 that says `mark` behind its body.
fn message(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8], mark: &str) -> Vec<u8> {
    icmpv6(from, to, kind, &[body, mark.as_bytes()].concat())
}

/// Frames that must go nowhere, by what they say, from `a` in the name of `b` or of somebody else.
pub(crate) fn forged(a: Own, b: Own, to: Mac) -> Vec<(String, Vec<u8>)> {
    let stranger: Mac = [0x02, 9, 9, 9, 9, 9];
    let mut frames = Vec::new();
    let mut add = |what: &str, frame: &dyn Fn(&str) -> Vec<u8>| {
        let mark = format!("<{what}>");
        frames.push((mark.clone(), frame(&mark)));
    };
    for (what, mac, ip) in [
        ("another's address", a.mac, b.ip),
        ("the gateway's address", a.mac, GATEWAY),
        ("an outsider's address", a.mac, Ipv4Addr::new(192, 0, 2, 2)),
        ("the loopback's address", a.mac, Ipv4Addr::LOCALHOST),
        ("no address", a.mac, Ipv4Addr::UNSPECIFIED),
        ("another's hardware", b.mac, a.ip),
        ("another altogether", b.mac, b.ip),
        ("a stranger's hardware", stranger, a.ip),
        ("a group's hardware", [0x03, 0x67, 10, 244, 1, 9], a.ip),
    ] {
        add(what, &|mark| datagram4((to, GATEWAY), (mac, ip), mark));
        add(&format!("{what}, a fragment"), &|mark| {
            ethernet(
                to,
                mac,
                0x0800,
                &ipv4(ip, GATEWAY, 17, 100, mark.as_bytes()),
            )
        });
    }
    for (tag, vlan) in [(0x8100, 0), (0x8100, 5), (0x88a8, 0), (0x88a8, 5)] {
        for (who, from) in [("own", a), ("another's", b)] {
            add(&format!("{who}, tagged {tag:x} {vlan}"), &|mark| {
                tagged(
                    tag,
                    vlan,
                    &datagram4((to, GATEWAY), (from.mac, from.ip), mark),
                )
            });
            add(&format!("{who}, tagged {tag:x} {vlan} twice"), &|mark| {
                tagged(
                    tag,
                    vlan,
                    &tagged(
                        0x8100,
                        7,
                        &datagram4((to, GATEWAY), (from.mac, from.ip), mark),
                    ),
                )
            });
        }
    }
    for operation in [1, 2] {
        for (what, from, sender) in [
            ("another's address", a.mac, (a.mac, b.ip)),
            ("the gateway's address", a.mac, (a.mac, GATEWAY)),
            ("another's hardware", a.mac, (b.mac, a.ip)),
            ("another's frame", b.mac, (a.mac, a.ip)),
            ("another altogether", b.mac, (b.mac, b.ip)),
            ("no address", a.mac, (a.mac, Ipv4Addr::UNSPECIFIED)),
        ] {
            add(&format!("ARP {operation} with {what}"), &|mark| {
                [
                    arp(to, from, operation, sender, GATEWAY),
                    mark.as_bytes().to_vec(),
                ]
                .concat()
            });
        }
    }
    let own_local = link_local(a.mac);
    for (what, mac, from) in [
        ("another's address", a.mac, b.ip6),
        ("another's link-local address", a.mac, link_local(b.mac)),
        ("the gateway's address", a.mac, Own::of(GATEWAY).ip6),
        (
            "an outsider's address",
            a.mac,
            "2001:db8::9".parse().unwrap(),
        ),
        ("no address", a.mac, Ipv6Addr::UNSPECIFIED),
        ("another's hardware", b.mac, a.ip6),
    ] {
        add(&format!("IPv6 with {what}"), &|mark| {
            frame6(
                to,
                mac,
                &ipv6(from, ALL_NODES, 17, &udp(PORT, mark.as_bytes())),
            )
        });
        for extension in EXTENSIONS {
            add(&format!("IPv6 with {what} behind {extension}"), &|mark| {
                frame6(
                    to,
                    mac,
                    &behind(extension, from, ALL_NODES, 17, &udp(PORT, mark.as_bytes())),
                )
            });
        }
        add(&format!("an echo with {what}"), &|mark| {
            frame6(
                to,
                mac,
                &ipv6(
                    from,
                    ALL_NODES,
                    ICMPV6,
                    &message(from, ALL_NODES, 128, &[0; 4], mark),
                ),
            )
        });
    }
    for from in [own_local, a.ip6] {
        // Types that are only a router's, or about other addresses than one's own; with room for a mark they are also
        // longer than neighbour discovery ever is.
        for kind in [
            130, 134, 135, 136, 137, 138, 141, 142, 148, 149, 151, 152, 153,
        ] {
            let body = neighbour(b.ip6, &option(2, a.mac));
            add(&format!("type {kind} of {from}"), &|mark| {
                frame6(
                    to,
                    a.mac,
                    &ipv6(
                        from,
                        ALL_NODES,
                        ICMPV6,
                        &message(from, ALL_NODES, kind, &body, mark),
                    ),
                )
            });
            for extension in EXTENSIONS {
                add(
                    &format!("type {kind} of {from} behind {extension}"),
                    &|mark| {
                        let message = message(from, ALL_NODES, kind, &body, mark);
                        frame6(
                            to,
                            a.mac,
                            &behind(extension, from, ALL_NODES, ICMPV6, &message),
                        )
                    },
                );
            }
        }
    }
    add("headers that do not end", &|mark| {
        frame6(
            to,
            a.mac,
            &ipv6(
                a.ip6,
                ALL_NODES,
                60,
                &[&[60, 200, 1, 4][..], mark.as_bytes()].concat(),
            ),
        )
    });
    for kind in [0x8847, 0x8863, 0x8864, 0x88cc, 0x0805, 0x8035, 0x22f0, 60] {
        add(&format!("EtherType {kind:x}"), &|mark| {
            ethernet(to, a.mac, kind, mark.as_bytes())
        });
    }
    for group in [
        LLDP,
        SPANNING_TREE,
        [0x01, 0x80, 0xc2, 0, 0, 2],
        [0x01, 0x80, 0xc2, 0, 0, 3],
    ] {
        add(&format!("to bridges {:x}", group[5]), &|mark| {
            datagram4((group, GATEWAY), (b.mac, b.ip), mark)
        });
        add(&format!("BPDU {:x}", group[5]), &|mark| {
            ethernet(group, a.mac, 38, mark.as_bytes())
        });
    }
    frames
}

/// Neighbour discovery without room for a mark: it must not change what others believe.
pub(crate) fn forged_discovery(a: Own, b: Own, to: Mac) -> Vec<Vec<u8>> {
    let gateway = Own::of(GATEWAY);
    let local = link_local(a.mac);
    let mut frames = Vec::new();
    let mut add = |from: Ipv6Addr, kind: u8, target: Ipv6Addr, option: &[u8]| {
        let body = neighbour(target, option);
        let packet = ipv6(
            from,
            ALL_NODES,
            ICMPV6,
            &icmpv6(from, ALL_NODES, kind, &body),
        );
        frames.push(frame6(to, a.mac, &packet));
    };
    for target in [
        b.ip6,
        link_local(b.mac),
        gateway.ip6,
        link_local(gateway.mac),
    ] {
        for from in [a.ip6, local, target, Ipv6Addr::UNSPECIFIED] {
            add(from, 136, target, &option(2, a.mac));
            add(from, 136, target, &[]);
        }
        add(target, 135, a.ip6, &option(1, a.mac));
        add(Ipv6Addr::UNSPECIFIED, 135, target, &[]);
    }
    frames
}

/// Frames that have always been a pod's right. No fragments: where bridges track connections, those wait for the others.
pub(crate) fn honest(a: Own, b: Own, to: Mac) -> Vec<(String, Vec<u8>)> {
    let local = link_local(a.mac);
    let mut frames = Vec::new();
    let mut add = |what: &str, frame: &dyn Fn(&str) -> Vec<u8>| {
        let mark = format!("<{what}>");
        frames.push((mark.clone(), frame(&mark)));
    };
    add("a datagram", &|mark| {
        datagram4((to, GATEWAY), (a.mac, a.ip), mark)
    });
    for operation in [1, 2] {
        add(&format!("ARP {operation}"), &|mark| {
            [
                arp(to, a.mac, operation, (a.mac, a.ip), b.ip),
                mark.as_bytes().to_vec(),
            ]
            .concat()
        });
    }
    for from in [a.ip6, local] {
        add(&format!("a datagram of {from}"), &|mark| {
            frame6(
                to,
                a.mac,
                &ipv6(from, ALL_NODES, 17, &udp(PORT, mark.as_bytes())),
            )
        });
        add(&format!("an echo of {from}"), &|mark| {
            frame6(
                to,
                a.mac,
                &ipv6(
                    from,
                    ALL_NODES,
                    ICMPV6,
                    &message(from, ALL_NODES, 128, &[0; 4], mark),
                ),
            )
        });
        for extension in EXTENSIONS.into_iter().filter(|kind| *kind != 44) {
            add(&format!("an echo of {from} behind {extension}"), &|mark| {
                let echo = message(from, ALL_NODES, 128, &[0; 4], mark);
                frame6(
                    to,
                    a.mac,
                    &behind(extension, from, ALL_NODES, ICMPV6, &echo),
                )
            });
        }
    }
    for kind in [131, 132, 133, 143] {
        add(&format!("type {kind} without an address"), &|mark| {
            let none = Ipv6Addr::UNSPECIFIED;
            frame6(
                to,
                a.mac,
                &ipv6(
                    none,
                    ALL_NODES,
                    ICMPV6,
                    &message(none, ALL_NODES, kind, &[0; 4], mark),
                ),
            )
        });
    }
    frames
}
