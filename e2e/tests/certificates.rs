//! Certificates: renewed while everything runs, an authority replaced without a gap, and nodes that get theirs by a token.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, eventually};
use serde_json::Value;

/// Long enough for a busy machine to renew at two thirds of it.
const LIFE: Duration = Duration::from_secs(15);

fn certs(servers: &Fleet, at: &str) -> Result<Value> {
    let path = "/gantry/v1/certificates";
    let text = servers.kubectl(at, &["get", "--raw", path, "--request-timeout=5s"])?;
    Ok(serde_json::from_str(&text)?)
}

/// The certificates that servers show, as they keep them.
fn shown(servers: &Fleet) -> Result<Vec<String>> {
    let read = |name: &String| fs::read_to_string(servers.data_dir(name).join("pki/server.crt"));
    Ok(servers.names().iter().map(read).collect::<Result<_, _>>()?)
}

fn refused(attempt: Result<String>, words: &str) -> Result<()> {
    let said = format!("{:#}", attempt.err().context("it was not refused")?);
    ensure!(said.contains(words), "{said}");
    Ok(())
}

fn node_is_ready(servers: &Fleet, at: &str) -> Result<()> {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    let ready = servers.kubectl(at, &["get", "node", "node-1", "-o", path])?;
    ensure!(ready == "True", "Ready is {ready:?}");
    Ok(())
}

fn apply_web(servers: &Fleet, at: &str) -> Result<()> {
    let manifest = format!("{}/../deploy/examples/web.yaml", env!("CARGO_MANIFEST_DIR"));
    servers.gantry(at, &["apply", "-f", &manifest])?;
    servers.kubectl(at, &["rollout", "status", "deploy/web", "--timeout=90s"])?;
    Ok(())
}

/// Whether a file below a directory holds the text.
fn holds(directory: &Path, text: &str) -> Result<bool> {
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let found = match path.is_dir() {
            true => holds(&path, text)?,
            false => fs::read(&path)?
                .windows(text.len())
                .any(|window| window == text.as_bytes()),
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn certificates_are_renewed_while_everything_runs() -> Result<()> {
    let life = format!("{}s", LIFE.as_secs());
    let mut servers = Fleet::start_together(3, &["--certificate-life", &life])?;
    servers.add_node()?;
    let first = shown(&servers)?;
    let node_first = fs::read_to_string(servers.node_kubeconfig())?;
    // Two lives, in each of which every connection is a new one, and so is every client's certificate.
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < LIFE * 2 {
        let at = ["s1", "s2", "s3"][number % 3];
        let name = format!("written-{number}");
        servers
            .kubectl(at, &["create", "configmap", &name])
            .with_context(|| format!("after {:?}\n{}", began.elapsed(), servers.logs()))?;
        number += 1;
        if number == 20 {
            // The others find each other again, with certificates that none of them had at first.
            servers.kill("s2")?;
            servers.restart("s2")?;
        }
    }
    let now = shown(&servers)?;
    ensure!(
        first.iter().zip(&now).all(|(first, now)| first != now),
        "a server shows its first certificate still"
    );
    eventually("the node to have another certificate", || {
        let node_now = fs::read_to_string(servers.node_kubeconfig())?;
        ensure!(node_first != node_now, "it has its first");
        Ok(())
    })?;
    // The agent dials with what it has now.
    servers.kill_agent("node-1")?;
    servers.start_agent("node-1")?;
    apply_web(&servers, "s3")?;
    node_is_ready(&servers, "s1")?;

    // A server that was away for longer than its certificate lasts needs nobody's help.
    servers.kill("s3")?;
    let expired = Instant::now() + LIFE;
    let waited = servers.gantry("s1", &["certs"])?;
    ensure!(waited.contains("system:node:node-1"), "{waited}");
    while Instant::now() < expired {
        servers.kubectl("s1", &["get", "namespace", "default"])?;
    }
    servers.restart("s3")?;
    servers.kubectl("s3", &["get", "configmap", "written-0"])?;
    let text = servers.kubectl("s3", &["get", "--raw", "/metrics"])?;
    ensure!(
        text.contains("gantry_certificate_expiry_seconds{certificate=\"server\"}"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_authority_is_replaced_with_an_overlap() -> Result<()> {
    let mut servers = Fleet::start_together(3, &[])?;
    servers.add_node()?;
    let authority = fs::read_to_string(servers.authority())?;
    let old_copy = servers.data_dir("copy.kubeconfig");
    fs::copy(servers.kubeconfig("s1"), &old_copy)?;
    let with_copy = |servers: &Fleet| {
        let copy = old_copy.display().to_string();
        servers.offline(&["--kubeconfig", &copy, "get", "namespace", "default"])
    };
    let old_token = servers.gantry("s1", &["token", "create", "--for", "servers"])?;
    refused(
        servers.gantry("s2", &["certs", "rotate-ca", "--finish"]),
        "begin with 'gantry certs rotate-ca'",
    )?;

    // With a node that is away.
    servers.kill_agent("node-1")?;
    servers.gantry("s2", &["certs", "rotate-ca"])?;
    refused(
        servers.gantry("s2", &["certs", "rotate-ca"]),
        "is being replaced already",
    )?;
    eventually(
        "every server to have a certificate of the new authority",
        || {
            let certs = certs(&servers, "s1")?;
            let signs = &certs["authorities"][0]["fingerprint"];
            let listed = certs["certificates"].as_array().context("certificates")?;
            let of_servers = listed
                .iter()
                .filter(|one| one["user"] != "system:node:node-1");
            let renewed = of_servers.filter(|one| one["authority"] == *signs).count();
            ensure!(renewed == 6, "{certs:#}");
            Ok(())
        },
    )?;
    let listed = servers.gantry("s3", &["certs"])?;
    ensure!(listed.contains("no, trusted only"), "{listed}");
    for name in servers.names() {
        servers.kubectl(&name, &["get", "namespace", "default"])?;
    }
    with_copy(&servers).context("the old certificate, to a server with a new one")?;
    refused(
        servers.gantry("s1", &["certs", "rotate-ca", "--finish"]),
        "system:node:node-1",
    )?;
    // It has never heard of the new authority, and a server joins that has not either.
    servers.start_agent("node-1")?;
    let address = servers.address("s2")?.to_string();
    let joined = servers.add_with(&["--join", &address, "--token", old_token.trim()])?;
    eventually(
        "the node to have another certificate, and the end of the old authority",
        || {
            servers
                .gantry("s1", &["certs", "rotate-ca", "--finish"])
                .map(drop)
        },
    )?;
    eventually("the old certificate to be refused", || {
        ensure!(with_copy(&servers).is_err(), "it is accepted");
        Ok(())
    })?;
    let replaced = fs::read_to_string(servers.authority())?;
    ensure!(replaced.matches("BEGIN").count() == 1 && replaced != authority);
    eventually("pods to be told", || {
        let path = r"jsonpath={.data.ca\.crt}";
        let map = ["get", "configmap", "kube-root-ca.crt", "-o", path];
        let published = servers.kubectl("s3", &map)?;
        ensure!(published == replaced, "{published}");
        Ok(())
    })?;

    // Everybody meets everybody anew.
    servers.kill_agent("node-1")?;
    let all = servers.names();
    for name in &all {
        servers.terminate(name)?;
    }
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    servers.start_again(&names)?;
    servers.start_agent("node-1")?;
    apply_web(&servers, &joined)?;
    node_is_ready(&servers, "s1")
}

#[test]
fn the_authoritys_key_is_kept_encrypted_and_comes_back_with_a_backup() -> Result<()> {
    let mut servers = Fleet::start(2)?;
    let directory = tempfile::tempdir()?;
    let backup = directory
        .path()
        .join("cluster.backup")
        .display()
        .to_string();
    servers.gantry("s1", &["backup", "save", &backup])?;
    let authority = fs::read_to_string(servers.authority())?;
    let key = "PRIVATE KEY";
    ensure!(!holds(directory.path(), key)?, "the backup holds a key");
    for name in servers.names() {
        servers.terminate(&name)?;
        let data_dir = servers.data_dir(&name);
        ensure!(!holds(&data_dir.join("store"), key)?, "{name} holds a key");
        ensure!(!data_dir.join("pki/ca.key").exists());
        // Only its own, which signs nothing.
        let own = fs::read_to_string(data_dir.join("pki/server.key"))?;
        ensure!(own.contains(key), "{own}");
    }
    let (data_dir, keys) = (servers.data_dir("s3"), servers.data_dir("s1").join("keys"));
    servers.offline(&[
        "backup",
        "restore",
        &backup,
        "--data-dir",
        &data_dir.display().to_string(),
        "--keys",
        &keys.display().to_string(),
        "--name",
        "s3",
    ])?;
    servers.add_alone()?;
    ensure!(fs::read_to_string(data_dir.join("pki/ca.crt"))? == authority);
    servers.kubectl("s3", &["get", "namespace", "default"])?;
    Ok(())
}

#[test]
fn a_cluster_takes_the_authority_that_it_is_given() -> Result<()> {
    let mut servers = Fleet::start(1)?;
    let pki = servers.data_dir("s2").join("pki");
    fs::create_dir_all(&pki)?;
    let (certificate, key) = (pki.join("ca.crt"), pki.join("ca.key"));
    let own = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "an organisation's authority");
    let given = params.self_signed(&own)?.pem();
    fs::write(&certificate, &given)?;
    fs::write(&key, own.serialize_pem())?;
    servers.add_alone()?;
    ensure!(!key.exists(), "the key lies about");
    ensure!(fs::read_to_string(&certificate)?.trim() == given.trim());
    servers.kubectl("s2", &["get", "namespace", "default"])?;
    Ok(())
}

#[test]
fn a_node_joins_by_token() -> Result<()> {
    let mut servers = Fleet::start_together(1, &[])?;
    let address = servers.address("s1")?.to_string();
    let token = |servers: &Fleet, admits: &str| {
        let made = servers.gantry("s1", &["token", "create", "--for", admits])?;
        Ok::<_, anyhow::Error>(made.trim().to_owned())
    };
    let (good, for_servers, revoked) = (
        token(&servers, "nodes")?,
        token(&servers, "servers")?,
        token(&servers, "nodes")?,
    );
    servers.gantry("s1", &["token", "revoke", &revoked])?;
    let (half, hash) = good.rsplit_once('.').context("a hash")?;
    let foreign = format!("{half}.{}", hash.chars().rev().collect::<String>());
    for (token, words) in [
        (for_servers.as_str(), "does not admit nodes"),
        (&revoked, "does not accept the token"),
        (&foreign, "of another cluster than the token"),
        (half, "the token is not whole"),
    ] {
        let said = servers.agent_refuses(&["--join", &address, "--token", token])?;
        ensure!(said.contains(words), "{said}");
    }
    let said = servers.agent_refuses(&[])?;
    ensure!(said.contains("this machine is no node yet"), "{said}");

    servers.add_node_by_token(&good)?;
    apply_web(&servers, "s1")?;
    // Nobody else becomes it.
    let taken = [
        "--node-name",
        "node-1",
        "--join",
        &address,
        "--token",
        &good,
    ];
    let said = servers.agent_refuses(&taken)?;
    ensure!(
        said.contains("the node \"node-1\" is there and Ready"),
        "{said}"
    );
    // Tokens are for joining alone.
    servers.gantry("s1", &["token", "revoke", &good])?;
    servers.kill_agent("node-1")?;
    servers.start_agent("node-1")?;
    servers.kubectl("s1", &["scale", "deploy/web", "--replicas=4"])?;
    servers.kubectl("s1", &["rollout", "status", "deploy/web", "--timeout=90s"])?;
    Ok(())
}
