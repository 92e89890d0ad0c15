//! Private images: who may use what another pod has pulled. Needs docker-registry, skopeo and htpasswd.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, eventually};
use serde_json::{Value, json};

/// Loopback of the cluster's own machine, which registries are spoken to at without TLS.
const REGISTRY: &str = "127.0.0.1:5000";
const IMAGE: &str = "127.0.0.1:5000/team/tools:v1";

/// A registry on the cluster's machine that asks everybody for a password.
struct Registry {
    process: Child,
    directory: tempfile::TempDir,
}

impl Registry {
    fn start(cluster: &Cluster) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let users = Command::new("htpasswd")
            .args(["-nbB", "user", "right"])
            .output()
            .context("running htpasswd: install Debian's package apache2-utils")?;
        fs::write(directory.path().join("users"), users.stdout)?;
        let place = directory.path().display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\n\
             http: {{addr: '{REGISTRY}'}}\nauth: {{htpasswd: {{realm: test, path: {place}/users}}}}\n"
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, config)?;
        let process = cluster
            .command("docker-registry")
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting docker-registry")?;
        Ok(Self { process, directory })
    }

    /// Gives it the image, as soon as it listens.
    fn push(&self, cluster: &Cluster) -> Result<()> {
        let archive = self.directory.path().join("tools.tar");
        let busybox = fs::read("/bin/busybox").context("install busybox-static")?;
        gantry_demo::pack_tools(&busybox, File::create(&archive)?)?;
        let (from, to) = (
            format!("oci-archive:{}", archive.display()),
            format!("docker://{IMAGE}"),
        );
        let arguments = [
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            "--dest-creds=user:right",
            &from,
            &to,
        ];
        eventually("the registry to take the image", || {
            cluster.output("skopeo", &arguments).map(drop)
        })
    }

    fn stop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("cleaning up: {error}");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn create(cluster: &Cluster, name: &str, policy: &str, secret: Option<&str>) -> Result<()> {
    let secrets: Vec<Value> = secret.iter().map(|name| json!({"name": name})).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "imagePullSecrets": secrets,
            "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": policy}],
        },
    });
    let file = cluster.data_dir().join(format!("{name}.json"));
    fs::write(&file, pod.to_string())?;
    let file = file.display().to_string();
    cluster.kubectl(&["create", "-f", &file]).map(drop)
}

/// Waits until the pod's container runs, where no reasons are given, or waits for one of them.
fn comes_to(cluster: &Cluster, name: &str, reasons: &[&str]) -> Result<()> {
    eventually(&format!("pod {name} to come to {reasons:?}"), || {
        let pod = cluster.kubectl(&["get", "pod", name, "-o", "json"])?;
        let pod: Value = serde_json::from_str(&pod)?;
        let state = &pod["status"]["containerStatuses"][0]["state"];
        let reason = state["waiting"]["reason"].as_str();
        let holds = match reasons {
            [] => state["running"].is_object(),
            _ => reason.is_some_and(|reason| reasons.contains(&reason)),
        };
        ensure!(holds, "{state}");
        Ok(())
    })
}

#[test]
fn a_private_image_is_for_pods_that_may_pull_it() -> Result<()> {
    const REFUSED: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];
    let cluster = Cluster::start()?;
    let mut registry = Registry::start(&cluster)?;
    registry.push(&cluster)?;
    for (name, password) in [("own", "right"), ("same", "right"), ("wrong", "wrong")] {
        let password = format!("--docker-password={password}");
        let server = format!("--docker-server={REGISTRY}");
        let user = "--docker-username=user";
        cluster.kubectl(&[
            "create",
            "secret",
            "docker-registry",
            name,
            &server,
            user,
            &password,
        ])?;
    }
    create(&cluster, "first", "IfNotPresent", Some("own"))?;
    comes_to(&cluster, "first", &[])?;
    create(&cluster, "stranger", "IfNotPresent", None)?;
    comes_to(&cluster, "stranger", &REFUSED)?;
    create(&cluster, "liar", "IfNotPresent", Some("wrong"))?;
    comes_to(&cluster, "liar", &REFUSED)?;
    create(&cluster, "never", "Never", None)?;
    comes_to(&cluster, "never", &["ErrImageNeverPull"])?;
    // Who has shown it needs no registry.
    registry.stop();
    for (name, policy, secret) in [
        ("again", "IfNotPresent", "own"),
        ("other", "IfNotPresent", "same"),
        ("present", "Never", "own"),
    ] {
        create(&cluster, name, policy, Some(secret))?;
        comes_to(&cluster, name, &[])?;
    }
    comes_to(&cluster, "stranger", &REFUSED)
}
