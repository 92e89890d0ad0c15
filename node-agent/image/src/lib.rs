//! Images: registries, archives, layers, overlay snapshots, garbage collection.

pub mod error;
pub mod traits;

pub use error::ImageError;
pub use traits::*;
