//! People and their roles: a kubeconfig of one's own, what it allows, and what kubectl says of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, gantry};

#[test]
fn a_person_may_what_her_role_says_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.kubectl(&["create", "namespace", "team"])?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("jane.kubeconfig");
    let file = file.display().to_string();
    let create = ["user", "create", "jane", "--role", "edit", "-n", "team"];
    cluster.gantry(&[&create[..], &["--group", "devs", "--output", &file]].concat())?;
    let mode = Path::new(&file).metadata()?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    let own = ["--kubeconfig", file.as_str()];
    let jane = |arguments: &[&str]| cluster.kubectl(&[&own[..], arguments].concat());
    let refused = |arguments: &[&str]| {
        let arguments = [&own[..], arguments].concat();
        cluster.fails(Path::new("kubectl"), &arguments)
    };
    // The file names her namespace.
    jane(&["create", "configmap", "hers"])?;
    ensure!(jane(&["get", "configmaps", "-o", "name"])?.contains("configmap/hers"));
    let (_, said) = refused(&["get", "nodes"])?;
    ensure!(
        said.contains("User \"jane\" cannot list resource \"nodes\""),
        "{said}"
    );
    let role = [
        "create",
        "rolebinding",
        "more",
        "--user",
        "jane",
        "--clusterrole",
    ];
    let (_, said) = refused(&[&role[..], &["admin"]].concat())?;
    ensure!(
        said.contains("cannot create resource \"rolebindings\""),
        "{said}"
    );

    let who = jane(&["auth", "whoami"])?;
    ensure!(
        who.contains("jane") && who.contains("[devs system:authenticated]"),
        "{who}"
    );
    ensure!(jane(&["auth", "can-i", "create", "deployments"])?.trim() == "yes");
    let (code, _) = refused(&["auth", "can-i", "list", "nodes"])?;
    ensure!(code == 1, "{code}");
    let list = jane(&["auth", "can-i", "--list"])?;
    ensure!(
        list.contains("deployments.apps") && list.contains("/healthz"),
        "{list}"
    );

    // The same from our own client, and for the administrator who acts as her.
    let ours = cluster.gantry(&[&own[..], &["auth", "whoami"]].concat())?;
    ensure!(
        ours.split_whitespace().eq(who.split_whitespace()),
        "{ours}{who}"
    );
    let asks = ["auth", "can-i", "create", "deployments", "--as", "jane"];
    ensure!(cluster.gantry(&[&asks[..], &["-n", "team"]].concat())? == "yes\n");
    let elsewhere = [&asks[..], &["-n", "default"]].concat();
    let (code, _) = cluster.fails(&gantry()?, &elsewhere)?;
    ensure!(code == 1, "{code}");
    let ours = [&own[..], &["auth", "can-i", "--list"]].concat();
    ensure!(cluster.gantry(&ours)?.lines().count() == list.lines().count());

    tokens_are_given_out_and_tell_whose_they_are(&cluster)?;
    everything_that_is_served_is_described(&cluster)?;

    // What was bound ends with its binding.
    let listed = cluster.gantry(&["user", "ls"])?;
    let row = ["jane", "edit", "team", "jane-edit"];
    ensure!(
        listed.lines().any(|line| line.split_whitespace().eq(row)),
        "{listed}"
    );
    cluster.gantry(&["user", "rm", "jane"])?;
    let (_, said) = cluster.fails(&gantry()?, &["user", "rm", "jane"])?;
    ensure!(said.contains("has given jane no role"), "{said}");
    let (_, said) = refused(&["get", "configmaps"])?;
    ensure!(said.contains("Forbidden"), "{said}");
    Ok(())
}

/// `create token` of kubectl and of our own client.
fn tokens_are_given_out_and_tell_whose_they_are(cluster: &Cluster) -> Result<()> {
    let create = ["create", "token", "default", "-n", "team"];
    let create = [&create[..], &["--duration", "10m"]].concat();
    for token in [cluster.kubectl(&create)?, cluster.gantry(&create)?] {
        let nobody_else = [
            "--kubeconfig",
            "/dev/null",
            "--server",
            "https://127.0.0.1:6443",
            "--insecure-skip-tls-verify",
            "--token",
            token.trim(),
        ];
        let who = cluster.kubectl(&[&nobody_else[..], &["auth", "whoami"]].concat())?;
        ensure!(who.contains("system:serviceaccount:team:default"), "{who}");
    }
    let bound = [
        "--bound-object-kind",
        "Secret",
        "--bound-object-name",
        "none",
    ];
    let (_, said) = cluster.fails(&gantry()?, &[&create[..], &bound].concat())?;
    ensure!(said.contains("secrets \"none\" not found"), "{said}");
    Ok(())
}

/// Every document that leads to the next one, by hand, and what kubectl makes of all of it.
fn everything_that_is_served_is_described(cluster: &Cluster) -> Result<()> {
    let raw = |path: &str| -> Result<serde_json::Value> {
        let text = cluster.kubectl(&["get", "--raw", path])?;
        serde_json::from_str(&text).with_context(|| format!("{path}: {text:.200}"))
    };
    let texts = |values: &serde_json::Value, field: &str| -> Vec<String> {
        let values = values.as_array().into_iter().flatten();
        let texts = values.filter_map(|value| match field {
            "" => value.as_str(),
            field => value[field].as_str(),
        });
        texts.map(str::to_owned).collect()
    };
    let mut documents = vec!["/version".to_owned(), "/openapi/v2".to_owned()];
    for version in texts(&raw("/api")?["versions"], "") {
        documents.push(format!("/api/{version}"));
    }
    let groups = raw("/apis")?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        documents.extend(group["name"].as_str().map(|name| format!("/apis/{name}")));
        let versions = texts(&group["versions"], "groupVersion").into_iter();
        documents.extend(versions.map(|version| format!("/apis/{version}")));
    }
    let openapi = raw("/openapi/v3")?;
    for document in openapi["paths"].as_object().into_iter().flatten() {
        let url = document.1["serverRelativeURL"].as_str();
        documents.push(url.context("an URL")?.to_owned());
    }
    ensure!(documents.len() > 30, "{documents:?}");
    for path in &documents {
        ensure!(raw(path)?.is_object(), "{path}");
    }
    let paths = raw("/")?;
    ensure!(texts(&paths["paths"], "").contains(&"/apis".to_owned()));
    for path in ["/healthz", "/livez?verbose", "/readyz", "/metrics"] {
        ensure!(!cluster.kubectl(&["get", "--raw", path])?.is_empty());
    }

    let dump = cluster.kubectl(&["cluster-info", "dump"])?;
    for kind in ["NodeList", "EventList", "DaemonSetList", "PodList"] {
        ensure!(dump.contains(&format!("\"kind\": \"{kind}\"")), "{kind}");
    }
    Ok(())
}
