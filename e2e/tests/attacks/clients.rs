//! Connections, watches and lists that take what others need.
