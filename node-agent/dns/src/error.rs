//! What can go wrong with the cluster's DNS.

/// Errors of starting a DNS server.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The cluster's domain is no domain name.
    #[error("{0}")]
    Domain(String),
    /// A socket could not be opened.
    #[error("listening on {address} for DNS (does the node hold it, is the port free?)")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
