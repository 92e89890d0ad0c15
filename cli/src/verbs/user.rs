//! `gantry user`: people who work with a cluster, each with a certificate and with what a role allows.

mod bindings;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_api::paths;
use gantry_tls::{Credential, KeyRequest, SERVERS_EXTENSION};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, Credentials};
use crate::output;

const USERS: &str = "/gantry/v1/users";
const MEMBERS: &str = "/gantry/v1/members";
const GROUP: &str = "rbac.authorization.k8s.io";

/// Give people access to the cluster
#[derive(Debug, clap::Args)]
pub(crate) struct User {
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, clap::Subcommand)]
enum UserCommand {
    /// Make a certificate, bind a role, and write a kubeconfig that is ready to use
    Create(Create),
    /// List the users that were given a role by 'gantry user create', and where
    #[command(visible_alias = "list")]
    Ls,
    /// Take back the roles that 'gantry user create' gave a user; the certificate stays good until it expires
    Rm {
        /// The user's name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The user's name: letters, digits and . _ @ + -
    #[arg(value_parser = user_name)]
    name: String,
    /// The role to give: a Role of the namespace, or a ClusterRole such as view, edit or admin
    #[arg(long)]
    role: Option<String>,
    /// Give a ClusterRole in all namespaces
    #[arg(long, requires = "role")]
    everywhere: bool,
    /// A group that the user is in; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Where the kubeconfig goes: NAME.kubeconfig when not given, - for the standard output
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// A name that is a name everywhere: in files, in YAML and on command lines.
fn user_name(text: &str) -> Result<String, String> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._@+-".contains(letter);
    let begins = text.starts_with(|letter: char| letter.is_ascii_alphanumeric());
    match begins && text.len() <= 64 && text.chars().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err(
            "a user's name begins with a letter or digit, and has at most 64 of these and of . _ @ + -"
                .to_owned(),
        ),
    }
}

/// What the binding of a role to a user is called.
fn binding_name(user: &str, role: &str) -> String {
    format!("{user}-{role}")
}

impl User {
    pub(crate) async fn run(&self, credentials: &Credentials) -> Result<()> {
        let cluster = Cluster::connect(credentials).await?;
        match &self.command {
            UserCommand::Create(create) => create.run(&cluster, credentials).await,
            UserCommand::Ls => bindings::list(&cluster).await,
            UserCommand::Rm { name } => bindings::remove(&cluster, name).await,
        }
    }
}

impl Create {
    async fn run(&self, cluster: &Cluster, credentials: &Credentials) -> Result<()> {
        let file = self.file();
        if let Some(file) = &file
            && !self.force
            && file.exists()
        {
            bail!(
                "{} is there already: name another file with --output, or replace it with --force",
                file.display()
            );
        }
        // First, since it is refused where the role or the namespace does not exist.
        let bound = match &self.role {
            Some(role) => Some(self.bind(cluster, role).await?),
            None => None,
        };
        let (credential, trusted) = self.certificate(cluster).await?;
        let server = credentials.find().await?.cluster_url.to_string();
        let server = server.trim_end_matches('/');
        let servers = servers(cluster).await?;
        let text = gantry_api::yaml::to_string(&kubeconfig(&Ready {
            user: &self.name,
            namespace: &cluster.namespace,
            server: &reachable(server, &servers),
            servers: &servers,
            trusted: &trusted,
            credential: &credential,
        }));
        match &file {
            None => output::print(&text)?,
            // Whoever reads it is the user: nobody else may.
            Some(file) => gantry_tls::write(file, &text, 0o600)
                .with_context(|| format!("writing {}", file.display()))?,
        }
        self.tell(file.as_deref(), bound.as_deref(), &credential);
        Ok(())
    }

    fn file(&self) -> Option<PathBuf> {
        match &self.output {
            Some(path) if path.as_os_str() == "-" => None,
            Some(path) => Some(path.clone()),
            None => Some(PathBuf::from(format!("{}.kubeconfig", self.name))),
        }
    }

    /// A certificate for a key that is made here and sent to nobody.
    async fn certificate(&self, cluster: &Cluster) -> Result<(Credential, String)> {
        let made = KeyRequest::new(&self.name)?;
        let asked = json!({"user": self.name, "groups": self.groups, "request": made.request});
        let granted = cluster
            .call(Call::send(Method::POST, USERS, &asked))
            .await?;
        let text = |field: &str| granted[field].as_str().unwrap_or_default().to_owned();
        let credential = made.granted(text("certificate"))?;
        Ok((credential, text("trusted")))
    }

    /// Binds the role to the user, and says what was bound.
    async fn bind(&self, cluster: &Cluster, role: &str) -> Result<String> {
        let namespace = cluster.namespace.as_str();
        let own = ["apis", GROUP, "v1", "namespaces", namespace, "roles", role];
        let is_own = !self.everywhere && cluster.find(&paths::path(&own)).await?.is_some();
        if !is_own {
            let path = paths::path(&["apis", GROUP, "v1", "clusterroles", role]);
            if cluster.find(&path).await?.is_none() {
                bail!(
                    "there is no role \"{role}\", neither in namespace \"{namespace}\" nor for all: 'gantry get clusterroles' lists those"
                );
            }
        }
        let name = binding_name(&self.name, role);
        let kind = if is_own { "Role" } else { "ClusterRole" };
        let subject = json!({"kind": "User", "name": self.name, "apiGroup": GROUP});
        let reference = json!({"kind": kind, "name": role, "apiGroup": GROUP});
        let binding = json!({
            "metadata": {"name": name}, "roleRef": reference, "subjects": [subject],
        });
        let mut path = vec!["apis", GROUP, "v1"];
        let plural = match self.everywhere {
            true => "clusterrolebindings",
            false => {
                path.extend(["namespaces", namespace]);
                "rolebindings"
            }
        };
        path.push(plural);
        let create = paths::path(&path);
        match cluster
            .call(Call::send(Method::POST, &create, &binding))
            .await
        {
            Ok(_) => {}
            Err(error) if error.code() == Some(409) => {
                path.push(&name);
                let known = cluster.find(&paths::path(&path)).await?;
                let known = known.unwrap_or_default();
                let subjects = known["subjects"].as_array();
                let has = subjects.is_some_and(|subjects| subjects.contains(&subject));
                if known["roleRef"] != reference || !has {
                    bail!("there is another binding called \"{name}\": delete it first");
                }
            }
            Err(error) => return Err(error.into()),
        }
        let singular = plural.trim_end_matches('s');
        Ok(format!("{singular} {name}"))
    }

    fn tell(&self, file: Option<&Path>, bound: Option<&str>, credential: &Credential) {
        let name = &self.name;
        if let Some(file) = file {
            eprintln!(
                "wrote {}: a kubeconfig for {name}, good until {}",
                file.display(),
                credential.lifetime.expires
            );
        }
        match bound {
            Some(bound) => {
                eprintln!("what {name} may do ends with 'gantry delete {bound}'");
            }
            None => eprintln!("{name} may do nothing yet: give a role with --role, or bind one"),
        }
    }
}

/// The addresses of the cluster's servers.
async fn servers(cluster: &Cluster) -> Result<Vec<SocketAddr>> {
    let listed = cluster.call(Call::get(MEMBERS)).await?;
    let listed = listed.as_array().into_iter().flatten();
    let addresses = listed.filter_map(|server| server["address"].as_str()?.parse().ok());
    Ok(addresses.collect())
}

/// The URL that others reach the cluster by: not one of this machine alone, where a server has another.
fn reachable(url: &str, servers: &[SocketAddr]) -> String {
    let parsed: Option<http::Uri> = url.parse().ok();
    let host = parsed
        .as_ref()
        .and_then(http::Uri::host)
        .unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let is_local = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let other = servers.iter().find(|server| !server.ip().is_loopback());
    match other.filter(|_| is_local) {
        Some(server) => format!("https://{server}"),
        None => url.to_owned(),
    }
}

/// What a kubeconfig says.
struct Ready<'a> {
    user: &'a str,
    namespace: &'a str,
    server: &'a str,
    servers: &'a [SocketAddr],
    trusted: &'a str,
    credential: &'a Credential,
}

fn kubeconfig(ready: &Ready<'_>) -> Value {
    let encode = |text: &str| STANDARD.encode(text);
    let others: Vec<String> = ready.servers.iter().map(ToString::to_string).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gantry", "cluster": {
            "server": ready.server,
            "certificate-authority-data": encode(ready.trusted),
            "extensions": [{"name": SERVERS_EXTENSION, "extension": {"servers": others}}],
        }}],
        "users": [{"name": ready.user, "user": {
            "client-certificate-data": encode(&ready.credential.certificate),
            "client-key-data": encode(&ready.credential.key),
        }}],
        "contexts": [{"name": "gantry", "context": {
            "cluster": "gantry", "user": ready.user, "namespace": ready.namespace,
        }}],
        "current-context": "gantry",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_everywhere() {
        for good in ["jane", "jane.doe@example.com", "1e3", "x-1"] {
            assert!(user_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in [
            "",
            "a/b",
            "../x",
            "system:admin",
            "-x",
            "a b",
            long.as_str(),
        ] {
            assert!(user_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_kubeconfig_for_others_names_an_address_of_others() {
        let local: SocketAddr = "127.0.0.1:6443".parse().expect("an address");
        let remote: SocketAddr = "192.0.2.1:6443".parse().expect("an address");
        let own = "https://127.0.0.1:6443/";
        assert_eq!(reachable(own, &[local]), own);
        assert_eq!(reachable(own, &[local, remote]), "https://192.0.2.1:6443");
        let other = "https://192.0.2.9:6443/";
        assert_eq!(reachable(other, &[local, remote]), other);
        assert_eq!(
            reachable("https://[::1]:6443/", &[remote]),
            "https://192.0.2.1:6443"
        );
    }

    #[test]
    fn clients_read_the_kubeconfig() {
        let made = Credential {
            certificate: "certificate".to_owned(),
            key: "key".to_owned(),
            lifetime: gantry_tls::Lifetime::from_now(std::time::Duration::from_secs(60)),
        };
        let value = kubeconfig(&Ready {
            user: "1e3",
            namespace: "team",
            server: "https://192.0.2.1:6443",
            servers: &["192.0.2.1:6443".parse().expect("an address")],
            trusted: "CA",
            credential: &made,
        });
        let text = gantry_api::yaml::to_string(&value);
        let read = kube::config::Kubeconfig::from_yaml(&text).expect("a kubeconfig");
        assert_eq!(read.auth_infos[0].name, "1e3");
        let context = read.contexts[0].context.as_ref().expect("a context");
        assert_eq!(context.namespace.as_deref(), Some("team"));
    }
}
