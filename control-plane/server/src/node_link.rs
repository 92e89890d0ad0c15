//! The server's end of the node link: what each node needs goes down, what it reports comes up, exec and log streams are
//! matched with the nodes that serve them, and pods' tokens are made.

mod addresses;
mod calls;
mod ending;
mod hub;
mod needs;
mod policies;
mod reports;
mod restrictions;
mod routing;
mod said;
mod session;
mod streams;
mod tokens;

pub(crate) use calls::Calls;
pub(crate) use hub::Hub;
pub(crate) use policies::Policies;
pub(crate) use reports::{Reports, call};
pub(crate) use said::fuzz;
pub(crate) use session::{ClusterFacts, LinkService};
pub(crate) use tokens::TokenAllowances;
