//! One module per kind, each a [`crate::kind::Kind`], and what several of them share.

pub mod config_map;
pub mod namespace;
pub mod secret;
pub mod service_account;
pub mod table;

use crate::kind::ResourceKind;
use crate::typed::Typed;

/// Every built-in kind.
pub fn all() -> Vec<Box<dyn ResourceKind>> {
    vec![
        Typed::<config_map::ConfigMapKind>::boxed(),
        Typed::<namespace::NamespaceKind>::boxed(),
        Typed::<secret::SecretKind>::boxed(),
        Typed::<service_account::ServiceAccountKind>::boxed(),
    ]
}
