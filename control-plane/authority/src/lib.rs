//! What the cluster's trust rests on: its authorities and the certificates that they sign, the keys that seal what is
//! secret, and the keys that sign tokens.
//!
//! Keeps all of them current on every server, replaces them without refusing anybody meanwhile, and gives certificates to
//! servers, nodes and people. Whom a certificate or a token makes its holder, and what they may do, is the API server's
//! business; this crate must never know nodes' links, controllers or the scheduler.
//!
//! Invariants kept here:
//! - the authority's key is plain in memory alone ([`Certificates`]);
//! - no server lacks a key that it needs, and none is forgotten while something is sealed with it ([`keys`]);
//! - no token is signed with a key that a server has not heard of ([`token_keys`]).

mod certificates;
#[doc(hidden)]
pub mod fuzzing;
pub mod keys;
pub mod pki;
pub mod token_keys;

pub use certificates::{
    CERTIFICATE_LIFE, Certificates, CertificatesApi, Files, Granted, Naming, Setup,
};
