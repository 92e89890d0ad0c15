//! Secrets of type `kubernetes.io/service-account-token`: filled with a token of their account, and removed with it.
//!
//! Whoever signs tokens is behind [`TokenIssuer`]: without one this does not run.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::paths::segment;
use gantry_informer::{Informer, Informers, Key, Next, Queue, runner};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use tokio::sync::watch;

use crate::context::Context;
use crate::error::{Doing, Result, code};

const OF_TYPE: &str = "type=kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
const CERTIFICATES: &str = "ca.crt";
const NAMESPACE: &str = "namespace";
/// How often it is looked whether another key signs.
const LOOK: Duration = Duration::from_secs(5);

/// A Secret that is to hold a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSecret<'a> {
    /// Its namespace, and that of the account.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The account's name.
    pub account: &'a str,
    /// The account's uid.
    pub account_uid: &'a str,
}

/// Signs the tokens that are kept in Secrets.
pub trait TokenIssuer: Send + Sync {
    /// A token; none while there is nothing to sign it with.
    fn issue(&self, secret: &TokenSecret<'_>) -> Option<String>;
    /// The name of the key that signs now.
    fn key(&self) -> Option<String>;
    /// Whether a token was signed with that: another is to be replaced.
    fn is_current(&self, token: &str) -> bool;
}

struct Caches {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
}

/// Runs until stopped.
pub(crate) async fn run(
    context: Arc<Context>,
    informers: &Informers,
    root_ca: watch::Receiver<String>,
    issuer: Arc<dyn TokenIssuer>,
) {
    let caches = Arc::new(Caches {
        secrets: informers.only(OF_TYPE),
        accounts: context.service_accounts.clone(),
    });
    let queue = Arc::new(Queue::<Key>::default());
    caches.secrets.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(secret) = change.new {
                queue.add(Key::of(&secret.metadata));
            }
        }
    }));
    caches.accounts.subscribe(Box::new({
        let (queue, secrets) = (queue.clone(), caches.secrets.clone());
        move |change| {
            let Some(account) = change.last() else {
                return;
            };
            let key = Key::of(&account.metadata);
            for secret in secrets.in_namespace(&key.namespace) {
                if annotation(&secret, ACCOUNT) == Some(&*key.name) {
                    queue.add(Key::of(&secret.metadata));
                }
            }
        }
    }));
    let stop = context.stop.clone();
    let filled = async {
        caches.secrets.synced().await;
        caches.accounts.synced().await;
    };
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    let follow = follow(
        caches.clone(),
        queue.clone(),
        issuer.clone(),
        root_ca.clone(),
    );
    let follow = context.stop.run_until_cancelled(follow);
    let reconciling = runner::run("service-account-tokens", queue, 4, stop, {
        let context = context.clone();
        move |key: Key| {
            let (context, caches) = (context.clone(), caches.clone());
            let (root_ca, issuer) = (root_ca.borrow().clone(), issuer.clone());
            async move { reconcile(&context, &caches, &root_ca, issuer.as_ref(), &key).await }
        }
    });
    tokio::join!(reconciling, follow);
}

/// Has every Secret looked at when another key signs, or other authorities are trusted.
async fn follow(
    caches: Arc<Caches>,
    queue: Arc<Queue<Key>>,
    issuer: Arc<dyn TokenIssuer>,
    root_ca: watch::Receiver<String>,
) {
    let look = || (issuer.key(), root_ca.borrow().clone());
    let mut known = look();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let found = look();
        if found == known {
            continue;
        }
        known = found;
        for secret in caches.secrets.list() {
            queue.add(Key::of(&secret.metadata));
        }
    }
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    let annotations = secret.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

async fn reconcile(
    context: &Context,
    caches: &Caches,
    root_ca: &str,
    issuer: &dyn TokenIssuer,
    key: &Key,
) -> Result<Next> {
    let Some(secret) = caches.secrets.get(key) else {
        return Ok(Next::Changed);
    };
    if secret.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Changed);
    }
    let name = annotation(&secret, ACCOUNT).unwrap_or_default();
    let account = match caches.accounts.get(&Key::new(&key.namespace, name)) {
        Some(account) if is_of(&secret, &account) => Some(account),
        // One cache may lag behind the other: only the API server knows both at once.
        _ => {
            let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &key.namespace);
            let found = match name {
                "" => None,
                name => {
                    let found = api.get_opt(&segment(name)).await;
                    found.doing("looking at the account of secret", key)?
                }
            };
            found
                .filter(|account| is_of(&secret, account))
                .map(Arc::new)
        }
    };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    let Some(account) = account else {
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
        });
        return match api.delete(&key.name, &parameters).await {
            // It is gone, or has changed, which is looked at by itself.
            Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(Next::Changed),
            deleted => deleted
                .map(|_| Next::Changed)
                .doing("removing the token of an account that is gone", key),
        };
    };
    let Some(filled) = filled(&secret, &account, root_ca, issuer) else {
        return Ok(Next::Changed);
    };
    match api
        .replace(&key.name, &PostParams::default(), &filled)
        .await
    {
        Ok(written) => caches.secrets.observe(written),
        Err(error) if matches!(code(&error), Some(404 | 409)) => {}
        Err(error) => return Err(error).doing("writing the token of an account", key),
    }
    Ok(Next::Changed)
}

/// Whether a Secret is about this very account, or does not say yet which one of the name it means.
fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let uid = annotation(secret, ACCOUNT_UID).unwrap_or_default();
    uid.is_empty() || account.metadata.uid.as_deref() == Some(uid)
}

/// The Secret as it should be; none where that is what it is, or nobody can sign.
fn filled(
    secret: &Secret,
    account: &ServiceAccount,
    root_ca: &str,
    issuer: &dyn TokenIssuer,
) -> Option<Secret> {
    let mut filled = secret.clone();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let namespace = text(&secret.metadata.namespace);
    let (name, account_name) = (text(&secret.metadata.name), text(&account.metadata.name));
    let account_uid = text(&account.metadata.uid);
    let annotations = filled.metadata.annotations.get_or_insert_default();
    annotations.insert(ACCOUNT_UID.to_owned(), account_uid.clone());
    let data = filled.data.get_or_insert_default();
    data.insert(
        CERTIFICATES.to_owned(),
        ByteString(root_ca.as_bytes().to_vec()),
    );
    data.insert(
        NAMESPACE.to_owned(),
        ByteString(namespace.clone().into_bytes()),
    );
    let is_current = data.get(TOKEN).is_some_and(|token| {
        let token = std::str::from_utf8(&token.0);
        token.is_ok_and(|token| issuer.is_current(token))
    });
    if !is_current {
        let token = issuer.issue(&TokenSecret {
            namespace: &namespace,
            name: &name,
            account: &account_name,
            account_uid: &account_uid,
        })?;
        data.insert(TOKEN.to_owned(), ByteString(token.into_bytes()));
    }
    (filled != *secret).then_some(filled)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Fake;

    impl TokenIssuer for Fake {
        fn issue(&self, secret: &TokenSecret<'_>) -> Option<String> {
            Some(format!(
                "{}/{} of {} {}",
                secret.namespace, secret.name, secret.account, secret.account_uid
            ))
        }

        fn key(&self) -> Option<String> {
            None
        }

        fn is_current(&self, token: &str) -> bool {
            token.contains(" of ")
        }
    }

    fn secret(annotations: Value, data: Value) -> Secret {
        let object = json!({
            "metadata": {"name": "t", "namespace": "d", "annotations": annotations}, "data": data,
        });
        serde_json::from_value(object).expect("a Secret")
    }

    #[test]
    fn a_secret_is_filled_once_and_mended_when_it_was_spoiled() {
        let account = json!({"metadata": {"name": "a", "namespace": "d", "uid": "u"}});
        let account: ServiceAccount = serde_json::from_value(account).expect("an account");
        let empty = secret(json!({ACCOUNT: "a"}), json!({}));
        let whole = filled(&empty, &account, "PEM", &Fake).expect("it lacks everything");
        let data = whole.data.as_ref().expect("data");
        let text = |key: &str| String::from_utf8(data[key].0.clone()).expect("text");
        assert_eq!(text(TOKEN), "d/t of a u");
        assert_eq!(
            (text(CERTIFICATES).as_str(), text(NAMESPACE).as_str()),
            ("PEM", "d")
        );
        assert_eq!(annotation(&whole, ACCOUNT_UID), Some("u"));
        assert_eq!(filled(&whole, &account, "PEM", &Fake), None);
        assert!(filled(&whole, &account, "other", &Fake).is_some());
        let mut old = whole.clone();
        if let Some(data) = &mut old.data {
            data.insert(TOKEN.to_owned(), ByteString(b"old".to_vec()));
        }
        assert_eq!(filled(&old, &account, "PEM", &Fake), Some(whole.clone()));
        assert!(is_of(&whole, &account) && is_of(&empty, &account));
        let other = secret(json!({ACCOUNT: "a", ACCOUNT_UID: "v"}), json!({}));
        assert!(!is_of(&other, &account));
    }
}
