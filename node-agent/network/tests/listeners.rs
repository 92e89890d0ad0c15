//! What processes of the host listen on: the contract, on a real host and on the fake.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use gantry_network::{FakeListeners, HostListeners, Listeners, LocalPort, Protocol};
use lab::{HOST, OUTSIDE, on_own_machine};

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn port(protocol: Protocol, address: Option<Ipv4Addr>, port: u16) -> LocalPort {
    LocalPort {
        protocol,
        address: address.map(IpAddr::V4),
        port,
    }
}

/// What every [`Listeners`] keeps on a host with the address 192.0.2.1. `listen` starts a process and answers with how it
/// is ended.
async fn contract<End: FnOnce()>(
    listeners: &impl Listeners,
    listen: impl Fn(Protocol, IpAddr, u16) -> End,
) {
    use Protocol::{Sctp, Tcp, Udp};
    let held = async |ports: &[LocalPort]| {
        let ports = ports.iter().copied().collect();
        listeners.held(ports).await.unwrap()
    };
    let (here, elsewhere) = (Some(HOST), Some(OUTSIDE));
    assert!(held(&[]).await.is_empty());
    let of_all = listen(Tcp, ANY, 22);
    let of_one = listen(Tcp, HOST.into(), 80);
    let of_ipv6 = listen(Tcp, ANY6, 443);
    let of_loopback = listen(Udp, Ipv4Addr::LOCALHOST.into(), 53);
    let asked = [
        port(Tcp, here, 22),
        port(Tcp, elsewhere, 22),
        port(Udp, here, 22),
        port(Sctp, here, 22),
        port(Tcp, None, 22),
        port(Tcp, here, 80),
        port(Tcp, Some(Ipv4Addr::LOCALHOST), 80),
        port(Tcp, here, 443),
        port(Udp, here, 53),
        port(Udp, None, 53),
        port(Udp, Some(Ipv4Addr::LOCALHOST), 53),
        port(Tcp, here, 8080),
    ];
    let expected = BTreeSet::from([
        port(Tcp, here, 22),
        port(Tcp, None, 22),
        port(Tcp, here, 80),
        port(Tcp, here, 443),
        port(Udp, None, 53),
        port(Udp, Some(Ipv4Addr::LOCALHOST), 53),
    ]);
    assert_eq!(held(&asked).await, expected);
    for end in [of_all, of_one, of_ipv6, of_loopback] {
        end();
    }
    assert!(held(&asked).await.is_empty());
}

#[test]
fn the_host_keeps_the_contract() {
    on_own_machine(async |_lab| {
        contract(&HostListeners, |protocol, address, port| {
            let address = SocketAddr::new(address, port);
            let (tcp, udp) = match protocol {
                Protocol::Tcp => (Some(TcpListener::bind(address).unwrap()), None),
                _ => (None, Some(UdpSocket::bind(address).unwrap())),
            };
            move || drop((tcp, udp))
        })
        .await;
    });
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let fake = FakeListeners::new([HOST.into()]);
    contract(&fake, |protocol, address, port| {
        fake.listen(protocol, address, port);
        let fake = &fake;
        move || fake.close(protocol, address, port)
    })
    .await;
}

/// A service may have a port from which the host has just happened to connect to somebody.
#[test]
fn who_is_connected_does_not_listen() {
    on_own_machine(async |lab| {
        let (server, udp) = lab.inside(&lab.outside, || {
            let udp = UdpSocket::bind((OUTSIDE, 7001)).unwrap();
            (TcpListener::bind((OUTSIDE, 7001)).unwrap(), udp)
        });
        let client = TcpStream::connect((OUTSIDE, 7001)).unwrap();
        let datagrams = UdpSocket::bind((HOST, 0)).unwrap();
        datagrams.connect((OUTSIDE, 7001)).unwrap();
        let ports = [
            (Protocol::Tcp, client.local_addr().unwrap().port()),
            (Protocol::Udp, datagrams.local_addr().unwrap().port()),
        ];
        let wanted = ports.map(|(protocol, number)| port(protocol, Some(HOST), number));
        let held = HostListeners.held(wanted.into()).await.unwrap();
        assert_eq!(held, BTreeSet::new());
        drop((server, udp));
    });
}
