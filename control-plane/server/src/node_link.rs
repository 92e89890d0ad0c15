//! The server's end of the node link: what each node needs goes down, what it reports comes up, and exec and log
//! streams are matched with the nodes that serve them.

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

pub(crate) use calls::Calls;
pub(crate) use hub::Hub;
pub(crate) use policies::Policies;
pub(crate) use reports::{Reports, call};
pub(crate) use said::fuzz;
pub(crate) use session::{ClusterFacts, LinkService};
