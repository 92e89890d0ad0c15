//! ServiceAccount: the identity of a pod.

use k8s_openapi::api::core::v1::{ObjectReference, ServiceAccount};

use crate::kind::{Kind, StaticInfo};

/// See [`ServiceAccount`].
pub struct ServiceAccountKind;

/// Says whether the account's pods may refer to its own secrets only.
pub const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

fn enforces(account: &ServiceAccount) -> bool {
    let annotations = account.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(ENFORCE_MOUNTABLE))
}

/// Secrets are of the account's own namespace: of what refers to them nothing but their names is kept.
fn bare_secrets(account: &mut ServiceAccount) {
    for secret in account.secrets.iter_mut().flatten() {
        *secret = ObjectReference {
            name: secret.name.take(),
            ..ObjectReference::default()
        };
    }
}

impl Kind for ServiceAccountKind {
    type Object = ServiceAccount;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    fn prepare_create(object: &mut ServiceAccount) {
        bare_secrets(object);
    }

    fn prepare_update(new: &mut ServiceAccount, _old: &ServiceAccount) {
        bare_secrets(new);
    }

    fn warnings(new: &ServiceAccount, old: Option<&ServiceAccount>) -> Vec<String> {
        match enforces(new) && !old.is_some_and(enforces) {
            true => vec![format!(
                "metadata.annotations[{ENFORCE_MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            )],
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_names_and_enforcing_them_is_warned_of_once() {
        let secret = json!({"kind": "Secret", "name": "s", "namespace": "other"});
        let annotations = json!({ENFORCE_MOUNTABLE: "true"});
        let account = json!({"metadata": {"annotations": annotations}, "secrets": [secret]});
        let mut account: ServiceAccount = serde_json::from_value(account).unwrap();
        ServiceAccountKind::prepare_create(&mut account);
        assert_eq!(json!(account.secrets), json!([{"name": "s"}]));
        assert_eq!(ServiceAccountKind::warnings(&account, None).len(), 1);
        let again = ServiceAccountKind::warnings(&account, Some(&account));
        assert!(again.is_empty());
        let plain = ServiceAccount::default();
        assert!(ServiceAccountKind::warnings(&plain, None).is_empty());
    }
}
