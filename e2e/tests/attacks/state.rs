//! A data directory that lost a part of itself.
