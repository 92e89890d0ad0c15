//! The demo's program as its users meet it: over real connections.

mod load;
mod server;
mod support;
