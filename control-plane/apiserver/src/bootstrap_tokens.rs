//! Bootstrap tokens: `ID.SECRET`, kept as Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`.

use base64::Engine;
use gantry_store::{Key, Store};
use serde_json::Value;

use crate::clock::Clock;
use crate::identity::Identity;
use crate::tables::table;

const GROUP: &str = "system:bootstrappers";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;

fn is_word(text: &str, length: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() == length && text.bytes().all(allowed)
}

/// The part of a token that may be told: `ID` of `ID.SECRET`, if it looks like one.
pub(crate) fn id_of(token: &str) -> Option<&str> {
    let (id, secret) = token.split_once('.')?;
    (is_word(id, ID_LENGTH) && is_word(secret, SECRET_LENGTH)).then_some(id)
}

/// Whom a token stands for; `None` when it is unknown, expired, or not meant for authentication.
pub(crate) fn identity(store: &Store, clock: &Clock, token: &str) -> Option<Identity> {
    let id = id_of(token)?;
    let (_, secret) = token.split_once('.')?;
    let entry = store.get(&Key {
        table: table("", "secrets"),
        namespace: "kube-system".into(),
        name: format!("bootstrap-token-{id}").into(),
    })?;
    let stored: Value = serde_json::from_slice(&entry.value).ok()?;
    let field = |name: &str| -> Option<String> {
        let encoded = stored["data"][name].as_str()?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
        String::from_utf8(bytes.ok()?).ok()
    };
    let is_token = stored["type"] == "bootstrap.kubernetes.io/token"
        && stored["metadata"]["deletionTimestamp"].is_null()
        && field("token-id").as_deref() == Some(id)
        && field("usage-bootstrap-authentication").as_deref() == Some("true");
    if !is_token || !same(&field("token-secret")?, secret) {
        return None;
    }
    if let Some(expiration) = field("expiration")
        && gantry_api::time::parse(&expiration)? <= clock.now()
    {
        return None;
    }
    let extra = field("auth-extra-groups").unwrap_or_default();
    let extra = extra.split(',').filter(|group| group.starts_with(GROUP));
    let groups: Vec<&str> = [GROUP, "system:authenticated"]
        .into_iter()
        .chain(extra)
        .collect();
    Some(Identity::new(&format!("system:bootstrap:{id}"), &groups))
}

/// Compares in a time that does not tell where the difference is.
pub(crate) fn same(one: &str, other: &str) -> bool {
    let differences = one
        .bytes()
        .zip(other.bytes())
        .map(|(one, other)| one ^ other);
    one.len() == other.len() && differences.fold(0, |all, difference| all | difference) == 0
}

#[cfg(test)]
mod tests {
    use gantry_store::{Index, Operation, Transaction};
    use serde_json::json;

    use super::*;

    async fn store_with(expiration: &str, groups: &str) -> Store {
        let store = Store::ephemeral();
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let secret = json!({"type": "bootstrap.kubernetes.io/token", "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
            "expiration": encode(expiration), "auth-extra-groups": encode(groups),
        }});
        let put = Operation::Put {
            key: Key {
                table: table("", "secrets"),
                namespace: "kube-system".into(),
                name: "bootstrap-token-abcdef".into(),
            },
            value: secret.to_string().into(),
            index: Index::default(),
        };
        let transaction = Transaction {
            guards: Vec::new(),
            operations: vec![put],
        };
        store.propose(transaction).await.expect("stored");
        store
    }

    #[tokio::test]
    async fn a_token_stands_for_its_groups_until_it_expires() {
        let store = store_with(
            "2200-01-01T00:00:00Z",
            "system:bootstrappers:x,system:masters",
        )
        .await;
        let clock = Clock::system();
        let found = identity(&store, &clock, "abcdef.0123456789abcdef").expect("known");
        assert_eq!(found.user, "system:bootstrap:abcdef");
        assert!(found.is_in("system:bootstrappers:x"));
        assert!(
            !found.is_in("system:masters"),
            "only groups of bootstrappers are taken"
        );
        for wrong in [
            "abcdef.0123456789abcdeg",
            "abcdeg.0123456789abcdef",
            "abcdef.",
            "x",
        ] {
            assert_eq!(identity(&store, &clock, wrong), None, "{wrong}");
        }
        let store = store_with("2001-01-01T00:00:00Z", "").await;
        assert_eq!(identity(&store, &clock, "abcdef.0123456789abcdef"), None);
    }
}
