//! What can go wrong with the network.

/// Errors of the node's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node's pod CIDR is used up.
    #[error("no free address in {0}: every address of the node's pod CIDR is in use")]
    NoFreeAddress(String),
    /// Another process or pod holds the port.
    #[error("host port {port}/{protocol} is already in use")]
    HostPortInUse {
        /// The port.
        port: u16,
        /// TCP, UDP or SCTP.
        protocol: String,
    },
    /// The kernel or a tool is missing.
    #[error("{0}")]
    Unsupported(String),
    /// Another node's data cannot be used.
    #[error("node {name}: {problem}")]
    Peer {
        /// Name of the Node.
        name: String,
        /// What is wrong with which of its fields, and what to do about it.
        problem: String,
    },
    /// netlink refused.
    #[error("{doing}: {cause}")]
    Netlink {
        /// What was being done, to which object.
        doing: String,
        /// The kernel's words.
        cause: String,
    },
    /// nft refused a transaction.
    #[error("programming nftables: {0}")]
    Nft(String),
    /// The file system or a socket refused.
    #[error("{doing}")]
    Io {
        /// What was being done, to which object.
        doing: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
