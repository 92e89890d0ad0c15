//! placeholder
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    AcknowledgeBeforeSync,
    SkipTermFence,
    ApplyOutOfOrder,
}
