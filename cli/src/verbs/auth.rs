//! `gantry auth`: who one is to the cluster, and what one may do there.

mod rules;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, Credentials};
use crate::output::{self, Format};

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RULES: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";

/// Say who you are to the cluster, and what you may do
#[derive(Debug, clap::Args)]
pub(crate) struct Auth {
    #[command(subcommand)]
    command: AuthCommand,
    #[command(flatten)]
    acting: Acting,
}

/// Whom to act as.
#[derive(Debug, clap::Args)]
struct Acting {
    /// Ask as this user; system:serviceaccount:NAMESPACE:NAME is a service account
    #[arg(long = "as", global = true, value_name = "USER")]
    user: Option<String>,
    /// Ask as a member of this group; may be given several times
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    groups: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
enum AuthCommand {
    /// Whether an action is allowed: prints yes or no, and fails for no
    CanI(CanI),
    /// Which user, and of which groups
    Whoami {
        /// Output format: json or yaml
        #[arg(long, short)]
        output: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct CanI {
    /// VERB TYPE, VERB TYPE NAME, VERB TYPE/NAME, or VERB /PATH
    #[arg(value_name = "VERB")]
    words: Vec<String>,
    /// A part of the resource, such as log
    #[arg(long, default_value = "")]
    subresource: String,
    /// In all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// List everything that is allowed in the namespace
    #[arg(long)]
    list: bool,
    /// Print nothing
    #[arg(long, short)]
    quiet: bool,
    /// Print no headers
    #[arg(long)]
    no_headers: bool,
}

impl Auth {
    pub(crate) async fn run(&self, credentials: &Credentials) -> Result<ExitCode> {
        let mut cluster = Cluster::connect(credentials).await?;
        if self.acting.user.is_some() || !self.acting.groups.is_empty() {
            cluster.client = self.acting.client(credentials).await?;
        }
        match &self.command {
            AuthCommand::CanI(asked) if asked.list => asked.print_rules(&cluster).await,
            AuthCommand::CanI(asked) => asked.print_answer(&cluster).await,
            AuthCommand::Whoami { output } => {
                whoami(&cluster, Format::parse(output.as_deref())?).await
            }
        }
    }
}

impl Acting {
    async fn client(&self, credentials: &Credentials) -> Result<kube::Client> {
        if self.user.is_none() {
            bail!("--as-group says what groups a user is in: name the user with --as");
        }
        let mut config = credentials.find().await?;
        config.auth_info.impersonate = self.user.clone();
        config.auth_info.impersonate_groups =
            (!self.groups.is_empty()).then(|| self.groups.clone());
        kube::Client::try_from(config).context("setting up TLS from the kubeconfig")
    }
}

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Thing {
    Path(String),
    Resource { word: String, name: String },
}

/// The verb and what it is about.
fn parse(words: &[String]) -> Result<(&str, Thing)> {
    let resource = |word: &str, name: &str| Thing::Resource {
        word: word.to_owned(),
        name: name.to_owned(),
    };
    match words {
        [verb, path] if path.starts_with('/') => Ok((verb.as_str(), Thing::Path(path.clone()))),
        [verb, word] => match word.split_once('/') {
            Some((word, name)) => Ok((verb.as_str(), resource(word, name))),
            None => Ok((verb.as_str(), resource(word, ""))),
        },
        [verb, word, name] if !word.contains('/') => Ok((verb.as_str(), resource(word, name))),
        _ => bail!(
            "say VERB TYPE, VERB TYPE/NAME or VERB /PATH, as in 'gantry auth can-i list pods'"
        ),
    }
}

impl CanI {
    /// The attributes of the review. A type that the server does not know is asked about as it is written.
    async fn attributes(&self, cluster: &Cluster) -> Result<Value> {
        let (verb, thing) = parse(&self.words)?;
        let (word, name) = match thing {
            Thing::Path(path) if self.subresource.is_empty() => {
                return Ok(json!({"nonResourceAttributes": {"verb": verb, "path": path}}));
            }
            Thing::Path(_) => bail!("--subresource goes with a resource, not with a path"),
            Thing::Resource { word, name } => (word, name),
        };
        let mut namespace = match self.all_namespaces {
            true => "",
            false => cluster.namespace.as_str(),
        };
        let known = match word.as_str() {
            "*" => None,
            word => cluster.mapping(word).await.ok(),
        };
        let (group, resource) = match known {
            Some(mapping) => {
                if !mapping.namespaced {
                    if !self.all_namespaces && !self.quiet {
                        eprintln!(
                            "Warning: resource '{}' is not namespace scoped{}\n",
                            mapping.plural,
                            in_group(&mapping.group)
                        );
                    }
                    namespace = "";
                }
                (mapping.group.clone(), mapping.plural.clone())
            }
            None => {
                if word != "*" && !self.quiet {
                    eprintln!("Warning: the server doesn't have a resource type '{word}'\n");
                }
                let (resource, group) = word.split_once('.').unwrap_or((word.as_str(), ""));
                (group.to_owned(), resource.to_owned())
            }
        };
        Ok(json!({"resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "name": name,
            "subresource": self.subresource, "namespace": namespace,
        }}))
    }

    async fn print_answer(&self, cluster: &Cluster) -> Result<ExitCode> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": self.attributes(cluster).await?,
        });
        let answer = cluster
            .call(Call::send(Method::POST, ACCESS, &review))
            .await?;
        let status = &answer["status"];
        let allowed = status["allowed"] == true;
        if !self.quiet {
            output::print(&told(status, allowed))?;
        }
        Ok(match allowed {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    async fn print_rules(&self, cluster: &Cluster) -> Result<ExitCode> {
        if !self.words.is_empty() {
            bail!("--list lists everything: it goes without a verb");
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": cluster.namespace},
        });
        let answer = cluster
            .call(Call::send(Method::POST, RULES, &review))
            .await?;
        let status = &answer["status"];
        if status["incomplete"] == true {
            let why = status["evaluationError"]
                .as_str()
                .unwrap_or("no reason given");
            eprintln!("warning: the list may be incomplete: {why}");
        }
        output::print(&rules::table(status, !self.no_headers))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn in_group(group: &str) -> String {
    match group {
        "" => String::new(),
        group => format!(" in group '{group}'"),
    }
}

fn told(status: &Value, allowed: bool) -> String {
    if allowed {
        return "yes\n".to_owned();
    }
    let mut text = "no".to_owned();
    for field in ["reason", "evaluationError"] {
        if let Some(why) = status[field].as_str().filter(|why| !why.is_empty()) {
            text.push_str(" - ");
            text.push_str(why);
        }
    }
    text.push('\n');
    text
}

async fn whoami(cluster: &Cluster, format: Format) -> Result<ExitCode> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = cluster.call(Call::send(Method::POST, WHO, &review)).await?;
    let text = match format {
        Format::Table { .. } => attributes_table(&answer["status"]["userInfo"]),
        format => output::document(&answer, format)?,
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A list as kubectl writes one: `[a b]`.
fn written(list: &Value) -> String {
    let items = list.as_array().into_iter().flatten();
    let items: Vec<&str> = items.filter_map(Value::as_str).collect();
    format!("[{}]", items.join(" "))
}

fn attributes_table(user: &Value) -> String {
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![
        vec!["ATTRIBUTE".to_owned(), "VALUE".to_owned()],
        vec!["Username".to_owned(), text("username")],
    ];
    if !text("uid").is_empty() {
        lines.push(vec!["UID".to_owned(), text("uid")]);
    }
    if user["groups"].is_array() {
        lines.push(vec!["Groups".to_owned(), written(&user["groups"])]);
    }
    for (key, values) in user["extra"].as_object().into_iter().flatten() {
        lines.push(vec![format!("Extra: {key}"), written(values)]);
    }
    output::align(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_question_names_a_resource_or_a_path() {
        let resource = |word: &str, name: &str| Thing::Resource {
            word: word.to_owned(),
            name: name.to_owned(),
        };
        for (text, thing) in [
            ("get pods", resource("pods", "")),
            ("get pods/web", resource("pods", "web")),
            ("get deploy web", resource("deploy", "web")),
            ("get /healthz", Thing::Path("/healthz".to_owned())),
        ] {
            let words = words(text);
            assert_eq!(parse(&words).expect("understood"), ("get", thing));
        }
        for text in ["get", "get pods/a b", "get pods a b"] {
            assert!(parse(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn no_says_why() {
        assert_eq!(told(&json!({}), true), "yes\n");
        assert_eq!(told(&json!({}), false), "no\n");
        assert_eq!(told(&json!({"reason": "because"}), false), "no - because\n");
    }

    #[test]
    fn a_user_is_shown_with_what_it_has() {
        let user = json!({
            "username": "jane", "groups": ["a", "b"], "extra": {"scopes": ["view"]},
        });
        assert_eq!(
            attributes_table(&user),
            "ATTRIBUTE       VALUE\nUsername        jane\nGroups          [a b]\nExtra: scopes   [view]\n"
        );
    }
}
