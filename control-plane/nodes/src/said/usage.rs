//! What a node says that it, its pods and their containers use, as types: within bounds, and with numbers that can be counted
//! with.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_base::names::is_dns1123_label;
use gantry_rpc::node::{self as rpc, Usage};
use gantry_usage::{
    Amounts, Connections, ContainerSample, NodeSample, PodName, PodSample, Pressure, Pressures,
    ServiceName, Traffic,
};

use super::{PodRef, Refused, STATUSES, check_count, checked, service};

/// Containers of a pod that run at once; no pod has a tenth of them.
const CONTAINERS: usize = 256;
/// Services that a node holds connections to at once.
const SERVICES: usize = 4096;
/// Connections that a node holds to a Service: agents hold far fewer.
const HELD: u64 = 1 << 14;
/// What is used counts up to this: more of anything there is not.
const MOST: u64 = 1 << 62;

/// What is said of the node itself; refused with all that is said with it when that is too much.
pub(crate) fn node(said: &Usage) -> Result<NodeSample, Refused> {
    check_count("pods", said.pods.len(), STATUSES, "the node's usage")?;
    let Some(node) = &said.node else {
        return Err(Refused::NotItsOwn(
            "the node's usage says nothing of the node".to_owned(),
        ));
    };
    Ok(NodeSample {
        at: counted(node.read_at)?,
        amounts: amounts(node.amounts.as_ref())?,
        available_bytes: counted(node.available_bytes)?,
        traffic: traffic(node.traffic.as_ref())?,
    })
}

/// Which pod something is said of.
pub(crate) fn pod_of(said: &rpc::PodUsage) -> Result<PodRef, Refused> {
    PodRef::new(said.namespace.clone(), said.name.clone(), said.uid.clone())
}

/// What is said of a pod.
pub(crate) fn pod(said: rpc::PodUsage, pod: Arc<PodName>) -> Result<PodSample, Refused> {
    check_count(
        "containers",
        said.containers.len(),
        CONTAINERS,
        "the pod's usage",
    )?;
    let containers = said.containers.into_iter();
    let containers = containers.map(|said| -> Result<ContainerSample, Refused> {
        Ok(ContainerSample {
            name: checked("the container's name", said.name, is_dns1123_label)?,
            attempt: said.attempt,
            amounts: amounts(said.amounts.as_ref())?,
        })
    });
    Ok(PodSample {
        pod,
        at: counted(said.read_at)?,
        amounts: amounts(said.amounts.as_ref())?,
        traffic: traffic(said.traffic.as_ref())?,
        connections: connections(said.connections.as_ref())?,
        containers: containers.collect::<Result<_, Refused>>()?,
    })
}

fn connections(said: Option<&rpc::Connections>) -> Result<Option<Connections>, Refused> {
    let Some(said) = said else {
        return Ok(None);
    };
    Ok(Some(Connections {
        open: counted(said.open)?,
        opened: counted(said.opened)?,
    }))
}

/// How many connections the node says that it holds to each Service.
pub(crate) fn held(said: Vec<rpc::HeldConnections>) -> Result<HashMap<ServiceName, u64>, Refused> {
    check_count("Services", said.len(), SERVICES, "what the node holds")?;
    let mut all = HashMap::with_capacity(said.len());
    for one in said {
        let name = service(one.namespace, one.service)?;
        if one.held > HELD {
            return Err(Refused::NotItsOwn(format!(
                "{} connections held to the Service {}/{}, of which {HELD} are allowed",
                one.held, name.namespace, name.name
            )));
        }
        if all.insert(name, one.held).is_some() {
            return Err(Refused::NotItsOwn(
                "what the node holds to a Service twice in one message".to_owned(),
            ));
        }
    }
    Ok(all)
}

fn counted(number: u64) -> Result<u64, Refused> {
    match number {
        0..=MOST => Ok(number),
        _ => Err(Refused::Malformed {
            what: "an amount",
            value: number.to_string(),
            why: format!("nothing is counted beyond {MOST}"),
        }),
    }
}

/// What is not said is nothing.
fn amounts(said: Option<&rpc::Amounts>) -> Result<Amounts, Refused> {
    let Some(said) = said else {
        return Ok(Amounts::default());
    };
    Ok(Amounts {
        cpu_nanos: counted(said.cpu_nanoseconds)?,
        working_set_bytes: counted(said.working_set_bytes)?,
        memory_bytes: counted(said.memory_bytes)?,
        rss_bytes: counted(said.rss_bytes)?,
        periods: counted(said.periods)?,
        throttled_periods: counted(said.throttled_periods)?,
        throttled_nanos: counted(said.throttled_nanoseconds)?,
        processes: counted(said.processes)?,
        pressures: match &said.pressures {
            None => None,
            Some(said) => Some(Pressures {
                cpu: pressure(said.cpu.as_ref())?,
                memory: pressure(said.memory.as_ref())?,
                io: pressure(said.io.as_ref())?,
            }),
        },
    })
}

fn pressure(said: Option<&rpc::Pressure>) -> Result<Pressure, Refused> {
    let Some(said) = said else {
        return Ok(Pressure::default());
    };
    Ok(Pressure {
        waiting_micros: counted(said.waiting_microseconds)?,
        stalled_micros: counted(said.stalled_microseconds)?,
    })
}

fn traffic(said: Option<&rpc::Traffic>) -> Result<Option<Traffic>, Refused> {
    let Some(said) = said else {
        return Ok(None);
    };
    Ok(Some(Traffic {
        received_bytes: counted(said.received_bytes)?,
        received_packets: counted(said.received_packets)?,
        received_errors: counted(said.received_errors)?,
        received_dropped: counted(said.received_dropped)?,
        sent_bytes: counted(said.sent_bytes)?,
        sent_packets: counted(said.sent_packets)?,
        sent_errors: counted(said.sent_errors)?,
        sent_dropped: counted(said.sent_dropped)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, cpu_nanoseconds: u64) -> rpc::ContainerUsage {
        rpc::ContainerUsage {
            name: name.to_owned(),
            attempt: 0,
            amounts: Some(rpc::Amounts {
                cpu_nanoseconds,
                ..rpc::Amounts::default()
            }),
        }
    }

    fn read(containers: Vec<rpc::ContainerUsage>) -> Result<PodSample, Refused> {
        let said = rpc::PodUsage {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "1-2".to_owned(),
            containers,
            ..rpc::PodUsage::default()
        };
        let name = pod_of(&said)?;
        let name = PodName {
            namespace: name.namespace().to_owned(),
            name: name.name().to_owned(),
            uid: name.uid().to_owned(),
        };
        pod(said, Arc::new(name))
    }

    #[test]
    fn numbers_and_names_are_sane_and_few() {
        let said = read(vec![container("c", 5), container("d", MOST)]).expect("sane");
        assert_eq!(said.containers.len(), 2);
        for wrong in [
            container("", 5),
            container("a/b", 5),
            container("a\n", 5),
            container("c", MOST + 1),
            container("c", u64::MAX),
        ] {
            let refused = read(vec![wrong.clone()]).expect_err("refused");
            assert!(!refused.to_string().contains('\n'), "{wrong:?}");
        }
        assert!(read(vec![container("c", 0); CONTAINERS]).is_ok());
        assert!(read(vec![container("c", 0); CONTAINERS + 1]).is_err());
    }

    #[test]
    fn connections_are_counted_like_everything_else() {
        let read = |open, opened| {
            connections(Some(&rpc::Connections { open, opened })).map_err(|error| error.to_string())
        };
        let known = Connections { open: 3, opened: 7 };
        assert_eq!(read(3, 7), Ok(Some(known)));
        for (open, opened) in [(MOST + 1, 0), (0, u64::MAX)] {
            assert!(read(open, opened).is_err());
        }
        assert_eq!(
            connections(None),
            Ok(None),
            "of a pod on its node's network"
        );
    }

    #[test]
    fn what_is_held_is_bounded_and_of_services() {
        let one = |service: &str, held| rpc::HeldConnections {
            namespace: "default".to_owned(),
            service: service.to_owned(),
            held,
        };
        let said = held(vec![one("a", 1), one("b", HELD)]).expect("sane");
        let of = |name: &str| said.get(&service("default".into(), name.into()).expect("a name"));
        assert_eq!((of("a"), of("b")), (Some(&1), Some(&HELD)));
        for wrong in [
            vec![one("", 1)],
            vec![one("a/b", 1)],
            vec![one("a", HELD + 1)],
            vec![one("a", 1), one("a", 1)],
            vec![one("a", 1); SERVICES + 1],
        ] {
            assert!(held(wrong).is_err());
        }
        let many = (0..SERVICES).map(|number| one(&format!("s{number}"), 1));
        assert_eq!(held(many.collect()).map(|all| all.len()), Ok(SERVICES));
    }

    #[test]
    fn what_says_nothing_of_the_node_says_nothing() {
        assert!(node(&Usage::default()).is_err());
        let mut said = Usage {
            node: Some(rpc::NodeUsage::default()),
            ..Usage::default()
        };
        assert_eq!(node(&said), Ok(NodeSample::default()));
        said.pods = vec![rpc::PodUsage::default(); STATUSES + 1];
        assert!(node(&said).is_err());
    }
}
