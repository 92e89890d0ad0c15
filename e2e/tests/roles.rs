//! People and their roles: a kubeconfig of one's own, what it allows, and what kubectl says of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
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

    // What was bound ends with its binding.
    cluster.kubectl(&["delete", "rolebinding", "jane-edit", "-n", "team"])?;
    let (_, said) = refused(&["get", "configmaps"])?;
    ensure!(said.contains("Forbidden"), "{said}");
    Ok(())
}
