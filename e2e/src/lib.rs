//! gantry-e2e
