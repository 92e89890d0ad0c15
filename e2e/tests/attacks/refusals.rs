//! Row 14: what is refused, in which words, and how often somebody may be refused.

use anyhow::{Context, Result, bail, ensure};
use gantry_e2e::until;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::nodes::{patient, token};

#[tokio::test(flavor = "multi_thread")]
async fn row_14_refused_credentials_are_told_and_slowed_down() -> Result<()> {
    let fleet = patient(1)?;
    let server = fleet.address("s1")?;
    let attempt = async |token: &str| -> Result<StatusCode> {
        let request =
            Request::get("/api/v1/namespaces").header("authorization", format!("Bearer {token}"));
        let tls = gantry_tls::anyone()?;
        let (code, _) = gantry_tls::request(server, tls, request.body(Full::default())?).await?;
        Ok(code)
    };
    let (mut refused, mut slowed) = (0, 0);
    for number in 0..60 {
        match attempt(&format!("abcdef.{number:016}")).await? {
            StatusCode::UNAUTHORIZED => refused += 1,
            StatusCode::TOO_MANY_REQUESTS => slowed += 1,
            other => bail!("{other}"),
        }
    }
    ensure!(
        refused > 0 && slowed > 20,
        "{refused} refused, {slowed} slowed down"
    );
    // Certificates from there count as before.
    fleet.kubectl("s1", &["get", "namespaces"])?;
    let metrics = fleet.kubectl("s1", &["get", "--raw", "/metrics"])?;
    for result in ["failure", "limited"] {
        ensure!(
            metrics.contains(&format!("authentication_attempts{{result=\"{result}\"}}")),
            "{result}"
        );
    }
    let log = std::fs::read_to_string(fleet.data_dir("s1.log"))?;
    let lines = log
        .lines()
        .filter(|line| line.contains("credentials were refused"));
    let lines: Vec<&str> = lines.collect();
    ensure!(
        (1..10).contains(&lines.len()),
        "{} lines:\n{log}",
        lines.len()
    );
    ensure!(
        lines[0].contains("abcdef") && lines[0].contains("127.0.0.1"),
        "{}",
        lines[0]
    );
    ensure!(
        !log.contains("0000000000000000"),
        "a secret is in the log:\n{log}"
    );
    // A right one is taken again after a moment.
    let right = token(&fleet, &[])?;
    let right = right.rsplit_once('.').context("a token")?.0.to_owned();
    until("a right token to be looked at", async || {
        let code = attempt(&right).await?;
        ensure!(code == StatusCode::FORBIDDEN, "{code}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_14_namespaces_say_how_much_of_a_node_pods_may_have() -> Result<()> {
    let fleet = patient(1)?;
    let namespace = |name: &str, mode: &str, level: &str| {
        fleet.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
            "labels": {format!("pod-security.kubernetes.io/{mode}"): level}}}),
        )
    };
    namespace("strict", "enforce", "restricted")?;
    namespace("base", "enforce", "baseline")?;
    namespace("warned", "warn", "baseline")?;
    let pod = |namespace: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": namespace}, "spec": spec});
    let plain = |besides: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        for (key, value) in besides.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    };
    let refused = |object: &Value| -> Result<String> {
        Ok(format!(
            "{:#}",
            fleet.apply(object).err().context("it was accepted")?
        ))
    };
    let said = refused(&pod("strict", plain(json!({}))))?;
    let words = "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set \
                 securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
                 securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set \
                 securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \
                 \"RuntimeDefault\" or \"Localhost\")";
    ensure!(said.contains(words), "{said}");
    for (spec, words) in [
        (
            plain(json!({"hostPID": true, "hostNetwork": true})),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            plain(json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]})),
            "hostPath volumes (volume \"h\")",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]}),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "securityContext": {"capabilities": {"add": ["NET_RAW"]}}}]}),
            "non-default capabilities (container \"c\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
        ),
        (
            plain(
                json!({"securityContext": {"sysctls": [{"name": "kernel.core_pattern", "value": "|/x"}]}}),
            ),
            "forbidden sysctls (kernel.core_pattern)",
        ),
    ] {
        let said = refused(&pod("base", spec))?;
        ensure!(
            said.contains(&format!(
                "violates PodSecurity \"baseline:latest\": {words}"
            )),
            "{said}"
        );
    }
    fleet.apply(&pod("base", plain(json!({}))))?;
    fleet.apply(&pod("warned", plain(json!({"hostPID": true}))))?;
    // What is there already is told of when its namespace becomes stricter, and labels that say nothing are refused.
    let label = |value: &str| {
        let label = format!("pod-security.kubernetes.io/{value}");
        let mut kubectl = fleet.command(std::path::Path::new("kubectl"));
        kubectl.arg("--kubeconfig").arg(fleet.kubeconfig("s1"));
        kubectl.args(["label", "--overwrite", "namespace", "warned", &label]);
        let output = kubectl.output()?;
        anyhow::Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let said = label("enforce=baseline")?;
    let words = "existing pods in namespace \"warned\" violate the new PodSecurity enforce level \"baseline:latest\"";
    ensure!(
        said.contains(words) && said.contains("x: host namespaces"),
        "{said}"
    );
    for (wrong, words) in [
        (
            "enforce=strict",
            "must be one of privileged, baseline, restricted",
        ),
        ("warn-version=1", "must be \"latest\" or \"v1.x\""),
    ] {
        let said = label(wrong)?;
        ensure!(said.contains(words), "{said}");
    }
    Ok(())
}
