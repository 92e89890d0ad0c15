//! Annotations of Gantry's own that more than one of its parts reads or writes.

/// On a Service: the names of the Deployments to bring back when it is wanted, in order, with commas between them. The control
/// plane writes it; nodes hold connections to a Service that has it while nothing serves it, and refuse others.
pub const WAKES: &str = "gantry.dev/wakes";
