//! What `gantry user create` has bound: listed, and taken back.

use anyhow::{Result, bail};
use gantry_api::paths;
use http::Method;
use serde_json::{Value, json};

use super::GROUP;
use crate::client::{Call, Cluster};
use crate::output;

/// The kinds of bindings.
const PLURALS: [&str; 2] = ["clusterrolebindings", "rolebindings"];

/// A role that a binding gives a user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    user: String,
    /// Empty for all namespaces.
    namespace: String,
    role: String,
    binding: String,
    /// Whether it is one of `gantry user create`: it is called after both, and for nobody else.
    made: bool,
}

impl Grant {
    fn path(&self) -> String {
        let name = self.binding.as_str();
        match self.namespace.as_str() {
            "" => paths::path(&["apis", GROUP, "v1", "clusterrolebindings", name]),
            namespace => paths::path(&[
                "apis",
                GROUP,
                "v1",
                "namespaces",
                namespace,
                "rolebindings",
                name,
            ]),
        }
    }

    fn told(&self) -> String {
        let name = &self.binding;
        match self.namespace.as_str() {
            "" => format!("clusterrolebinding \"{name}\""),
            namespace => format!("rolebinding \"{name}\" of namespace \"{namespace}\""),
        }
    }
}

/// What the bindings of a list give to users.
fn grants(list: &Value) -> Vec<Grant> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for binding in list["items"].as_array().into_iter().flatten() {
        let metadata = &binding["metadata"];
        let (name, role) = (text(&metadata["name"]), text(&binding["roleRef"]["name"]));
        let subjects = binding["subjects"].as_array();
        let subjects = subjects.map(Vec::as_slice).unwrap_or_default();
        for subject in subjects.iter().filter(|subject| subject["kind"] == "User") {
            let user = text(&subject["name"]);
            found.push(Grant {
                made: subjects.len() == 1 && name == super::binding_name(&user, &role),
                user,
                namespace: text(&metadata["namespace"]),
                role: role.clone(),
                binding: name.clone(),
            });
        }
    }
    found.sort();
    found
}

async fn all(cluster: &Cluster) -> Result<Vec<Grant>> {
    let mut found = Vec::new();
    for plural in PLURALS {
        let path = paths::path(&["apis", GROUP, "v1", plural]);
        found.extend(grants(&cluster.call(Call::get(&path)).await?));
    }
    found.sort();
    Ok(found)
}

/// Prints who was given which role, where.
pub(super) async fn list(cluster: &Cluster) -> Result<()> {
    let mut lines = vec![["USER", "ROLE", "NAMESPACE", "BINDING"].map(str::to_owned)];
    for grant in all(cluster).await?.into_iter().filter(|grant| grant.made) {
        let everywhere = grant.namespace.is_empty();
        let namespace = if everywhere {
            "*".to_owned()
        } else {
            grant.namespace
        };
        lines.push([grant.user, grant.role, namespace, grant.binding]);
    }
    let lines: Vec<Vec<String>> = lines.into_iter().map(Vec::from).collect();
    output::print(&output::align(&lines))
}

/// Takes back every role that `gantry user create` gave somebody.
pub(super) async fn remove(cluster: &Cluster, user: &str) -> Result<()> {
    let of_user = all(cluster).await?.into_iter();
    let of_user = of_user.filter(|grant| grant.user == user);
    let (made, others): (Vec<Grant>, Vec<Grant>) = of_user.partition(|grant| grant.made);
    for grant in &made {
        let path = grant.path();
        let delete = Call::send(Method::DELETE, &path, &json!({}));
        match cluster.call(delete).await {
            Ok(_) => output::print(&format!("{} deleted\n", grant.told()))?,
            // Somebody else was faster.
            Err(error) if error.code() == Some(404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for grant in &others {
        eprintln!(
            "{} names {user} too: 'gantry user create' has not made it, and it stays",
            grant.told()
        );
    }
    if made.is_empty() {
        bail!("'gantry user create' has given {user} no role: 'gantry user ls' shows whom it has");
    }
    eprintln!(
        "the certificate of {user} cannot be taken back: until it expires it is good for what roles allow its groups and everybody with a credential"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_user_create_has_bound_is_told_from_what_others_have() {
        let user = |name: &str| json!({"kind": "User", "name": name});
        let binding = |name: &str, namespace: Value, role: &str, subjects: Value| {
            json!({
                "metadata": {"name": name, "namespace": namespace},
                "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": subjects,
            })
        };
        let group = json!({"kind": "Group", "name": "jane"});
        let list = json!({"items": [
            binding("jane-edit", json!("team"), "edit", json!([user("jane")])),
            binding("jane-view", Value::Null, "view", json!([user("jane")])),
            binding("jane-admin", json!("team"), "admin", json!([user("jane"), user("joe")])),
            binding("other", json!("team"), "edit", json!([user("jane"), group])),
            binding("jane-all", json!("team"), "all", Value::Null),
        ]});
        let found = grants(&list);
        let told = |made: bool| -> Vec<String> {
            let found = found.iter().filter(|grant| grant.made == made);
            found
                .map(|grant| format!("{} {}", grant.user, grant.path()))
                .collect()
        };
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        assert_eq!(
            told(true),
            [
                format!("jane {rbac}/clusterrolebindings/jane-view"),
                format!("jane {rbac}/namespaces/team/rolebindings/jane-edit"),
            ]
        );
        assert_eq!(
            told(false),
            [
                format!("jane {rbac}/namespaces/team/rolebindings/jane-admin"),
                format!("jane {rbac}/namespaces/team/rolebindings/other"),
                format!("joe {rbac}/namespaces/team/rolebindings/jane-admin"),
            ]
        );
    }
}
