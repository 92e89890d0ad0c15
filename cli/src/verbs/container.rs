//! Which container of a pod a command is about where none is named, as kubectl finds it.

use gantry_api::paths;
use serde_json::Value;

use crate::client::{Call, Cluster};

/// The annotation by which a pod says which of its containers is usually meant.
const ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// The container that is meant: the one that is `named`, else the pod's own choice, else its first one, which is told where it
/// has others. `None` where the pod cannot be looked at: what the server says of the command says why.
pub(super) async fn meant(
    cluster: &Cluster,
    (namespace, pod): (&str, &str),
    named: Option<&str>,
) -> Option<String> {
    if let Some(named) = named {
        return Some(named.to_owned());
    }
    let path = paths::namespaced(namespace, &["pods", pod]);
    let pod = cluster.call(Call::get(&path)).await.ok()?;
    let choice = choose(&pod)?;
    if let Some(choices) = &choice.choices {
        eprintln!("Defaulted container {:?} out of: {choices}", choice.name);
    }
    Some(choice.name)
}

#[derive(Debug, PartialEq, Eq)]
struct Choice {
    name: String,
    /// All containers, where the first one was taken and there are others.
    choices: Option<String>,
}

fn choose(pod: &Value) -> Option<Choice> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        let names = containers.filter_map(|container| container["name"].as_str());
        names.map(str::to_owned).collect()
    };
    let main = names("containers");
    let (ephemeral, init) = (names("ephemeralContainers"), names("initContainers"));
    let annotated = pod["metadata"]["annotations"][ANNOTATION].as_str();
    let mut known = main.iter().chain(&ephemeral).chain(&init);
    if let Some(name) = annotated.and_then(|wanted| known.find(|name| *name == wanted)) {
        return Some(Choice {
            name: name.clone(),
            choices: None,
        });
    }
    let name = main.first()?.clone();
    let ephemeral = ephemeral.iter().map(|name| format!("{name} (ephem)"));
    let init = init.iter().map(|name| format!("{name} (init)"));
    let all: Vec<String> = main.iter().cloned().chain(ephemeral).chain(init).collect();
    Some(Choice {
        name,
        choices: (all.len() > 1).then(|| all.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chosen(annotated: Option<&str>, containers: &[&str], init: &[&str]) -> Option<Choice> {
        let named = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({ "name": name })).collect()
        };
        choose(&json!({
            "metadata": {"annotations": {ANNOTATION: annotated}},
            "spec": {"containers": named(containers), "initContainers": named(init)},
        }))
    }

    fn of(name: &str, choices: Option<&str>) -> Option<Choice> {
        Some(Choice {
            name: name.to_owned(),
            choices: choices.map(str::to_owned),
        })
    }

    #[test]
    fn the_annotated_container_is_meant_or_else_the_first() {
        assert_eq!(chosen(None, &["a"], &[]), of("a", None));
        assert_eq!(chosen(None, &["a", "b"], &[]), of("a", Some("a, b")));
        assert_eq!(chosen(None, &["a"], &["i"]), of("a", Some("a, i (init)")));
        assert_eq!(chosen(Some("b"), &["a", "b"], &[]), of("b", None));
        assert_eq!(chosen(Some("i"), &["a"], &["i"]), of("i", None));
        assert_eq!(chosen(Some("x"), &["a", "b"], &[]), of("a", Some("a, b")));
        assert_eq!(chosen(None, &[], &["i"]), None);
    }
}
