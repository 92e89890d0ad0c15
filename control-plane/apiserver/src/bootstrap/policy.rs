//! The roles and bindings of every cluster, read from their table ([`TABLE`] says its form).

use std::sync::LazyLock;

use gantry_api::kinds::rbac::{
    CLUSTER_ROLE, GROUP, ROLE, SERVICE_ACCOUNT, USER, USERS_GROUP, aggregation,
};
use k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef,
    Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

const TABLE: &str = include_str!("policy.txt");
/// What the metrics server brings to a cluster that has it, and the same for metrics of objects and from outside.
const TABLE_OF_METRICS: &str = "
role system:aggregated-metrics-reader to=view to=edit to=admin
metrics.k8s.io nodes,pods read
role system:aggregated-custom-metrics-reader to=view to=edit to=admin
custom.metrics.k8s.io * read
role system:aggregated-external-metrics-reader to=view to=edit to=admin
external.metrics.k8s.io * read
";
/// Gathered roles say with this label by whom.
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";
const BOOTSTRAPPING: (&str, &str) = ("kubernetes.io/bootstrapping", "rbac-defaults");
/// Whoever sets it to `false` keeps a role or binding as they have made it.
pub(super) const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const CONTROLLER: &str = "system:controller:";
const ACCOUNTS: &str = "kube-system";

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// What every cluster has.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(super) cluster_roles: Vec<ClusterRole>,
    pub(super) roles: Vec<Role>,
    pub(super) cluster_bindings: Vec<ClusterRoleBinding>,
    pub(super) bindings: Vec<RoleBinding>,
}

static POLICY: LazyLock<Policy> =
    LazyLock::new(|| Policy::read(TABLE).expect("a test reads the table"));

static POLICY_OF_METRICS: LazyLock<Policy> =
    LazyLock::new(|| Policy::read(TABLE_OF_METRICS).expect("a test reads the table"));

/// See [`Policy`].
pub(crate) fn policy() -> &'static Policy {
    &POLICY
}

/// What a cluster has besides, where it can be read what nodes and pods use.
pub(super) fn policy_of_metrics() -> &'static Policy {
    &POLICY_OF_METRICS
}

/// What a node may do that is not particular to it.
pub(crate) fn node_rules() -> &'static [PolicyRule] {
    let name = Some("system:node".to_owned());
    let mut roles = POLICY.cluster_roles.iter();
    let role = roles.find(|role| role.metadata.name == name);
    role.and_then(|role| role.rules.as_deref())
        .unwrap_or_default()
}

fn metadata(name: &str, namespace: Option<&str>) -> ObjectMeta {
    let (label, value) = BOOTSTRAPPING;
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some([(label.to_owned(), value.to_owned())].into()),
        annotations: Some([(AUTO_UPDATE.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    }
}

fn sorted(words: &str) -> Vec<String> {
    let mut words: Vec<String> = words.split(',').map(str::to_owned).collect();
    words.sort();
    words
}

fn verbs(words: &str) -> Vec<String> {
    let mut verbs = Vec::new();
    for word in words.split(',') {
        match word {
            "read" => verbs.extend(READ),
            "write" => verbs.extend(WRITE),
            "all" => {
                verbs.extend(READ);
                verbs.extend(WRITE);
            }
            word => verbs.push(word),
        }
    }
    verbs.sort_unstable();
    verbs.into_iter().map(str::to_owned).collect()
}

fn groups(words: &str) -> Vec<String> {
    let groups = words.split(',');
    let groups = groups.map(|word| if word == "core" { "" } else { word });
    let mut groups: Vec<String> = groups.map(str::to_owned).collect();
    groups.sort();
    groups
}

/// A rule as its line says it.
fn rule(words: &[&str]) -> Option<PolicyRule> {
    match words {
        ["events"] => rule(&["core,events.k8s.io", "events", "create,patch,update"]),
        ["paths", paths, allowed] => Some(PolicyRule {
            non_resource_urls: Some(sorted(paths)),
            verbs: verbs(allowed),
            ..PolicyRule::default()
        }),
        [words, resources, allowed, names @ ..] if names.len() <= 1 => Some(PolicyRule {
            api_groups: Some(groups(words)),
            resources: Some(sorted(resources)),
            resource_names: names.first().map(|names| sorted(names)),
            verbs: verbs(allowed),
            ..PolicyRule::default()
        }),
        _ => None,
    }
}

fn subject(word: &str) -> Option<Subject> {
    let (kind, name) = word.split_once(':')?;
    let of_group = |kind: &str| Subject {
        api_group: Some(GROUP.to_owned()),
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: None,
    };
    match kind {
        "user" => Some(of_group(USER)),
        "group" => Some(of_group(USERS_GROUP)),
        "account" => {
            let (namespace, name) = name.split_once('/')?;
            Some(account(namespace, name))
        }
        _ => None,
    }
}

fn account(namespace: &str, name: &str) -> Subject {
    Subject {
        api_group: None,
        kind: SERVICE_ACCOUNT.to_owned(),
        name: name.to_owned(),
        namespace: Some(namespace.to_owned()),
    }
}

fn reference(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: Some(GROUP.to_owned()),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

/// Where the rules go that come next.
enum Block {
    Cluster,
    Namespace,
}

impl Policy {
    /// Reads the table; a line that is none of its forms is returned.
    fn read(table: &str) -> Result<Self, String> {
        let mut policy = Self::default();
        let mut block = None;
        for line in table.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            policy
                .read_line(line, &mut block)
                .ok_or_else(|| line.to_owned())?;
        }
        for name in ["view", "edit", "admin"] {
            policy.gather(name);
        }
        Ok(policy)
    }

    fn read_line(&mut self, line: &str, block: &mut Option<Block>) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["role", name, tags @ ..] => {
                *block = Some(Block::Cluster);
                self.cluster_roles.push(cluster_role(name, tags)?);
            }
            ["controller", name] => {
                *block = Some(Block::Cluster);
                let role = format!("{CONTROLLER}{name}");
                self.cluster_roles.push(cluster_role(&role, &[])?);
                self.cluster_bindings.push(ClusterRoleBinding {
                    metadata: metadata(&role, None),
                    role_ref: reference(CLUSTER_ROLE, &role),
                    subjects: Some(vec![account(ACCOUNTS, name)]),
                });
            }
            [word, name] if word.starts_with("role@") => {
                *block = Some(Block::Namespace);
                self.roles.push(Role {
                    metadata: metadata(name, word.strip_prefix("role@")),
                    rules: Some(Vec::new()),
                });
            }
            [word, name, role, subjects @ ..] if *word == "bind" || word.starts_with("bind@") => {
                let role = if *role == "-" { name } else { role };
                let subjects = subjects.iter().map(|word| subject(word));
                let subjects = subjects.collect::<Option<Vec<_>>>()?;
                self.bind(word.strip_prefix("bind@"), name, role, subjects);
            }
            words => {
                let rules = match block.as_ref()? {
                    Block::Cluster => &mut self.cluster_roles.last_mut()?.rules,
                    Block::Namespace => &mut self.roles.last_mut()?.rules,
                };
                rules.get_or_insert_default().push(rule(words)?);
            }
        }
        Some(())
    }

    fn bind(&mut self, namespace: Option<&str>, name: &str, role: &str, subjects: Vec<Subject>) {
        let subjects = (!subjects.is_empty()).then_some(subjects);
        let metadata = metadata(name, namespace);
        match namespace {
            Some(_) => self.bindings.push(RoleBinding {
                metadata,
                role_ref: reference(ROLE, role),
                subjects,
            }),
            None => self.cluster_bindings.push(ClusterRoleBinding {
                metadata,
                role_ref: reference(CLUSTER_ROLE, role),
                subjects,
            }),
        }
    }

    /// Fills a role that gathers its rules, so that a new cluster has them at once.
    fn gather(&mut self, name: &str) {
        let named = |role: &ClusterRole| role.metadata.name.as_deref() == Some(name);
        let Some(position) = self.cluster_roles.iter().position(named) else {
            return;
        };
        let rule = self
            .cluster_roles
            .get(position)
            .and_then(|role| role.aggregation_rule.clone());
        let Some(rule) = rule else {
            return;
        };
        let gathered = aggregation::gather(name, &rule, self.cluster_roles.iter());
        if let Some(role) = self.cluster_roles.get_mut(position) {
            role.rules = Some(gathered);
        }
    }
}

fn cluster_role(name: &str, tags: &[&str]) -> Option<ClusterRole> {
    let mut role = ClusterRole {
        metadata: metadata(name, None),
        ..ClusterRole::default()
    };
    for tag in tags {
        let (key, word) = tag.split_once('=')?;
        let label = (format!("{AGGREGATE}{word}"), "true".to_owned());
        match key {
            "to" => {
                let labels = role.metadata.labels.get_or_insert_default();
                labels.extend([label]);
            }
            "gathers" => {
                let selector = LabelSelector {
                    match_labels: Some([label].into()),
                    ..LabelSelector::default()
                };
                role.aggregation_rule = Some(AggregationRule {
                    cluster_role_selectors: Some(vec![selector]),
                });
            }
            _ => return None,
        }
    }
    Some(role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_to_its_end() {
        let policy = Policy::read(TABLE).expect("every line has a form");
        assert!(
            policy.cluster_roles.len() > 65,
            "{}",
            policy.cluster_roles.len()
        );
        assert_eq!(policy.roles.len(), 7);
        assert_eq!(policy.bindings.len(), 7);
        let names = policy.cluster_roles.iter().map(|role| &role.metadata.name);
        let names: std::collections::BTreeSet<_> = names.collect();
        assert_eq!(
            names.len(),
            policy.cluster_roles.len(),
            "a role is there twice"
        );
        for binding in &policy.cluster_bindings {
            let role = Some(binding.role_ref.name.clone());
            assert!(names.contains(&role), "{role:?}");
        }
        let roles = &policy_of_metrics().cluster_roles;
        assert_eq!(roles.len(), 3);
        for wrong in ["get pods", "role a b", "bind a - nobody:x", "core pods"] {
            assert_eq!(Policy::read(wrong).expect_err("refused"), wrong);
        }
    }

    #[test]
    fn verbs_and_resources_are_sorted() {
        let rule = rule(&["core,apps", "pods,deployments", "all", "b,a"]).expect("a rule");
        assert_eq!(
            serde_json::to_value(rule).expect("JSON"),
            serde_json::json!({
                "apiGroups": ["", "apps"],
                "resources": ["deployments", "pods"],
                "resourceNames": ["a", "b"],
                "verbs": [
                    "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
                ],
            })
        );
    }

    #[test]
    fn gathered_roles_are_filled() {
        let count = |name: &str| {
            let mut roles = policy().cluster_roles.iter();
            let role = roles.find(|role| role.metadata.name.as_deref() == Some(name));
            role.and_then(|role| role.rules.as_ref())
                .map_or(0, Vec::len)
        };
        assert_eq!(count("view"), count("system:aggregate-to-view"));
        assert_eq!(
            count("edit"),
            count("system:aggregate-to-edit") + count("view")
        );
        assert_eq!(
            count("admin"),
            count("system:aggregate-to-admin") + count("edit")
        );
        assert!(node_rules().len() > 20);
    }
}
