//! What an admission plugin is.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use gantry_store::{Key, Transaction};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;
use crate::lines::Place;
use crate::tables::table;

pub(crate) use crate::context::{Attributes, Operation};

/// One thing that the cluster adds to objects or refuses.
///
/// A plugin is asked in the order of the list ([`super::Chain`]), and only for writes that it [handles](Plugin::handles).
#[async_trait]
pub(crate) trait Plugin: Send + Sync {
    /// What it is called where Kubernetes has it too.
    fn name(&self) -> &'static str;

    /// Which writes it is asked about.
    fn handles(&self, attributes: &Attributes<'_>) -> bool;

    /// Completes or refuses an object, which has its defaults and is not validated yet.
    async fn admit(
        &self,
        _attributes: &Attributes<'_>,
        _draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        Ok(())
    }

    /// Refuses an object that is valid by itself, or warns of it.
    fn validate(
        &self,
        _attributes: &Attributes<'_>,
        _draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        Ok(Vec::new())
    }

    /// Refuses what is created below an object and is none itself.
    fn below(&self, _attributes: &Attributes<'_>) -> Result<(), StatusError> {
        Ok(())
    }

    /// Refuses a deletion.
    fn delete(&self, _attributes: &Attributes<'_>) -> Result<(), StatusError> {
        Ok(())
    }

    /// A line in which a write waits that will change, by [`Plugin::reserve`], what many others do. One plugin at most has a
    /// line for a write, so that nobody waits in two.
    fn line(&self, _attributes: &Attributes<'_>) -> Option<Place> {
        None
    }

    /// Gives a valid object the cluster-wide unique things it needs, guarded in its own transaction. It is asked again when
    /// the transaction did not hold. `object` is what will be stored, `current` what is. Returns whether it changed the
    /// object.
    fn reserve(
        &self,
        _attributes: &Attributes<'_>,
        _object: &mut Value,
        _current: Option<&Value>,
        _transaction: &mut Transaction,
    ) -> Result<bool, StatusError> {
        Ok(false)
    }

    /// Returns what [`Plugin::reserve`] gave, with the object's removal.
    fn release(
        &self,
        _attributes: &Attributes<'_>,
        _object: &Value,
        _transaction: &mut Transaction,
    ) {
    }
}

/// What refusals call an object, which may have no name yet.
pub(super) fn shown_name(metadata: &ObjectMeta) -> &str {
    let known = [&metadata.name, &metadata.generate_name];
    let mut known = known.into_iter().flatten().filter(|name| !name.is_empty());
    known.next().map_or("Unknown", String::as_str)
}

/// What is stored of another kind, as its type; the store holds only what was written here.
pub(super) fn stored<T: DeserializeOwned>(
    context: &Context<'_>,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Option<T> {
    let key = Key {
        table: table(group, plural),
        namespace: namespace.into(),
        name: name.into(),
    };
    let entry = context.api.store.get(&key)?;
    serde_json::from_slice(&entry.value).ok()
}
