//! The commands that are the cluster rather than its clients.

mod agent;
mod daemon;
mod down;
mod hosts;
mod join_token;
mod log;
mod machine;
mod memory;
mod place;
mod recover;
mod server;
mod up;

pub(crate) use agent::{AgentCommand, LOCAL_API, METRICS};
pub(crate) use down::Down;
pub(crate) use hosts::{enter, nodes};
pub(crate) use join_token::JoinToken;
pub(crate) use place::{DATA_DIR, Place, agent_config, data_dir, keep_to_ourselves};
pub(crate) use recover::{Recover, RestoreArguments, describe_backup, restore};
pub(crate) use server::ServerCommand;
pub(crate) use up::Up;
