//! Images: registries, archives, layers, overlay root file systems, garbage collection.
//!
//! Depends on no other crate of the workspace and must never know what a pod is: it is asked for references and
//! keys, and answers with images and mounted directories ([`Images`]).
//!
//! Invariants kept here:
//! - a layer is visible only when all of it is unpacked and its digests are verified ([`layers`]);
//! - an entry of a layer never reaches outside the layer's own directory ([`unpack`]);
//! - an image is listed only when every one of its layers is present ([`index`]);
//! - nobody waits for another's registry, and what is unpacked is bounded for the node and for each layer ([`store`],
//!   [`allowance`]).

pub mod error;
pub mod fake;
#[doc(hidden)]
pub mod fuzzing;
pub mod traits;

mod allowance;
mod archive;
mod challenge;
mod distribution;
mod index;
mod layers;
mod manifest;
mod parents;
mod pins;
mod reference;
mod registry;
mod room;
mod root;
mod rootfs;
mod sparse;
mod store;
mod unpack;
mod volume;

pub use error::ImageError;
pub use fake::FakeImages;
pub use reference::{normalise, repository};
pub use rootfs::try_overlay;
pub use store::{ImageStore, ImageStoreConfig};
pub use traits::*;
