//! gantry-scheduler
