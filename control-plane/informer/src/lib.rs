//! gantry-informer
