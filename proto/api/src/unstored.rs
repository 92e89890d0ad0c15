//! [`Unstored`]: the type of a resource that is answered and never stored, such as a review.

use std::marker::PhantomData;

use schemars::JsonSchema;
use serde_json::{Map, Value};

use crate::kind::{Column, Draft, ResourceInfo, ResourceKind, StaticInfo, WriteScope};
use crate::schema::TypeSchema;
use crate::status::StatusError;

/// Names and schema of such a type. There are no objects: nothing of it can be created or changed.
#[derive(Debug)]
pub struct Unstored<T> {
    object: PhantomData<fn() -> T>,
    info: ResourceInfo,
}

impl<T: JsonSchema + 'static> Unstored<T> {
    /// Boxed for a registry.
    pub fn boxed(info: StaticInfo) -> Box<dyn ResourceKind> {
        Box::new(Self {
            object: PhantomData,
            info: info.into(),
        })
    }
}

impl<T: JsonSchema + 'static> ResourceKind for Unstored<T> {
    fn info(&self) -> &ResourceInfo {
        &self.info
    }

    fn schema(&self) -> &'static TypeSchema {
        TypeSchema::of::<T>()
    }

    fn draft(&self, _object: Value) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn draft_update(
        &self,
        _new: Value,
        _old: &Value,
        _scope: WriteScope,
    ) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn selectable_fields(&self, _object: &Value) -> Vec<(String, String)> {
        Vec::new()
    }

    fn knows_field_label(&self, _label: &str) -> bool {
        false
    }

    fn openapi(&self) -> (String, Map<String, Value>) {
        crate::schema::published::definitions::<T>()
    }

    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    fn has_field_labels(&self) -> bool {
        false
    }

    fn table(&self) -> (&str, &str) {
        (&self.info.group, &self.info.plural)
    }

    fn convert_to_hub(&self, object: Value) -> Result<Value, StatusError> {
        Ok(object)
    }

    fn convert_from_hub(&self, object: Value) -> Result<Value, StatusError> {
        Ok(object)
    }

    fn hub_field_label<'a>(&self, label: &'a str) -> &'a str {
        label
    }

    fn columns(&self) -> &[Column] {
        &[]
    }

    fn row(&self, _object: &Value, _now: i64) -> Vec<Value> {
        Vec::new()
    }
}
