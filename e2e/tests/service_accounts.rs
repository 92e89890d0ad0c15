//! Pods and the API: a program written with kube-rs, with an account of its own.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, eventually, pack_program};
use serde_json::{Value, json};

const IMAGE: &str = "gantry.local/pod-client:v1";

/// An account that may look at pods, and a pod that runs as it.
fn looker() -> Value {
    let meta = json!({"name": "looker", "namespace": "default"});
    json!([
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta,
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "looker"},
            "subjects": [{"kind": "ServiceAccount", "name": "looker", "namespace": "default"}],
        },
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "default"},
            "spec": {
                "serviceAccountName": "looker", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "client", "image": IMAGE, "imagePullPolicy": "Never"}],
            },
        },
    ])
}

fn apply(cluster: &Cluster, directory: &Path, objects: &Value) -> Result<()> {
    let objects = objects.as_array().into_iter().flatten();
    let documents: Vec<String> = objects.map(Value::to_string).collect();
    let manifest = directory.join("objects.yaml");
    std::fs::write(&manifest, documents.join("\n"))?;
    cluster.kubectl(&["apply", "-f", &manifest.display().to_string()])?;
    Ok(())
}

/// Whether the program may do what its Role says, and nothing else.
fn is_well(said: &Value) -> bool {
    said["pods"] == 200 && said["secrets"] == 403
}

/// All that the program has said.
fn lines(cluster: &Cluster) -> Result<Vec<Value>> {
    let lines = cluster.kubectl(&["logs", "client"])?;
    let said = lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    said.collect()
}

/// What it said last.
fn said(cluster: &Cluster) -> Result<Value> {
    lines(cluster)?
        .pop()
        .context("it has not said anything yet")
}

/// What the API answers to a token.
fn status_of(cluster: &Cluster, token: &str) -> Result<String> {
    let authorization = format!("Authorization: Bearer {token}");
    let url = "https://127.0.0.1:6443/api/v1/namespaces/default/pods";
    let wanted = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H"];
    let arguments = [&wanted[..], &[authorization.as_str(), url]].concat();
    cluster.output("curl", &arguments)
}

#[test]
fn a_program_in_a_pod_may_what_its_role_says_also_with_its_next_token() -> Result<()> {
    let cluster = Cluster::start_with(&["--token-refresh", "5s"])?;
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("client.tar");
    pack_program(IMAGE, "gantry-pod-client", &image)?;
    let (data_dir, image) = (cluster.data_dir(), image.display().to_string());
    let data_dir = data_dir.display().to_string();
    cluster.gantry(&["image", "import", "--data-dir", &data_dir, &image])?;
    apply(&cluster, directory.path(), &looker())?;
    let first = eventually("the program to do what it may", || {
        let said = said(&cluster)?;
        ensure!(is_well(&said), "{said}");
        Ok(said)
    })?;

    let token = cluster.kubectl(&["create", "token", "looker"])?;
    let token = token.trim();
    ensure!(status_of(&cluster, token)? == "200");
    cluster.gantry(&["secrets", "rotate-token-key"])?;
    ensure!(
        status_of(&cluster, token)? == "200",
        "the old key still verifies"
    );
    let rotated = said(&cluster)?;
    let old = [&first["shown"], &rotated["shown"], &rotated["file"]];
    eventually("the program to show a token of the new key", || {
        let said = said(&cluster)?;
        ensure!(is_well(&said) && !old.contains(&&said["shown"]), "{said}");
        Ok(())
    })?;
    cluster.gantry(&["secrets", "rotate-token-key", "--drop-old"])?;
    ensure!(status_of(&cluster, token)? == "401", "its key is gone");
    let dropped = lines(&cluster)?.len();
    let all = eventually("it to go on without the old key", || {
        let all = lines(&cluster)?;
        ensure!(all.len() > dropped + 2, "{} lines", all.len());
        Ok(all)
    })?;
    let mut all = all.iter().skip_while(|said| !is_well(said));
    let trouble = all.find(|said| !is_well(said));
    ensure!(trouble.is_none(), "{trouble:?}");

    // With its account ends what it may do.
    cluster.kubectl(&["delete", "serviceaccount", "looker"])?;
    eventually("the program to be nobody", || {
        let said = said(&cluster)?;
        ensure!(said["pods"] == 401, "{said}");
        Ok(())
    })
}

#[test]
fn a_secret_of_an_account_is_filled_and_goes_with_it() -> Result<()> {
    let cluster = Cluster::start()?;
    let directory = tempfile::tempdir()?;
    let objects = json!([
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "old", "namespace": "default"}},
        {
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {
                "name": "token", "namespace": "default",
                "annotations": {"kubernetes.io/service-account.name": "old"},
            },
        },
    ]);
    apply(&cluster, directory.path(), &objects)?;
    // It is known, and may do nothing: no role says so.
    let status = eventually("the secret to hold a token", || {
        let template = "go-template={{.data.token | base64decode}}";
        let token = cluster.kubectl(&["get", "secret", "token", "-o", template])?;
        ensure!(token.split('.').count() == 3, "{token}");
        status_of(&cluster, token.trim())
    })?;
    ensure!(status == "403", "{status}");
    cluster.kubectl(&["delete", "serviceaccount", "old"])?;
    eventually("the secret to go with the account", || {
        let secret = ["get", "secret", "token", "--ignore-not-found", "-o", "name"];
        let left = cluster.kubectl(&secret)?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}
