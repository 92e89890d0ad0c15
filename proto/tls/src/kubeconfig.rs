//! Kubeconfigs with everything in them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Credential;

/// A kubeconfig for the server at a URL, the authorities that it is trusted by, PEM, and a client's certificate.
pub fn kubeconfig(server: &str, trusted: &str, user: &str, credential: &Credential) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: gantry\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: gantry\n  context:\n    cluster: gantry\n    user: {user}\n\
         current-context: gantry\n",
        encode(trusted),
        encode(&credential.certificate),
        encode(&credential.key),
    )
}
