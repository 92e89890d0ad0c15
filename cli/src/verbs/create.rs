//! `gantry create`: what is asked of the cluster and never stored. Objects are made with `gantry apply`.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use gantry_api::paths;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster};
use crate::duration;
use crate::output::{self, Format};

/// Create a token of a service account; objects are made with 'gantry apply'
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    #[command(subcommand)]
    command: CreateCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CreateCommand {
    /// Print a token of a service account, which ends by itself
    Token(AccountToken),
}

/// What a token may be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
enum Bound {
    Node,
    Pod,
    Secret,
}

impl Bound {
    fn kind(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Secret => "Secret",
        }
    }
}

#[derive(Debug, clap::Args)]
struct AccountToken {
    /// The service account
    name: String,
    /// How long it is to count: 10m, 24h; the server's choice when not given, and it may choose another
    #[arg(long, value_parser = duration::parse)]
    duration: Option<Duration>,
    /// Whom it is for; may be given several times. The API of the cluster when not given
    #[arg(long = "audience", value_name = "AUDIENCE")]
    audiences: Vec<String>,
    /// Kind of the object with which it ends
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        requires = "bound_object_name",
        value_name = "KIND"
    )]
    bound_object_kind: Option<Bound>,
    /// Name of the object with which it ends
    #[arg(long, requires = "bound_object_kind", value_name = "NAME")]
    bound_object_name: Option<String>,
    /// The very object of that name; the one that is there when not given
    #[arg(long, requires = "bound_object_kind", value_name = "UID")]
    bound_object_uid: Option<String>,
    /// Print the whole answer: json, yaml or name
    #[arg(long, short)]
    output: Option<String>,
}

impl Create {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match &self.command {
            CreateCommand::Token(token) => token.run(cluster).await,
        }
    }
}

impl AccountToken {
    async fn run(&self, cluster: &Cluster) -> Result<()> {
        let format = Format::parse(self.output.as_deref())?;
        let account = ["serviceaccounts", self.name.as_str(), "token"];
        let path = paths::namespaced(&cluster.namespace, &account);
        let answer = cluster
            .call(Call::send(Method::POST, &path, &self.request()))
            .await?;
        let text = match format {
            Format::Table { .. } => match answer["status"]["token"].as_str() {
                Some(token) if !token.is_empty() => format!("{token}\n"),
                _ => bail!("the server answered without a token"),
            },
            Format::Name => format!("tokenrequest.authentication.k8s.io/{}\n", self.name),
            format => output::document(&answer, format)?,
        };
        output::print(&text)
    }

    /// The TokenRequest. What is not said the server decides.
    fn request(&self) -> Value {
        let seconds = self.duration.map(|life| life.as_secs());
        let bound = self.bound_object_kind.map(|bound| {
            json!({
                "apiVersion": "v1", "kind": bound.kind(),
                "name": self.bound_object_name, "uid": self.bound_object_uid,
            })
        });
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": self.audiences,
                // As for kubectl, none is no wish.
                "expirationSeconds": seconds.filter(|seconds| *seconds > 0),
                "boundObjectRef": bound,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn asked(line: &str) -> Result<Value, clap::Error> {
        let line = Line::try_parse_from(line.split(' '))?;
        let CreateCommand::Token(token) = &line.create.command;
        Ok(token.request()["spec"].clone())
    }

    #[test]
    fn what_is_not_said_is_the_servers_choice() {
        let spec = json!({"audiences": [], "expirationSeconds": null, "boundObjectRef": null});
        assert_eq!(asked("create token sa").expect("understood"), spec);
        let zero = asked("create token sa --duration 0s").expect("understood");
        assert_eq!(zero, spec);
    }

    #[test]
    fn a_token_is_for_whom_and_for_as_long_as_is_said() {
        let line = "create token sa --duration 10m --audience a --audience b --bound-object-kind Pod --bound-object-name p";
        let spec = json!({
            "audiences": ["a", "b"], "expirationSeconds": 600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": null},
        });
        assert_eq!(asked(line).expect("understood"), spec);
        for wrong in [
            "create token",
            "create token sa --duration soon",
            "create token sa --bound-object-kind Pod",
            "create token sa --bound-object-name p",
            "create token sa --bound-object-uid u",
            "create token sa --bound-object-kind ConfigMap --bound-object-name m",
        ] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }
}
