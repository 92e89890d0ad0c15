//! The documents of a registry, each made once.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use super::{gnostic, v2, v3};
use crate::heavy::Turn;
use crate::registry::Registry;

/// As many bytes as the making of a document weighs: it is never done on a worker.
const WEIGHT: usize = 1 << 20;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Json,
    Protobuf,
}

/// A document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Which {
    /// Of everything, in v2.
    V2,
    /// Where the documents of v3 are.
    Index,
    /// One of them.
    V3(String),
}

/// A document as it is sent.
pub(super) struct Made {
    pub(super) bytes: Bytes,
    /// The hash of the document in JSON, whatever it is written in.
    pub(super) hash: String,
    zipped: OnceLock<Bytes>,
}

impl Made {
    fn new(document: &Value, form: Form, messages: &gnostic::Messages) -> Self {
        let json = document.to_string();
        let hash = hash(json.as_bytes());
        let bytes = match form {
            Form::Json => Bytes::from(json),
            Form::Protobuf => Bytes::from(messages.document(document)),
        };
        Self {
            bytes,
            hash,
            zipped: OnceLock::new(),
        }
    }

    /// Compressed, once.
    pub(super) fn zipped(&self) -> &Bytes {
        self.zipped.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            let zipped = encoder
                .write_all(&self.bytes)
                .and_then(|()| encoder.finish());
            // Writing to memory does not fail.
            zipped.map(Bytes::from).unwrap_or_default()
        })
    }
}

/// Documents are told apart by what they say: SHA-512 in capital letters.
fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for byte in Sha512::digest(bytes) {
        // Writing to a String does not fail.
        write!(text, "{byte:02X}").unwrap_or_default();
    }
    text
}

/// A document in a form, and what it became.
type Cache = HashMap<(Which, Form), Arc<Made>>;

/// All documents of a registry. Making one takes milliseconds and up to a few megabytes, and none changes: each is made once,
/// when somebody first asks for it, and by one at a time.
#[derive(Default)]
pub(super) struct Documents {
    made: Mutex<Cache>,
    making: tokio::sync::Mutex<()>,
}

impl Documents {
    /// A document; none of what is not served, so that there are few.
    pub(super) async fn get(
        &self,
        registry: &Registry,
        which: &Which,
        form: Form,
    ) -> Option<Arc<Made>> {
        let key = (which.clone(), form);
        let known = || self.made.lock().get(&key).cloned();
        if let Some(made) = known() {
            return Some(made);
        }
        if let Which::V3(root) = which
            && !v3::roots(registry).contains(root)
        {
            return None;
        }
        let _one_at_a_time = self.making.lock().await;
        if let Some(made) = known() {
            return Some(made);
        }
        let turn = Turn::wait(WEIGHT).await;
        turn.work(|| self.make(registry, which, form))
    }

    fn make(&self, registry: &Registry, which: &Which, form: Form) -> Option<Arc<Made>> {
        let keep = |which: &Which, made: Made| {
            let made = Arc::new(made);
            let mut cache = self.made.lock();
            cache.insert((which.clone(), form), made.clone());
            made
        };
        match which {
            Which::V2 => {
                let made = Made::new(&v2::document(registry), form, &gnostic::V2);
                Some(keep(which, made))
            }
            Which::V3(root) => {
                let made = Made::new(&v3::document(registry, root)?, form, &gnostic::V3);
                Some(keep(which, made))
            }
            Which::Index => {
                let mut paths = Map::new();
                for root in v3::roots(registry) {
                    let which = Which::V3(root.clone());
                    let key = (which, Form::Json);
                    let known = self.made.lock().get(&key).cloned();
                    let made = match known {
                        Some(made) => made,
                        None => self.make(registry, &key.0, Form::Json)?,
                    };
                    let url = url(&root, &made.hash);
                    paths.insert(root, json!({"serverRelativeURL": url}));
                }
                let index = json!({"paths": paths});
                Some(keep(which, Made::new(&index, form, &gnostic::V3)))
            }
        }
    }
}

/// Where a document of v3 is, as long as it says the same.
pub(super) fn url(root: &str, hash: &str) -> String {
    format!("/openapi/v3/{root}?hash={hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> Registry {
        Registry::built_in()
    }

    #[tokio::test]
    async fn a_document_is_made_once() {
        let (documents, registry) = (Documents::default(), served());
        for form in [Form::Json, Form::Protobuf] {
            let apps = Which::V3("apis/apps/v1".to_owned());
            let first = documents.get(&registry, &apps, form).await;
            let second = documents.get(&registry, &apps, form).await;
            let (first, second) = (first.expect("is served"), second.expect("is served"));
            assert!(Arc::ptr_eq(&first, &second));
            let made_up = Which::V3("apis/made.up/v1".to_owned());
            assert!(documents.get(&registry, &made_up, form).await.is_none());
        }
        assert_eq!(documents.made.lock().len(), 2);
    }

    #[tokio::test]
    async fn another_registry_has_documents_of_its_own() {
        let index = async |registry: &Registry| {
            let documents = registry.derived::<Documents>();
            let made = documents.get(registry, &Which::Index, Form::Json).await;
            made.expect("is served").hash.clone()
        };
        let before = index(&served()).await;
        assert_eq!(index(&served()).await, before);
        let fewer = served().without("apps", "v1", "replicasets");
        assert_ne!(index(&fewer).await, before);
    }

    #[tokio::test]
    async fn the_index_names_the_hashes_of_documents() {
        let (documents, registry) = (Documents::default(), served());
        let get = async |which: Which| {
            let made = documents.get(&registry, &which, Form::Json).await;
            made.expect("is served")
        };
        let index = get(Which::Index).await;
        let index: Value = serde_json::from_slice(&index.bytes).expect("JSON");
        for root in [
            "api",
            "api/v1",
            "apis",
            "apis/apps",
            "apis/apps/v1",
            "version",
        ] {
            let made = get(Which::V3(root.to_owned())).await;
            assert_eq!(made.hash.len(), 128);
            assert_eq!(made.hash, hash(&made.bytes));
            let url = format!("/openapi/v3/{root}?hash={}", made.hash);
            assert_eq!(index["paths"][root]["serverRelativeURL"], url);
        }
    }

    #[test]
    fn hashes_are_sha_512_in_capital_letters() {
        let empty = hash(b"");
        assert!(
            empty.starts_with("CF83E1357EEFB8BDF1542850D66D8007"),
            "{empty}"
        );
        assert_eq!(empty.len(), 128);
    }
}
