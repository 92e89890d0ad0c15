//! Which objects a list, watch or deletecollection is about.

use gantry_api::selector::{FieldSelector, LabelSelector};
use gantry_api::status::StatusError;
use gantry_store::Entry;

use crate::context::Context;

/// Label and field selectors, and a name in the path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
}

impl Selection {
    /// What the query selects; whether there are such fields is not known yet, see [`Self::of`].
    pub(crate) fn parse(context: &Context<'_>) -> Result<Self, StatusError> {
        let labels = LabelSelector::parse(context.query.get("labelSelector").unwrap_or_default())
            .map_err(|error| StatusError::bad_request(error.to_string()))?;
        let fields = FieldSelector::parse(context.query.get("fieldSelector").unwrap_or_default())
            .map_err(|error| StatusError::bad_request(error.to_string()))?;
        Ok(Self {
            labels,
            fields,
            name: context.path.name.clone(),
        })
    }

    /// The same, of the objects of the request's kind: its fields must be theirs.
    pub(crate) fn of(self, context: &Context<'_>) -> Result<Self, StatusError> {
        let kind = context.resource.kind.as_ref();
        for field in self.fields.fields() {
            if !kind.knows_field_label(field) {
                return Err(StatusError::bad_request(unknown_field(context, field)));
            }
        }
        // A name in the path and another one that is selected contradict each other.
        let selected = self.fields.exact("metadata.name");
        if self.name.is_some() && !self.fields.is_everything() && selected != self.name.as_deref() {
            return Err(StatusError::bad_request(
                "fieldSelector metadata.name doesn't match requested name",
            ));
        }
        Ok(Self {
            // Objects are indexed once, whichever versions they are served in.
            fields: self.fields.renamed(|label| kind.hub_field_label(label)),
            ..self
        })
    }

    /// Whether it is of one name alone.
    pub(crate) fn is_single(&self) -> bool {
        self.name.is_some() || self.fields.exact("metadata.name").is_some()
    }

    /// Whether every object of the table is.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_none()
    }

    /// Whether an object is one of them.
    pub(crate) fn matches(&self, namespace: &str, name: &str, entry: &Entry) -> bool {
        if self.name.as_deref().is_some_and(|wanted| wanted != name) {
            return false;
        }
        let field = |label: &str| match label {
            "metadata.name" => Some(name),
            "metadata.namespace" => Some(namespace),
            label => entry
                .index
                .fields
                .binary_search_by(|(key, _)| key.as_str().cmp(label))
                .ok()
                .map(|index| entry.index.fields[index].1.as_str()),
        };
        (self.labels.is_everything() || self.labels.matches_pairs(&entry.index.labels))
            && (self.fields.is_everything() || self.fields.matches(field))
    }
}

/// Kinds with fields of their own are told differently from the rest.
fn unknown_field(context: &Context<'_>, field: &str) -> String {
    match context.resource.kind.has_field_labels() {
        true => format!("field label not supported: {field}"),
        false => format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ),
    }
}
