//! From the words people type to REST paths, by way of the server's discovery documents.

use gantry_api::paths;
use serde_json::Value;

/// One resource the server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Mapping {
    /// `v1` or `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        match self.group.is_empty() {
            true => self.version.clone(),
            false => format!("{}/{}", self.group, self.version),
        }
    }

    /// `deployments.apps`, or `pods` for the core group.
    pub(crate) fn qualified(&self) -> String {
        qualify(&self.plural, &self.group)
    }

    /// `deployment.apps/web`, as results are reported.
    pub(crate) fn display(&self, name: &str) -> String {
        format!("{}/{name}", qualify(&self.singular, &self.group))
    }

    /// The REST path of the collection, or of one object.
    pub(crate) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut segments = match self.group.is_empty() {
            true => vec!["api", self.version.as_str()],
            false => vec!["apis", self.group.as_str(), self.version.as_str()],
        };
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            segments.extend(["namespaces", namespace]);
        }
        segments.push(&self.plural);
        segments.extend(name);
        paths::path(&segments)
    }
}

fn qualify(name: &str, group: &str) -> String {
    match group.is_empty() {
        true => name.to_owned(),
        false => format!("{name}.{group}"),
    }
}

/// A resource and, when given, the names of objects: from `deploy/web`, `deploy web other` or `deploy,rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) resource: String,
    pub(crate) names: Vec<String>,
}

impl Target {
    /// Parses the positional arguments of get, describe, delete and the like.
    pub(crate) fn parse(words: &[String]) -> anyhow::Result<Vec<Self>> {
        let Some(first) = words.first() else {
            anyhow::bail!("name a resource, e.g. 'pods', 'deploy web' or 'deploy/web'");
        };
        if first.contains('/') {
            return words
                .iter()
                .map(|word| match word.split_once('/') {
                    Some((resource, name)) if !resource.is_empty() && !name.is_empty() => {
                        Ok(Self {
                            resource: resource.to_owned(),
                            names: vec![name.to_owned()],
                        })
                    }
                    _ => anyhow::bail!(
                        "\"{word}\" is not of the form TYPE/NAME, as the first argument is"
                    ),
                })
                .collect();
        }
        let names = &words[1..];
        anyhow::ensure!(
            names.iter().all(|name| !name.is_empty()),
            "resource name may not be empty"
        );
        anyhow::ensure!(
            !names.iter().any(|name| name.contains('/')),
            "there is no need to name a type as a separate argument where arguments are of the form TYPE/NAME"
        );
        Ok(first
            .split(',')
            .filter(|resource| !resource.is_empty())
            .map(|resource| Self {
                resource: resource.to_owned(),
                names: names.to_vec(),
            })
            .collect())
    }
}

/// The mapping that a word names: plural, singular, short name, kind, each optionally with `.group`.
pub(crate) fn by_word<'a>(mappings: &'a [Mapping], word: &str) -> Option<&'a Mapping> {
    let lower = word.to_lowercase();
    let (name, group) = match lower.split_once('.') {
        Some((name, group)) => (name, Some(group)),
        None => (lower.as_str(), None),
    };
    mappings.iter().find(|mapping| {
        let named = mapping.plural == name
            || mapping.singular == name
            || mapping.kind.to_lowercase() == name
            || mapping.short_names.iter().any(|short| short == name);
        named
            && group.is_none_or(|group| {
                group == mapping.group || group == format!("{}.{}", mapping.version, mapping.group)
            })
    })
}

/// The resources of a document of aggregated discovery.
pub(super) fn parse(document: &Value) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    for group in list(&document["items"]) {
        // The first version of a group is the preferred one; it comes first here too.
        for version in list(&group["versions"]) {
            for resource in list(&version["resources"]) {
                let strings = |field: &str| -> Vec<String> {
                    list(&resource[field])
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect()
                };
                mappings.push(Mapping {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    short_names: strings("shortNames"),
                    categories: strings("categories"),
                    namespaced: resource["scope"] == "Namespaced",
                    verbs: strings("verbs"),
                });
            }
        }
    }
    mappings
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mappings() -> Vec<Mapping> {
        parse(&json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [
                {"resource": "pods", "singularResource": "pod", "shortNames": ["po"], "categories": ["all"],
                 "scope": "Namespaced", "verbs": ["get"], "responseKind": {"kind": "Pod"}},
            ]}]},
            {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [
                {"resource": "deployments", "singularResource": "deployment", "shortNames": ["deploy"],
                 "scope": "Namespaced", "verbs": ["get"], "responseKind": {"kind": "Deployment"}},
            ]}]},
        ]}))
    }

    #[test]
    fn every_way_to_name_a_resource_finds_it() {
        let mappings = mappings();
        for word in [
            "deploy",
            "deployment",
            "deployments",
            "Deployment",
            "deployments.apps",
            "deployment.v1.apps",
        ] {
            let mapping = by_word(&mappings, word).unwrap_or_else(|| panic!("{word} is known"));
            assert_eq!(mapping.qualified(), "deployments.apps");
        }
        assert_eq!(by_word(&mappings, "deploy.core"), None);
        assert_eq!(by_word(&mappings, "nope"), None);
    }

    #[test]
    fn paths_follow_group_and_scope() {
        let mappings = mappings();
        assert_eq!(
            mappings[0].path(Some("default"), Some("a")),
            "/api/v1/namespaces/default/pods/a"
        );
        assert_eq!(mappings[1].path(None, None), "/apis/apps/v1/deployments");
        assert_eq!(mappings[1].display("web"), "deployment.apps/web");
    }

    #[test]
    fn targets_come_as_lists_pairs_or_slashes() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(Target::parse(&words("deploy,rs")).expect("a list").len(), 2);
        let slashes = Target::parse(&words("deploy/a pod/b")).expect("slashes");
        assert_eq!(
            (slashes[1].resource.as_str(), slashes[1].names[0].as_str()),
            ("pod", "b")
        );
        let pair = Target::parse(&words("deploy a b")).expect("names");
        assert_eq!(pair[0].names, ["a", "b"]);
        assert!(Target::parse(&words("deploy/a b")).is_err());
        assert!(Target::parse(&words("deploy a pod/b")).is_err());
        assert!(Target::parse(&["deploy".to_owned(), String::new()]).is_err());
        assert!(Target::parse(&[]).is_err());
    }
}
