//! What rules allow, and which rules are covered by others: Kubernetes' evaluation, as pure functions.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::rbac::v1::PolicyRule;

const ALL: &str = "*";
/// Single permissions that rules are compared by. Lists multiply: a megabyte of rules can name billions.
const MAX_PERMISSIONS: usize = 20_000;

/// Texts that are compared for it at most: each permission may be looked for in every rule that somebody has.
const MAX_COMPARED: usize = 20_000_000;

/// A request for a resource, as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceRequest<'a> {
    /// e.g. `get`.
    pub verb: &'a str,
    /// Empty for core.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// e.g. `log`; empty for none.
    pub subresource: &'a str,
    /// Of the object; empty for a collection.
    pub name: &'a str,
}

fn items(list: Option<&Vec<String>>) -> &[String] {
    list.map(Vec::as_slice).unwrap_or_default()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == wanted)
}

fn has_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == ALL || one == wanted)
}

/// Whether a path is `pattern`, or begins with it up to the star at its end.
fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == path || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

/// Whether a rule allows a request for a resource.
pub fn allows(rule: &PolicyRule, request: &ResourceRequest<'_>) -> bool {
    let resource_matches = |one: &String| {
        if one == ALL {
            return true;
        }
        match request.subresource {
            "" => one == request.resource,
            subresource => one
                .strip_suffix(subresource)
                .and_then(|rest| rest.strip_suffix('/'))
                .is_some_and(|of| of == ALL || of == request.resource),
        }
    };
    let names = items(rule.resource_names.as_ref());
    has_or_all(&rule.verbs, request.verb)
        && has_or_all(items(rule.api_groups.as_ref()), request.group)
        && items(rule.resources.as_ref()).iter().any(resource_matches)
        && (names.is_empty() || has(names, request.name))
}

/// Whether a rule allows a verb on a path that is no resource's.
pub fn allows_path(rule: &PolicyRule, verb: &str, path: &str) -> bool {
    let urls = items(rule.non_resource_urls.as_ref());
    has_or_all(&rule.verbs, verb) && urls.iter().any(|pattern| path_matches(pattern, path))
}

/// One verb on one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Permission<'a> {
    Resource {
        group: &'a str,
        resource: &'a str,
        name: Option<&'a str>,
        verb: &'a str,
    },
    Path {
        path: &'a str,
        verb: &'a str,
    },
}

/// Rules that cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// In what is wanted.
    #[error(
        "the rules name more than {MAX_PERMISSIONS} combinations of verbs, groups, resources and names: use several roles"
    )]
    Permissions,
    /// In what is there to compare that with.
    #[error("too many rules are held to compare these with: use roles with less in them")]
    Rules,
}

/// How many texts a rule has, by which it is counted what it takes to look at it.
pub fn size(rule: &PolicyRule) -> usize {
    let length = |list: Option<&Vec<String>>| items(list).len();
    let lists = [
        rule.verbs.len(),
        length(rule.api_groups.as_ref()),
        length(rule.resources.as_ref()),
        length(rule.resource_names.as_ref()),
        length(rule.non_resource_urls.as_ref()),
    ];
    lists.into_iter().fold(1, usize::saturating_add)
}

/// How many permissions a rule names.
fn count(rule: &PolicyRule) -> usize {
    let length = |list: Option<&Vec<String>>| items(list).len();
    let verbs = rule.verbs.len();
    let names = length(rule.resource_names.as_ref()).max(1);
    let resources = [
        length(rule.api_groups.as_ref()),
        length(rule.resources.as_ref()),
        names,
    ];
    let resources = resources
        .into_iter()
        .fold(verbs, |product, factor| product.saturating_mul(factor));
    let paths = length(rule.non_resource_urls.as_ref()).saturating_mul(verbs);
    resources.saturating_add(paths)
}

/// Everything a rule names, one by one.
fn permissions(rule: &PolicyRule) -> Vec<Permission<'_>> {
    let mut found = Vec::new();
    let names = items(rule.resource_names.as_ref());
    for group in items(rule.api_groups.as_ref()) {
        for resource in items(rule.resources.as_ref()) {
            for verb in &rule.verbs {
                let permission = |name| Permission::Resource {
                    group,
                    resource,
                    name,
                    verb,
                };
                match names {
                    [] => found.push(permission(None)),
                    names => found.extend(names.iter().map(|name| permission(Some(name.as_str())))),
                }
            }
        }
    }
    for path in items(rule.non_resource_urls.as_ref()) {
        found.extend(
            rule.verbs
                .iter()
                .map(|verb| Permission::Path { path, verb }),
        );
    }
    found
}

/// Whether a rule gives a permission to whoever has the rule.
fn gives(rule: &PolicyRule, permission: &Permission<'_>) -> bool {
    let own_names = items(rule.resource_names.as_ref());
    match *permission {
        Permission::Path { path, verb } => {
            let urls = items(rule.non_resource_urls.as_ref());
            has_or_all(&rule.verbs, verb)
                && own_names.is_empty()
                && urls.iter().any(|pattern| path_matches(pattern, path))
        }
        Permission::Resource {
            group,
            resource,
            name,
            verb,
        } => {
            let covers = |one: &String| {
                one == ALL
                    || one == resource
                    || resource
                        .split_once('/')
                        .is_some_and(|(_, subresource)| one.strip_prefix("*/") == Some(subresource))
            };
            has_or_all(&rule.verbs, verb)
                && has_or_all(items(rule.api_groups.as_ref()), group)
                && items(rule.resources.as_ref()).iter().any(covers)
                && (own_names.is_empty() || name.is_some_and(|name| has(own_names, name)))
        }
    }
}

/// What of `wanted` no rule of `owned` gives, a line for each thing and sorted, as Kubernetes tells who must not grant it.
/// Empty when all is owned.
pub fn missing(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Result<Vec<String>, TooMany> {
    let total = wanted
        .iter()
        .fold(0, |sum: usize, rule| sum.saturating_add(count(rule)));
    if total > MAX_PERMISSIONS {
        return Err(TooMany::Permissions);
    }
    let sizes: Vec<usize> = owned.iter().map(size).collect();
    let mut left = MAX_COMPARED;
    let mut is_owned = |permission: &Permission<'_>| -> Result<bool, TooMany> {
        for (rule, size) in owned.iter().zip(&sizes) {
            left = left.checked_sub(*size).ok_or(TooMany::Rules)?;
            if gives(rule, permission) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    // Verbs on one thing are told together.
    let mut things: BTreeMap<(&str, &str, Option<&str>), Vec<&str>> = BTreeMap::new();
    let (mut lines, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for permission in wanted.iter().flat_map(permissions) {
        if is_owned(&permission)? {
            continue;
        }
        match permission {
            Permission::Resource {
                group,
                resource,
                name,
                verb,
            } => {
                let verbs = things.entry((group, resource, name)).or_default();
                if seen.insert(permission) {
                    verbs.push(verb);
                }
            }
            Permission::Path { path, verb } => {
                lines.insert(format!("{{NonResourceURLs:[{path:?}], Verbs:[{verb:?}]}}"));
            }
        }
    }
    lines.extend(things.into_iter().map(|((group, resource, name), verbs)| {
        let verbs: Vec<String> = verbs.iter().map(|verb| format!("{verb:?}")).collect();
        let names = name.map(|name| format!(", ResourceNames:[{name:?}]"));
        format!(
            "{{APIGroups:[{group:?}], Resources:[{resource:?}]{}, Verbs:[{}]}}",
            names.unwrap_or_default(),
            verbs.join(" ")
        )
    }));
    Ok(lines.into_iter().collect())
}

/// What of `wanted` no rule of `present` gives, a rule for each permission: what reconciling adds.
pub fn not_covered(present: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    wanted
        .iter()
        .flat_map(permissions)
        .filter(|permission| !present.iter().any(|rule| gives(rule, permission)))
        .map(|permission| alone(&permission))
        .collect()
}

/// The rule that gives a permission and nothing else.
fn alone(permission: &Permission<'_>) -> PolicyRule {
    let one = |text: &str| Some(vec![text.to_owned()]);
    match *permission {
        Permission::Resource {
            group,
            resource,
            name,
            verb,
        } => PolicyRule {
            api_groups: one(group),
            resources: one(resource),
            resource_names: name.and_then(one),
            verbs: vec![verb.to_owned()],
            ..PolicyRule::default()
        },
        Permission::Path { path, verb } => PolicyRule {
            non_resource_urls: one(path),
            verbs: vec![verb.to_owned()],
            ..PolicyRule::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rule(value: Value) -> PolicyRule {
        serde_json::from_value(value).unwrap()
    }

    fn asks<'a>(verb: &'a str, resource: &'a str, name: &'a str) -> ResourceRequest<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        ResourceRequest {
            verb,
            group: "",
            resource,
            subresource,
            name,
        }
    }

    #[test]
    fn a_rule_allows_what_all_of_its_lists_name() {
        let one = rule(json!({
            "apiGroups": ["", "apps"], "resources": ["pods", "pods/log", "*/scale"],
            "verbs": ["get", "list"],
        }));
        for (verb, resource, allowed) in [
            ("get", "pods", true),
            ("list", "pods", true),
            ("create", "pods", false),
            ("get", "pods/log", true),
            ("get", "pods/exec", false),
            ("get", "services", false),
            ("get", "anything/scale", true),
            ("get", "anything/upscale", false),
            ("get", "log", false),
        ] {
            assert_eq!(
                allows(&one, &asks(verb, resource, "")),
                allowed,
                "{verb} {resource}"
            );
        }
        let other = ResourceRequest {
            group: "batch",
            ..asks("get", "pods", "")
        };
        assert!(!allows(&one, &other));
        let all = rule(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}));
        assert!(allows(&all, &asks("escalate", "pods/log", "x")));
        assert!(!allows_path(&all, "get", "/version"));
    }

    #[test]
    fn names_restrict_what_has_one() {
        let named = rule(json!({
            "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"],
            "verbs": ["*"],
        }));
        assert!(allows(&named, &asks("get", "configmaps", "a")));
        assert!(allows(&named, &asks("list", "configmaps", "b")));
        assert!(!allows(&named, &asks("get", "configmaps", "c")));
        assert!(!allows(&named, &asks("create", "configmaps", "")));
    }

    #[test]
    fn paths_match_whole_or_up_to_the_star() {
        let paths = rule(json!({"nonResourceURLs": ["/healthz", "/api/*"], "verbs": ["get"]}));
        for (path, allowed) in [
            ("/healthz", true),
            ("/healthz/etcd", false),
            ("/api", false),
            ("/api/", true),
            ("/api/v1", true),
        ] {
            assert_eq!(allows_path(&paths, "get", path), allowed, "{path}");
        }
        assert!(!allows_path(&paths, "post", "/healthz"));
        let all = rule(json!({"nonResourceURLs": ["*"], "verbs": ["*"]}));
        assert!(allows_path(&all, "post", "/metrics"));
    }

    #[test]
    fn what_is_missing_is_told_as_kubernetes_tells_it() {
        let wanted = [
            rule(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]})),
            rule(json!({"nonResourceURLs": ["*"], "verbs": ["*"]})),
        ];
        assert_eq!(
            missing(&[], &wanted),
            Ok(vec![
                r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#.to_owned(),
                r#"{NonResourceURLs:["*"], Verbs:["*"]}"#.to_owned(),
            ])
        );
        assert_eq!(missing(&wanted, &wanted), Ok(Vec::new()));
        let owned = [rule(json!({
            "apiGroups": [""], "resources": ["pods", "*/log"], "verbs": ["get"],
        }))];
        let wanted = [
            rule(json!({
                "apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"],
            })),
            rule(json!({
                "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"],
                "verbs": ["delete", "get"],
            })),
        ];
        assert_eq!(
            missing(&owned, &wanted),
            Ok(vec![
                r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["a"], Verbs:["delete"]}"#
                    .to_owned(),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list"]}"#.to_owned(),
                r#"{APIGroups:[""], Resources:["pods/log"], Verbs:["list"]}"#.to_owned(),
            ])
        );
    }

    #[test]
    fn a_rule_with_names_does_not_cover_one_without() {
        let named = [rule(json!({
            "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"], "verbs": ["get"],
        }))];
        let plain = [rule(json!({
            "apiGroups": [""], "resources": ["pods"], "verbs": ["get"],
        }))];
        assert_eq!(missing(&named, &plain).map(|lines| lines.len()), Ok(1));
        assert_eq!(missing(&plain, &named), Ok(Vec::new()));
        assert_eq!(not_covered(&named, &plain), plain);
        assert!(not_covered(&plain, &named).is_empty());
    }

    #[test]
    fn lists_that_multiply_are_not_multiplied() {
        let many: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let huge = [rule(json!({
            "apiGroups": many, "resources": many, "resourceNames": many, "verbs": many,
        }))];
        assert_eq!(missing(&[], &huge), Err(TooMany::Permissions));
        let named = |verb: &str| {
            rule(json!({
                "apiGroups": [""], "resources": ["pods"], "resourceNames": many, "verbs": [verb],
            }))
        };
        assert_eq!(size(&named("get")), 1003 + 1);
        let owned = vec![named("get"); 1000];
        assert_eq!(missing(&owned, &[named("get")]), Ok(Vec::new()));
        assert_eq!(missing(&owned, &[named("list")]), Err(TooMany::Rules));
    }
}
