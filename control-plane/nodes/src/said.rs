//! What a node says, as types: read once, when it arrives, within bounds of size and depth. Whatever is not of this form is
//! refused with what is wrong about it, and nothing of it is used.

use bytes::Bytes;
use gantry_base::names::{is_dns1123_label, is_dns1123_subdomain};
use gantry_rpc::node::{EventRecord, Hello, NodeStatus, PodStatus, PodTerminated, Wake};
use gantry_usage::ServiceName;
use k8s_openapi::api::core::v1 as core;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

pub(crate) mod scraped;
pub(crate) mod usage;

/// The largest PodStatus. Of 200 containers an agent says so much, or of 25 that have each ended twice with the longest message,
/// 4 KiB. Kubernetes' agents cut the messages of a pod to 12 KiB together.
const POD_BYTES: usize = 256 << 10;
/// The most conditions of a pod, its node's and others': no pod has a tenth of them.
const CONDITIONS: usize = 100;
/// The most containers in one list of a PodStatus: so many just fit.
const CONTAINERS: usize = 1024;
/// The most addresses in one list of a PodStatus: a node has no more.
const ADDRESSES: usize = 256;
/// The largest Node or NodeStatus. Fifty images with all their names and a hundred labels take some 50 KiB; each status is
/// a change that all servers and nodes are told of.
const NODE_BYTES: usize = 256 << 10;
/// The most objects and lists in one of them. Written in three bytes each, they take almost a kilobyte in memory; a pod of
/// 200 containers with all that there is to say has half as many.
const COLLECTIONS: usize = 8192;
/// The most statuses in one message. On a new link an agent says those of all its pods at once, and of those that have ended
/// and are still there; so many would fill the largest message.
const STATUSES: usize = 16_384;
const POD_STATUS: &str = "the pod's status";
/// The largest Event.
const EVENT_BYTES: usize = 64 << 10;
/// Of an Event's texts more is cut off; of the message as in Kubernetes, of the reason as in its events.k8s.io.
const EVENT_MESSAGE_BYTES: usize = 1024;
const EVENT_REASON_BYTES: usize = 128;
/// `spec.initContainers{NAME}` has less than a hundred.
const EVENT_FIELD_BYTES: usize = 256;
/// Revisions are numbers.
const EVENT_REVISION_BYTES: usize = 64;
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
    let unreadable = |error: serde_json::Error| Refused::Unreadable {
        what,
        why: error.to_string(),
    };
    // The decoder's own bound of depth is 128.
    count_collections(json).map_err(unreadable)?;
    serde_json::from_slice(json).map_err(unreadable)
}

/// Refuses JSON of more objects and lists than [`COLLECTIONS`], before anything is made of it.
fn count_collections(json: &[u8]) -> Result<(), serde_json::Error> {
    let mut left = COLLECTIONS;
    let mut decoder = serde_json::Deserializer::from_slice(json);
    Counted { left: &mut left }.deserialize(&mut decoder)?;
    decoder.end()
}

/// A value whose objects and lists are counted.
struct Counted<'a> {
    left: &'a mut usize,
}

impl Counted<'_> {
    fn begin<E: serde::de::Error>(&mut self) -> Result<(), E> {
        *self.left = self.left.checked_sub(1).ok_or_else(|| {
            E::custom(format!(
                "Too many: {COLLECTIONS} objects and lists are allowed"
            ))
        })?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.begin()?;
        while items
            .next_element_seed(Counted {
                left: &mut *self.left,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.begin()?;
        while fields.next_key::<IgnoredAny>()?.is_some() {
            fields.next_value_seed(Counted {
                left: &mut *self.left,
            })?;
        }
        Ok(())
    }
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

impl std::borrow::Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
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

/// Which pod a status is of, and the status. It is read when it is written: until then it is no larger than it was sent.
pub(crate) fn pod_status(said: &PodStatus) -> Result<(PodRef, &Bytes), Refused> {
    let pod = PodRef::new(said.namespace.clone(), said.name.clone(), said.uid.clone())?;
    match said.status.len() {
        0..=POD_BYTES => Ok((pod, &said.status)),
        bytes => Err(Refused::TooLarge {
            what: POD_STATUS,
            bytes,
            limit: POD_BYTES,
        }),
    }
}

/// What a pod's status is by its node's word.
pub(crate) fn read_pod_status(said: &[u8]) -> Result<core::PodStatus, Refused> {
    let status: core::PodStatus = read(POD_STATUS, said, POD_BYTES)?;
    check_conditions(status.conditions.as_ref().map_or(0, Vec::len))?;
    for list in [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ] {
        let count = list.as_ref().map_or(0, Vec::len);
        check_count("containers", count, CONTAINERS, POD_STATUS)?;
    }
    for count in [
        status.pod_ips.as_ref().map_or(0, Vec::len),
        status.host_ips.as_ref().map_or(0, Vec::len),
    ] {
        check_count("addresses", count, ADDRESSES, POD_STATUS)?;
    }
    Ok(status)
}

/// Refuses more conditions than a pod may have, its node's and others' together.
pub(crate) fn check_conditions(count: usize) -> Result<(), Refused> {
    check_count("conditions", count, CONDITIONS, POD_STATUS)
}

fn check_count(of: &str, count: usize, limit: usize, what: &str) -> Result<(), Refused> {
    match count > limit {
        true => Err(Refused::NotItsOwn(format!(
            "{what} has {count} {of}, of which {limit} are allowed"
        ))),
        false => Ok(()),
    }
}

/// Refuses more statuses in one message than an agent has pods, those included that have ended.
pub(crate) fn check_statuses(count: usize) -> Result<(), Refused> {
    match count {
        0..=STATUSES => Ok(()),
        count => Err(Refused::NotItsOwn(format!(
            "the statuses of {count} pods in one message, of which {STATUSES} are allowed"
        ))),
    }
}

pub(crate) fn pod_terminated(said: PodTerminated) -> Result<PodRef, Refused> {
    PodRef::new(said.namespace, said.name, said.uid)
}

/// Which Service a node speaks of. None of its parts can hold what would change the path of a request.
pub(crate) fn service(namespace: String, name: String) -> Result<ServiceName, Refused> {
    Ok(ServiceName {
        namespace: checked("the Service's namespace", namespace, is_dns1123_label)?,
        name: checked("the Service's name", name, is_dns1123_label)?,
    })
}

/// The Service that a node says is wanted.
pub(crate) fn wake(said: Wake) -> Result<ServiceName, Refused> {
    service(said.namespace, said.service)
}

/// The Node that an agent registers.
pub(crate) fn node(said: &Hello) -> Result<core::Node, Refused> {
    read("the Node", &said.node, NODE_BYTES)
}

pub(crate) fn node_status(said: &NodeStatus) -> Result<core::NodeStatus, Refused> {
    read("the node's status", &said.status, NODE_BYTES)
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
    let object = &mut event.involved_object;
    for (text, bytes) in [
        (&mut event.message, EVENT_MESSAGE_BYTES),
        (&mut event.reason, EVENT_REASON_BYTES),
        (&mut object.field_path, EVENT_FIELD_BYTES),
        (&mut object.resource_version, EVENT_REVISION_BYTES),
        // Those of nodes are not compared with anything.
        (&mut object.uid, UID_BYTES),
    ] {
        cut(text, bytes);
    }
    Ok((subject, event))
}

/// Cuts a text off after so many bytes, or the letter before.
fn cut(text: &mut Option<String>, bytes: usize) {
    if let Some(text) = text {
        let mut end = text.len().min(bytes);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
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
            status: vec![b' '; NODE_BYTES + 1].into(),
        };
        assert!(matches!(node_status(&large), Err(Refused::TooLarge { .. })));
    }

    #[test]
    fn no_text_of_an_event_is_long() {
        let long = "\u{e9}".repeat(2000);
        let object = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": long, "fieldPath": long,
            "resourceVersion": long});
        let written =
            json!({"metadata": {}, "involvedObject": object, "reason": long, "message": long});
        let (_, told) = event(&EventRecord {
            event: written.to_string().into(),
        })
        .expect("its own");
        let written =
            json!({"reason": told.reason, "message": told.message, "object": told.involved_object});
        assert!(written.to_string().len() < 2048, "{written}");
    }

    #[test]
    fn what_would_be_large_in_memory_is_refused() {
        let with = |count: usize| format!("{{\"x\":[{}{{}}]}}", "{},".repeat(count));
        let read = |count: usize| read_pod_status(with(count).as_bytes());
        assert!(read(COLLECTIONS - 3).is_ok());
        assert!(matches!(
            read(COLLECTIONS - 2),
            Err(Refused::Unreadable { .. })
        ));
        // What no field takes is counted too: it is read all the same.
        let unknown = format!("{{\"x\":[{}[]]}}", "[],".repeat(COLLECTIONS));
        read_pod_status(unknown.as_bytes()).expect_err("too many");
        assert!(check_statuses(STATUSES).is_ok() && check_statuses(STATUSES + 1).is_err());
    }

    #[test]
    fn no_list_of_a_pods_status_is_long() {
        let read = |field: &str, count: usize| {
            let item = match field {
                "podIPs" | "hostIPs" => json!({"ip": "10.244.0.1"}),
                "conditions" => json!({"type": "a", "status": "True"}),
                _ => json!({}),
            };
            read_pod_status(json!({ field: vec![item; count] }).to_string().as_bytes())
        };
        for (field, limit) in [
            ("conditions", CONDITIONS),
            ("initContainerStatuses", CONTAINERS),
            ("containerStatuses", CONTAINERS),
            ("ephemeralContainerStatuses", CONTAINERS),
            ("podIPs", ADDRESSES),
            ("hostIPs", ADDRESSES),
        ] {
            read(field, limit).expect(field);
            let refused = read(field, limit + 1).expect_err(field);
            assert!(matches!(refused, Refused::NotItsOwn(_)), "{refused}");
        }
    }

    #[test]
    fn a_large_pod_can_be_told_of() {
        let ended = json!({"terminated": {"containerID": "gantry://0-c-1", "exitCode": 1, "reason": "Error",
            "message": "m".repeat(4096), "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z"}});
        let container = json!({"name": "c".repeat(63), "image": "i".repeat(200), "imageID": "i".repeat(300), "ready": false,
            "restartCount": 2, "containerID": "gantry://0-c-2", "state": ended, "lastState": ended});
        let status = json!({ "containerStatuses": vec![container; 25] }).to_string();
        let said = PodStatus {
            namespace: "default".to_owned(),
            name: "a".to_owned(),
            uid: "1".to_owned(),
            status: status.into(),
        };
        let (_, status) = pod_status(&said).expect("it fits");
        read_pod_status(status).expect("it is read");
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
