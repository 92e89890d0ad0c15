//! The truth table of NetworkPolicy: a small world, policies in it, and who must (not) reach whom then.
//!
//! The table is data. It is read by whoever can answer for a part of the way from a policy to a packet: the server's
//! compiler (over its compiled form), the node's rules (over real connections between namespaces), and whole clusters.
//! Addresses are the reader's: `address` says what a pod or outsider has there.

mod blocks;
mod egress;
mod isolation;
mod ports;
mod selectors;

use serde_json::{Value, json};

/// A pod of the world. All pods serve the same [`PORTS`].
#[derive(Clone, Copy, Debug)]
pub struct CasePod {
    /// What probes call it, `namespace/name`.
    pub id: &'static str,
    /// Its label `app`.
    pub app: &'static str,
    /// Which of two nodes it is on.
    pub node: usize,
    /// The number of its port named `http`.
    pub http: u16,
}

/// Namespaces with their label `team`; each also has its name as `kubernetes.io/metadata.name`.
pub const NAMESPACES: [(&str, &str); 3] = [("shop", "red"), ("bank", "blue"), ("lab", "blue")];

/// The pods.
pub const PODS: [CasePod; 6] = [
    CasePod {
        id: "shop/web",
        app: "web",
        node: 0,
        http: 80,
    },
    CasePod {
        id: "shop/api",
        app: "api",
        node: 0,
        http: 8080,
    },
    CasePod {
        id: "shop/db",
        app: "db",
        node: 1,
        http: 8080,
    },
    CasePod {
        id: "bank/web",
        app: "web",
        node: 1,
        http: 80,
    },
    CasePod {
        id: "bank/till",
        app: "till",
        node: 0,
        http: 80,
    },
    CasePod {
        id: "lab/probe",
        app: "probe",
        node: 1,
        http: 80,
    },
];

/// Clients and servers outside the cluster, which serve the same ports.
pub const OUTSIDERS: [&str; 2] = ["outside-1", "outside-2"];

/// What everybody serves over TCP and UDP.
pub const PORTS: [u16; 5] = [80, 81, 8080, 8085, 8090];

/// How a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaks {
    /// A connection.
    Tcp,
    /// A question and its answer.
    Udp,
    /// An echo; the port is of no matter.
    Icmp,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Who begins: a pod, an outsider, or `node-0` and `node-1` for the nodes themselves.
    pub from: &'static str,
    /// Who is addressed.
    pub to: &'static str,
    /// How.
    pub speaks: Speaks,
    /// To which port.
    pub port: u16,
    /// Whether it must arrive.
    pub allowed: bool,
}

/// Policies, and what holds while they do.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// Namespace and spec of each policy.
    pub policies: Vec<(&'static str, Value)>,
    /// What holds.
    pub probes: Vec<Probe>,
}

fn tcp(from: &'static str, to: &'static str, port: u16, allowed: bool) -> Probe {
    Probe {
        from,
        to,
        speaks: Speaks::Tcp,
        port,
        allowed,
    }
}

fn udp(from: &'static str, to: &'static str, port: u16, allowed: bool) -> Probe {
    Probe {
        from,
        to,
        speaks: Speaks::Udp,
        port,
        allowed,
    }
}

fn icmp(from: &'static str, to: &'static str, allowed: bool) -> Probe {
    Probe {
        from,
        to,
        speaks: Speaks::Icmp,
        port: 0,
        allowed,
    }
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// The whole table.
pub fn cases(address: &dyn Fn(&str) -> String) -> Vec<Case> {
    [
        isolation::cases(),
        selectors::cases(),
        ports::cases(),
        egress::cases(),
        blocks::cases(address),
    ]
    .concat()
}
