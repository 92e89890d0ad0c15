//! What a resource of the API is called, and what it is besides its objects.

use std::borrow::Cow;

/// Names and scope of a resource, as discovery reports them. Owned, so that resources can come and go while the server runs;
/// those of built-in kinds borrow from their [`StaticInfo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: Cow<'static, str>,
    /// Version, e.g. `v1`.
    pub version: Cow<'static, str>,
    /// Kind, e.g. `Deployment`.
    pub kind: Cow<'static, str>,
    /// Plural resource name, e.g. `deployments`.
    pub plural: Cow<'static, str>,
    /// Singular name, e.g. `deployment`.
    pub singular: Cow<'static, str>,
    /// e.g. `deploy`.
    pub short_names: Vec<Cow<'static, str>>,
    /// e.g. `all`.
    pub categories: Vec<Cow<'static, str>>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether it has a `status` subresource.
    pub has_status: bool,
    /// Whether it has a `scale` subresource.
    pub has_scale: bool,
    /// Whether `metadata.generation` is kept (spec changes increment it).
    pub has_generation: bool,
    /// Whether PUT on a missing name creates it (`AllowCreateOnUpdate`).
    pub create_on_update: bool,
}

impl ResourceInfo {
    /// Group and kind, to be matched.
    pub fn group_kind(&self) -> (&str, &str) {
        (&self.group, &self.kind)
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match &*self.group {
            "" => self.version.to_string(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Go's name of the package of its internal types, as some refusals spell it: `core`, `rbac`.
    pub fn package(&self) -> &str {
        match &*self.group {
            "" => "core",
            group => group.split('.').next().unwrap_or_default(),
        }
    }
}

/// The [`ResourceInfo`] of a built-in kind, as a constant: the same fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticInfo {
    /// API group; empty for core.
    pub group: &'static str,
    /// Version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Deployment`.
    pub kind: &'static str,
    /// Plural resource name, e.g. `deployments`.
    pub plural: &'static str,
    /// Singular name, e.g. `deployment`.
    pub singular: &'static str,
    /// e.g. `deploy`.
    pub short_names: &'static [&'static str],
    /// e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether it has a `status` subresource.
    pub has_status: bool,
    /// Whether it has a `scale` subresource.
    pub has_scale: bool,
    /// Whether `metadata.generation` is kept (spec changes increment it).
    pub has_generation: bool,
    /// Whether PUT on a missing name creates it (`AllowCreateOnUpdate`).
    pub create_on_update: bool,
}

impl From<StaticInfo> for ResourceInfo {
    fn from(info: StaticInfo) -> Self {
        let words =
            |words: &'static [&'static str]| words.iter().copied().map(Cow::Borrowed).collect();
        Self {
            group: Cow::Borrowed(info.group),
            version: Cow::Borrowed(info.version),
            kind: Cow::Borrowed(info.kind),
            plural: Cow::Borrowed(info.plural),
            singular: Cow::Borrowed(info.singular),
            short_names: words(info.short_names),
            categories: words(info.categories),
            namespaced: info.namespaced,
            has_status: info.has_status,
            has_scale: info.has_scale,
            has_generation: info.has_generation,
            create_on_update: info.create_on_update,
        }
    }
}
