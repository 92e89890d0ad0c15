//! A subresource, as far as it can be told of without what answers it.

use std::borrow::Cow;

use gantry_api::kind::ResourceKind;
use gantry_api::schema::TypeSchema;

use crate::request::Query;

/// Finds a type.
pub(crate) type BodyType = fn() -> &'static dyn ResourceKind;

/// A subresource of one resource.
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    /// Group and version of its type, where they are not its resource's; else empty.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: Cow<'static, str>,
    /// What clients may do with it, sorted.
    pub(crate) verbs: Vec<&'static str>,
    /// The type of its bodies, where that is not its resource's.
    pub(crate) body: Option<BodyType>,
    /// Whether a request for it lasts as its client likes, by its query.
    pub(crate) lasts: fn(&Query) -> bool,
    /// Whether it has paths of its own behind its name.
    pub(crate) any_path: bool,
    /// Whether it is text, whatever else a client accepts.
    pub(crate) is_text: bool,
    /// Whether the bodies of its requests are passed on as they arrive.
    pub(crate) passes: bool,
}

impl Subresource {
    /// What clients may do with it, sorted.
    pub(crate) fn verbs(&self) -> impl Iterator<Item = &'static str> {
        self.verbs.iter().copied()
    }

    /// The type of its bodies, where that is not its resource's.
    pub(crate) fn schema(&self) -> Option<&'static TypeSchema> {
        self.body.map(|body| body().schema())
    }
}
