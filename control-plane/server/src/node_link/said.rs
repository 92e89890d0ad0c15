//! What a node says, as types: read once, when it arrives, within bounds of size and depth. Whatever is not of this form is
//! refused with what is wrong about it, and nothing of it is used.

use gantry_api::names::{is_dns1123_label, is_dns1123_subdomain};
use gantry_rpc::node::{EventRecord, Hello, NodeStatus, PodStatus, PodTerminated, agent_message};
use k8s_openapi::api::core::v1 as core;
use serde::de::DeserializeOwned;

/// The largest Node, NodeStatus or PodStatus: more than any machine or pod has to say.
const OBJECT_BYTES: usize = 1 << 20;
/// The largest Event.
const EVENT_BYTES: usize = 64 << 10;
/// Of an Event's message more is cut off, as in Kubernetes.
const EVENT_MESSAGE_BYTES: usize = 1024;
/// Uids are made by the API server: 36 letters. Those of before a restore are no longer.
const UID_BYTES: usize = 128;

/// Why something that a node said counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Not of the form that it should have.
    #[error("{what} \"{value}\": {why}")]
    Malformed {
        what: &'static str,
        value: String,
        why: String,
    },
    /// Larger than anything of its kind.
    #[error("{what} has {bytes} bytes, of which {limit} are allowed")]
    TooLarge {
        what: &'static str,
        bytes: usize,
        limit: usize,
    },
    /// Not JSON of this type.
    #[error("{what} cannot be read: {why}")]
    Unreadable { what: &'static str, why: String },
    /// About something that is not the node's.
    #[error("{0}")]
    NotItsOwn(String),
}

/// A value in a message: short, and on one line.
pub(crate) fn shown(value: &str) -> String {
    value
        .chars()
        .take(80)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

fn checked(
    what: &'static str,
    value: String,
    check: impl Fn(&str) -> Option<String>,
) -> Result<String, Refused> {
    match check(&value) {
        None => Ok(value),
        Some(why) => Err(Refused::Malformed {
            what,
            value: shown(&value),
            why,
        }),
    }
}

fn read<T: DeserializeOwned>(what: &'static str, json: &[u8], limit: usize) -> Result<T, Refused> {
    if json.len() > limit {
        return Err(Refused::TooLarge {
            what,
            bytes: json.len(),
            limit,
        });
    }
    // The decoder's own bound of depth is 128.
    serde_json::from_slice(json).map_err(|error| Refused::Unreadable {
        what,
        why: error.to_string(),
    })
}

/// The name of a node, as its certificate has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeName(String);

impl NodeName {
    pub(crate) fn new(name: String) -> Result<Self, Refused> {
        checked("the node's name", name, is_dns1123_subdomain).map(Self)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Which pod a node speaks of. None of its parts can hold what would change the path of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodRef {
    namespace: String,
    name: String,
    uid: String,
}

impl PodRef {
    pub(crate) fn new(namespace: String, name: String, uid: String) -> Result<Self, Refused> {
        Ok(Self {
            namespace: checked("the pod's namespace", namespace, is_dns1123_label)?,
            name: checked("the pod's name", name, is_dns1123_subdomain)?,
            uid: checked("the pod's uid", uid, uid_problem)?,
        })
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }
}

fn uid_problem(uid: &str) -> Option<String> {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let fits = (1..=UID_BYTES).contains(&uid.len()) && uid.bytes().all(letters);
    (!fits).then(|| format!("must be 1 to {UID_BYTES} letters, digits and dashes"))
}

/// What a pod's status is by its node's word.
pub(crate) fn pod_status(said: PodStatus) -> Result<(PodRef, core::PodStatus), Refused> {
    let pod = PodRef::new(said.namespace, said.name, said.uid)?;
    Ok((pod, read("the pod's status", &said.status, OBJECT_BYTES)?))
}

pub(crate) fn pod_terminated(said: PodTerminated) -> Result<PodRef, Refused> {
    PodRef::new(said.namespace, said.name, said.uid)
}

/// The Node that an agent registers.
pub(crate) fn node(said: &Hello) -> Result<core::Node, Refused> {
    read("the Node", &said.node, OBJECT_BYTES)
}

pub(crate) fn node_status(said: &NodeStatus) -> Result<core::NodeStatus, Refused> {
    read("the node's status", &said.status, OBJECT_BYTES)
}

/// What an Event of a node is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Some node: whether it is the one that speaks is not known here.
    Node(NodeName),
    Pod(PodRef),
    /// Nodes tell what they make of a Service.
    Service {
        namespace: String,
        name: String,
        uid: String,
    },
}

/// An Event, and what it is about. Its place and name are the server's to choose.
pub(crate) fn event(said: &EventRecord) -> Result<(Subject, core::Event), Refused> {
    let mut event: core::Event = read("the Event", &said.event, EVENT_BYTES)?;
    let object = &event.involved_object;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (kind, name) = (text(&object.kind), text(&object.name));
    let (namespace, uid) = (text(&object.namespace), text(&object.uid));
    let subject = match (text(&object.api_version).as_str(), kind.as_str()) {
        ("v1", "Node") if namespace.is_empty() => Subject::Node(NodeName::new(name)?),
        ("v1", "Pod") => Subject::Pod(PodRef::new(namespace, name, uid)?),
        ("v1", "Service") => {
            let namespace = checked("the Service's namespace", namespace, is_dns1123_label)?;
            Subject::Service {
                namespace,
                name: checked("the Service's name", name, is_dns1123_label)?,
                uid: checked("the Service's uid", uid, uid_problem)?,
            }
        }
        _ => {
            return Err(Refused::NotItsOwn(format!(
                "an Event about {} \"{}\": nodes tell of themselves, of their pods and of Services",
                shown(&kind),
                shown(&name)
            )));
        }
    };
    if let Some(message) = &mut event.message {
        let mut end = message.len().min(EVENT_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
    Ok((subject, event))
}

/// Everything that is done to a node's message before anything is looked up for it, for the fuzzer.
pub(crate) fn fuzz(message: agent_message::Message) {
    use super::restrictions::{check_labels, check_pod_addresses};
    use agent_message::Message;
    match message {
        Message::Hello(hello) => {
            if let (Ok(name), Ok(node)) = (NodeName::new(hello.node_name.clone()), node(&hello)) {
                drop(check_labels(name.as_str(), &node));
                let status = core::PodStatus {
                    pod_ip: Some("10.0.0.1".to_owned()),
                    ..core::PodStatus::default()
                };
                drop(check_pod_addresses(false, &status, &node));
            }
        }
        Message::PodStatuses(statuses) => {
            for said in statuses.statuses {
                if let Ok((_, status)) = pod_status(said) {
                    drop(check_pod_addresses(true, &status, &core::Node::default()));
                }
            }
        }
        Message::PodTerminated(said) => drop(pod_terminated(said)),
        Message::Event(said) => drop(event(&said)),
        Message::NodeStatus(said) => {
            if let Ok(status) = node_status(&said) {
                drop(super::addresses::addresses(Some(&status)));
            }
        }
        Message::Heartbeat(_) | Message::ServicesProgrammed(_) | Message::AwaitServices(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_that_change_a_path_are_no_names() {
        let crafted = [
            "",
            ".",
            "..",
            "default/secrets/x?",
            "a/b",
            "a%2Fb",
            "a?b",
            "a#b",
            "a b",
            "A",
            "-a",
            "a\n",
            "\u{e9}",
        ];
        let long = "a".repeat(300);
        for wrong in crafted.into_iter().chain([long.as_str()]) {
            for place in 0..3 {
                // Uids may be of capital letters, and begin with a dash.
                if place == 2 && ["A", "-a"].contains(&wrong) {
                    continue;
                }
                let mut parts = ["default", "web", "1-2"];
                parts[place] = wrong;
                let [namespace, name, uid] = parts.map(str::to_owned);
                let refused = PodRef::new(namespace, name, uid);
                assert!(refused.is_err(), "{wrong:?} as part {place}");
                let said = refused.map(drop).unwrap_err().to_string();
                assert!(!said.contains('\n') && said.len() < 600, "{said}");
            }
            assert!(NodeName::new(wrong.to_owned()).is_err());
        }
        assert!(PodRef::new("default".into(), "web.1".into(), "1-2".into()).is_ok());
    }

    #[test]
    fn what_is_of_another_type_is_refused() {
        let deep = "[".repeat(100_000);
        for wrong in [
            "",
            "[]",
            "null",
            "1",
            "{\"conditions\": {}}",
            "{\"addresses\": [[]]}",
            &deep,
        ] {
            let said = NodeStatus {
                status: wrong.as_bytes().to_vec().into(),
            };
            // Lists of a type's fields in order are serde's other spelling of it.
            if wrong != "[]" {
                assert!(node_status(&said).is_err(), "{wrong:.40}");
            }
        }
        for wrong in [
            json!({"metadata": []}),
            json!({"metadata": {"labels": []}}),
            json!({"spec": {"taints": {}}}),
        ] {
            let hello = Hello {
                node: wrong.to_string().into(),
                ..Hello::default()
            };
            assert!(node(&hello).is_err(), "{wrong}");
        }
        let large = NodeStatus {
            status: vec![b' '; OBJECT_BYTES + 1].into(),
        };
        assert!(matches!(node_status(&large), Err(Refused::TooLarge { .. })));
    }

    #[test]
    fn events_are_about_what_nodes_tell_of() {
        let about = |object: serde_json::Value| {
            let written =
                json!({"metadata": {}, "involvedObject": object, "message": "\u{e9}".repeat(2000)});
            event(&EventRecord {
                event: written.to_string().into(),
            })
        };
        let (subject, told) = about(
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "a", "name": "b", "uid": "c"}),
        )
        .expect("a pod");
        assert_eq!(
            subject,
            Subject::Pod(PodRef::new("a".into(), "b".into(), "c".into()).expect("a pod"))
        );
        assert_eq!(
            told.message.map(|message| message.len()),
            Some(EVENT_MESSAGE_BYTES)
        );
        for wrong in [
            json!({}),
            json!([]),
            json!({"apiVersion": "v1", "kind": "Secret", "namespace": "a", "name": "b", "uid": "c"}),
            json!({"apiVersion": "apps/v1", "kind": "Pod", "namespace": "a", "name": "b", "uid": "c"}),
            json!({"apiVersion": "v1", "kind": "Node", "namespace": "a", "name": "b"}),
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "a/../b", "name": "b", "uid": "c"}),
            json!({"apiVersion": "v1", "kind": "Pod", "namespace": "a", "name": "b"}),
        ] {
            assert!(about(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
