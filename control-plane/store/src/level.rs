//! The feature level: what every member of a cluster must know before anything newer may be written.
//!
//! It is part of the replicated state, begins at 1 and never falls. Whoever introduces something that older builds
//! cannot read raises [`FEATURE_LEVEL`] in the code, and writes it only once the cluster has that level.

/// The highest feature level that this build knows.
pub const FEATURE_LEVEL: u32 = 1;

/// The level of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(pub(crate) u32);

impl Default for Level {
    fn default() -> Level {
        Level(1)
    }
}

/// Something needs a build that knows more than this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "was written by a newer gantry (feature level {level}, this one knows {known}): upgrade this server"
)]
pub struct NewerLevel {
    /// What is needed.
    pub level: u32,
    /// What this build knows.
    pub known: u32,
}

impl Level {
    /// This level, if a build that knows levels up to `known` may go on with it.
    pub(crate) fn known(self, known: u32) -> Result<Level, NewerLevel> {
        let Level(level) = self;
        match level > known {
            true => Err(NewerLevel { level, known }),
            false => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests;
