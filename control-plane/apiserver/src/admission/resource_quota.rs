//! ResourceQuota: what objects count for is charged to the quotas of their namespace, in the transaction that writes them, so
//! that no quota is ever exceeded, through however many servers objects come.
//!
//! The transaction changes `status.used` of every quota that the object counts for, and is guarded by their revisions. Which
//! quotas there are, and what they are about, is guarded by a row of the namespace: it is written with each new quota and each
//! change of a quota's spec, so that no object slips past one that its server did not know yet. What is used less of is given
//! back by who counts, the controller: it writes at the revision at which it began, and begins anew when anything was charged
//! since. A quota that it has yet to count is written as it is for every object that it will be about, to the same end.

use std::sync::Arc;

use gantry_api::json::Members;
use gantry_api::kinds::resource_quota::PLURAL;
use gantry_api::quota::{Change, Charge, Counted, Item, charge, printed};
use gantry_api::status::StatusError;
use gantry_store::{Entry, Guard, Index, Key, Operation as Put, Store, Table, Transaction};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota as Quota, Service};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plugin::{Attributes, Operation, Plugin};
use crate::codec;
use crate::context::{Context, meta};
use crate::lines::{Lines, Place};
use crate::registry::Resource;
use crate::tables::table;

/// How many quotas a namespace may have: each of them is looked at with every object.
const MOST: usize = 100;

/// Charges quotas.
#[derive(Default)]
pub(super) struct ResourceQuota {
    lines: Lines,
}

/// The row that says when the quotas of a namespace, or what they are about, changed last.
fn rules(namespace: &str) -> Key {
    Key {
        table: Table("-/quotas".into()),
        namespace: "".into(),
        name: namespace.into(),
    }
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "Namespace") || may_charge(attributes) || may_rule(attributes)
    }

    fn line(&self, attributes: &Attributes<'_>) -> Option<Place> {
        let namespace = attributes
            .context
            .namespace()
            .filter(|_| may_charge(attributes))?;
        let quotas = attributes.context.api.store.snapshot(&table("", PLURAL));
        let any = quotas.range_namespace(namespace).next().is_some();
        any.then(|| self.lines.enter(namespace))
    }

    fn reserve(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        current: Option<&Value>,
        transaction: &mut Transaction,
    ) -> Result<bool, StatusError> {
        let Some(namespace) = attributes.context.namespace() else {
            return Ok(false);
        };
        if may_charge(attributes) {
            let written = Written {
                attributes,
                namespace,
                object,
                current,
            };
            written.charge(transaction)?;
        }
        if may_rule(attributes) && current.is_none_or(|current| current["spec"] != object["spec"]) {
            transaction.operations.push(Put::Put {
                key: rules(namespace),
                value: json!(meta(object, "name")).to_string().into(),
                index: Index::default(),
            });
        }
        Ok(false)
    }

    fn release(&self, attributes: &Attributes<'_>, object: &Value, transaction: &mut Transaction) {
        if attributes.is("", "Namespace") {
            let key = rules(meta(object, "name"));
            let operation = Put::Delete { key, last: None };
            transaction.operations.push(operation);
        }
    }
}

/// Whether a write may change what quotas are about.
fn may_rule(attributes: &Attributes<'_>) -> bool {
    attributes.operation != Operation::Delete && attributes.writes("", "ResourceQuota")
}

fn kind_of<'a>(attributes: &'a Attributes<'_>) -> Counted<'a> {
    let info = attributes.info();
    Counted {
        group: &info.group,
        plural: &info.plural,
    }
}

/// Whether a write may be of something that counts for more than before: a new object, or a change of what counts for what it
/// says.
fn may_charge(attributes: &Attributes<'_>) -> bool {
    if attributes.context.namespace().is_none() {
        return false;
    }
    let part = attributes.subresource();
    let kind = kind_of(attributes);
    match attributes.operation {
        Operation::Create => part.is_empty() && kind.is_countable(),
        Operation::Update if kind == Counted::PODS => ["", "resize"].contains(&part),
        Operation::Update if kind == Counted::SERVICES => part.is_empty(),
        Operation::Update if kind == Counted::CLAIMS => ["", "status"].contains(&part),
        Operation::Update | Operation::Delete => false,
    }
}

/// An object on its way into the store.
struct Written<'a> {
    attributes: &'a Attributes<'a>,
    namespace: &'a str,
    object: &'a Value,
    current: Option<&'a Value>,
}

/// An object in the type of its kind, as far as its kind counts for more than itself.
enum Typed {
    Pod(Box<Pod>),
    Service(Box<Service>),
    Claim(Box<PersistentVolumeClaim>),
    Other,
}

fn read<T: DeserializeOwned>(object: &Value) -> Result<Box<T>, StatusError> {
    let object = T::deserialize(object);
    let object = object.map_err(|error| {
        StatusError::internal(format!("reading what an object counts for: {error}"))
    });
    object.map(Box::new)
}

impl Typed {
    fn of(kind: Counted<'_>, object: &Value) -> Result<Self, StatusError> {
        Ok(match kind {
            kind if kind == Counted::PODS => Self::Pod(read(object)?),
            kind if kind == Counted::SERVICES => Self::Service(read(object)?),
            kind if kind == Counted::CLAIMS => Self::Claim(read(object)?),
            _ => Self::Other,
        })
    }

    fn item<'a>(&'a self, kind: Counted<'a>) -> Item<'a> {
        match self {
            Self::Pod(pod) => Item::Pod(pod),
            Self::Service(service) => Item::Service(service),
            Self::Claim(claim) => Item::Claim(claim),
            Self::Other => Item::Other(kind),
        }
    }
}

/// A quota, and how it is stored.
struct Stored {
    entry: Arc<Entry>,
    quota: Quota,
}

/// The quotas of a namespace, by name.
fn quotas(store: &Store, namespace: &str) -> Vec<Stored> {
    let all = store.snapshot(&table("", PLURAL));
    let own = all.range_namespace(namespace);
    // The store holds only what was written here.
    let own = own.filter_map(|(_, entry)| {
        let quota = serde_json::from_slice(&entry.value).ok()?;
        let entry = entry.clone();
        Some(Stored { entry, quota })
    });
    own.collect()
}

/// Whether a quota is, or will be, about objects of a kind.
fn is_about(quota: &Quota, kind: Counted<'_>) -> bool {
    let wanted = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let kept = quota
        .status
        .as_ref()
        .and_then(|status| status.hard.as_ref());
    let mut names = [wanted, kept]
        .into_iter()
        .flatten()
        .flat_map(|hard| hard.keys());
    names.any(|name| kind.has(name))
}

impl Written<'_> {
    fn refused(&self, why: &str) -> StatusError {
        StatusError::forbidden(self.attributes.info(), meta(self.object, "name"), why)
    }

    /// Adds to the transaction what the object counts for; refuses it where that is too much.
    fn charge(&self, transaction: &mut Transaction) -> Result<(), StatusError> {
        let context = self.attributes.context;
        let store = &context.api.store;
        // Looked at before the quotas: what changes in between is noticed.
        let key = rules(self.namespace);
        transaction.guards.push(match store.get(&key) {
            Some(entry) => Guard::ModifiedAt(key, entry.modify_revision),
            None => Guard::Absent(key),
        });
        let mut quotas = quotas(store, self.namespace);
        if self.attributes.creates("", "ResourceQuota") && quotas.len() >= MOST {
            let why = format!("a namespace has at most {MOST} of them, and this one has as many");
            return Err(self.refused(&why));
        }
        let kind = kind_of(self.attributes);
        quotas.retain(|stored| is_about(&stored.quota, kind));
        if quotas.is_empty() {
            return Ok(());
        }
        let new = Typed::of(kind, self.object)?;
        let old = self.current.map(|current| Typed::of(kind, current));
        let old = old.transpose()?;
        let change = Change {
            new: new.item(kind),
            old: old.as_ref().map(|old| old.item(kind)),
            now: context.api.clock.now(),
        };
        let known: Vec<&Quota> = quotas.iter().map(|stored| &stored.quota).collect();
        let charges = charge(&known, &change).map_err(|why| self.refused(&why))?;
        let resource = of_quotas(context)?;
        for (stored, charge) in quotas.iter().zip(charges) {
            self.write(resource, stored, charge, transaction)?;
        }
        Ok(())
    }

    /// Writes what is used of a quota, at the revision at which that was looked up.
    fn write(
        &self,
        resource: &Resource,
        stored: &Stored,
        charge: Charge,
        transaction: &mut Transaction,
    ) -> Result<(), StatusError> {
        let entry = &stored.entry;
        let (value, index) = match charge {
            Charge::Nothing => return Ok(()),
            Charge::Uncounted => (entry.value.clone(), entry.index.clone()),
            Charge::Used(used) => {
                let mut quota = codec::decode(resource, &entry.value)?;
                *quota.member(&["status", "used"]) = json!(printed(&used));
                let index = codec::index(resource, &quota);
                (codec::encode(resource, &quota)?, index)
            }
        };
        let name = stored.quota.metadata.name.as_deref().unwrap_or_default();
        let key = resource.key(Some(self.namespace), name);
        let guard = Guard::ModifiedAt(key.clone(), entry.modify_revision);
        transaction.guards.push(guard);
        transaction.operations.push(Put::Put { key, value, index });
        Ok(())
    }
}

fn of_quotas<'a>(context: &'a Context<'_>) -> Result<&'a Resource, StatusError> {
    let found = context.registry.get("", "v1", PLURAL);
    let found = found.ok_or_else(|| StatusError::internal("ResourceQuota is not served"));
    found.map(AsRef::as_ref)
}

#[cfg(test)]
mod tests;
