//! The node's network: links, addresses, service rules, DNS.

pub mod error;
pub mod traits;

pub use error::NetworkError;
pub use traits::*;
