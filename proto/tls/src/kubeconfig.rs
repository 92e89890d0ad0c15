//! Kubeconfigs with everything in them.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Credential;

/// The name of the extension that lists further servers of the cluster, as `servers`, `IP:PORT` each.
pub const SERVERS_EXTENSION: &str = "gantry";

/// What a kubeconfig says.
pub struct Kubeconfig<'a> {
    /// The server's URL.
    pub server: &'a str,
    /// Further servers of the cluster; clients that know of it ask them when that one does not answer.
    pub others: &'a [SocketAddr],
    /// The authorities by which servers are trusted, PEM.
    pub trusted: &'a str,
    /// The client's name.
    pub user: &'a str,
    /// The client's certificate.
    pub credential: &'a Credential,
}

impl Kubeconfig<'_> {
    /// Its text, YAML.
    pub fn render(&self) -> String {
        let encode = |text: &str| STANDARD.encode(text);
        let Self { server, user, .. } = self;
        let mut cluster = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: gantry\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {}\n",
            encode(self.trusted)
        );
        if !self.others.is_empty() {
            let others: Vec<String> = self.others.iter().map(|one| format!("\"{one}\"")).collect();
            cluster += &format!(
                "    extensions:\n    - name: {SERVERS_EXTENSION}\n      extension:\n        servers: [{}]\n",
                others.join(", ")
            );
        }
        format!(
            "{cluster}users:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n\
             - name: gantry\n  context:\n    cluster: gantry\n    user: {user}\ncurrent-context: gantry\n",
            encode(&self.credential.certificate),
            encode(&self.credential.key),
        )
    }
}
