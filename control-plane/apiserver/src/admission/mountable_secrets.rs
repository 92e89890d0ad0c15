//! Which secrets a pod may refer to whose service account says that its pods may refer to its own alone: an annotation on its
//! way out, which is still kept.

use gantry_api::kinds::service_account::ENFORCE_MOUNTABLE;
use k8s_openapi::api::core::v1::{Container, PodSpec, ServiceAccount};

/// What Go reads as true.
const TRUE: [&str; 6] = ["1", "t", "T", "TRUE", "true", "True"];

/// What is wrong with a pod of the account, in Kubernetes' words.
pub(super) fn forbidden(account: &ServiceAccount, spec: &PodSpec) -> Option<String> {
    let annotations = account.metadata.annotations.as_ref();
    let enforces = annotations.and_then(|annotations| annotations.get(ENFORCE_MOUNTABLE));
    if !enforces.is_some_and(|value| TRUE.contains(&value.as_str())) {
        return None;
    }
    let name = account.metadata.name.as_deref().unwrap_or_default();
    let (place, secret) = foreign_secret(account, spec)?;
    Some(format!(
        "{place}={secret:?} is not allowed because service account {name} does not reference that {}",
        match place.starts_with("imagePullSecrets") {
            true => "imagePullSecret",
            false => "secret",
        }
    ))
}

/// The first secret that is none of the account's, and where the pod refers to it.
fn foreign_secret<'a>(account: &ServiceAccount, spec: &'a PodSpec) -> Option<(String, &'a str)> {
    let own = account.secrets.iter().flatten();
    let own: Vec<&str> = own.filter_map(|own| own.name.as_deref()).collect();
    let is_foreign = |name: &str| !own.contains(&name);
    for volume in spec.volumes.iter().flatten() {
        let Some(source) = &volume.secret else {
            continue;
        };
        let name = source.secret_name.as_deref().unwrap_or_default();
        if is_foreign(name) {
            return Some(("volume with secret.secretName".to_owned(), name));
        }
    }
    let inits = spec.init_containers.iter().flatten();
    let inits = inits.map(|container| ("init container", container));
    let others = spec.containers.iter().map(|other| ("container", other));
    for (what, container) in inits.chain(others) {
        let mut named = secrets_of(container);
        if let Some((how, name)) = named.find(|(_, name)| is_foreign(name)) {
            let place = format!(
                "{what} {} with {how} referencing secret.secretName",
                container.name
            );
            return Some((place, name));
        }
    }
    let own = account.image_pull_secrets.iter().flatten();
    let own: Vec<&str> = own.map(|own| own.name.as_str()).collect();
    let mut asked = spec.image_pull_secrets.iter().flatten().enumerate();
    let (at, foreign) = asked.find(|(_, asked)| !own.contains(&asked.name.as_str()))?;
    Some((
        format!("imagePullSecrets[{at}].name"),
        foreign.name.as_str(),
    ))
}

/// The secrets of a container's environment, and how it refers to each.
fn secrets_of(container: &Container) -> impl Iterator<Item = (String, &str)> {
    let single = container.env.iter().flatten().filter_map(|variable| {
        let source = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
        Some((format!("envVar {}", variable.name), source.name.as_str()))
    });
    let whole = container.env_from.iter().flatten().filter_map(|source| {
        let source = source.secret_ref.as_ref()?;
        Some(("envFrom".to_owned(), source.name.as_str()))
    });
    single.chain(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(enforce: &str, spec: Value) -> Option<String> {
        let account = json!({
            "metadata": {"name": "a", "annotations": {ENFORCE_MOUNTABLE: enforce}},
            "secrets": [{"name": "own"}], "imagePullSecrets": [{"name": "pull"}],
        });
        let account = serde_json::from_value(account).expect("an account");
        let spec = serde_json::from_value(spec).expect("a spec");
        forbidden(&account, &spec)
    }

    #[test]
    fn an_account_that_says_so_has_its_own_secrets_alone() {
        let volume = |name: &str| json!({"name": "v", "secret": {"secretName": name}});
        let key = |name: &str| json!({"name": "E", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}});
        let own = json!({
            "volumes": [volume("own")], "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "env": [key("own")], "envFrom": [{"secretRef": {"name": "own"}}]}],
        });
        assert_eq!(told("true", own), None);
        let other = json!({"containers": [], "volumes": [volume("other")]});
        assert_eq!(told("false", other.clone()), None);
        assert_eq!(
            told("1", other).as_deref(),
            Some(
                "volume with secret.secretName=\"other\" is not allowed because service account a does not reference that secret"
            )
        );
        let initial =
            json!({"containers": [], "initContainers": [{"name": "i", "env": [key("other")]}]});
        assert_eq!(
            told("true", initial).as_deref(),
            Some(
                "init container i with envVar E referencing secret.secretName=\"other\" is not allowed because service account a does not reference that secret"
            )
        );
        let pulled =
            json!({"containers": [], "imagePullSecrets": [{"name": "pull"}, {"name": "other"}]});
        assert_eq!(
            told("true", pulled).as_deref(),
            Some(
                "imagePullSecrets[1].name=\"other\" is not allowed because service account a does not reference that imagePullSecret"
            )
        );
    }
}
