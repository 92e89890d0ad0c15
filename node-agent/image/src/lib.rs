//! Images: registries, archives, layers, overlay root file systems, garbage collection.
//!
//! [`ImageStore`] is the [`Images`] of a node. Must never know what a pod is: it is asked for references and keys, and answers
//! with images and mounted directories.
//!
//! Invariants kept here:
//! - a layer is visible only when all of it is unpacked and its digests are verified ([`layers`]);
//! - an entry of a layer never reaches outside the layer's own directory ([`unpack`]);
//! - an image is listed only when every one of its layers is present ([`index`]);
//! - nobody waits for another's registry, and what is unpacked is bounded for the node and for each layer ([`store`],
//!   [`allowance`]).

#[doc(hidden)]
pub mod fuzzing;

mod allowance;
mod archive;
mod challenge;
mod distribution;
mod entries;
mod index;
mod layers;
mod loopback;
mod manifest;
mod parents;
mod pins;
mod registry;
mod room;
mod root;
mod rootfs;
mod sparse;
mod store;
mod unpack;
mod volume;

pub use gantry_cri::image::{
    Credentials, FakeImages, Image, ImageConfig, ImageError, Images, Progress, ProgressSink,
    normalise, repository,
};
pub use rootfs::try_overlay;
pub use store::{ImageStore, ImageStoreConfig};
