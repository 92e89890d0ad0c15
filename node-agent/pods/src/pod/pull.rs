//! Getting a container's image by its pull policy, with the credentials of the pod and its account.

use gantry_cri::image::{Credentials, Image, ImageError};
use gantry_cri::words;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

use super::node::Node;
use crate::pull_records::SecretUsed;
use crate::traits::Severity;

/// Why there is no image: a waiting reason and its words.
#[derive(Debug)]
pub(crate) struct NoImage {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Worth trying again by itself.
    pub(crate) retry: bool,
}

enum Policy {
    Always,
    IfNotPresent,
    Never,
}

fn policy(container: &Container, reference: &str) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("IfNotPresent") => Policy::IfNotPresent,
        Some("Never") => Policy::Never,
        // What the API server would have written.
        _ if reference.ends_with(":latest") => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

/// Finds or pulls the image.
pub(crate) async fn image(node: &Node, pod: &Pod, container: &Container) -> Result<Image, NoImage> {
    let written = container.image.as_deref().unwrap_or_default();
    let invalid = |cause: String| NoImage {
        reason: "InvalidImageName",
        message: format!("Failed to apply default image tag \"{written}\": {cause}"),
        retry: false,
    };
    let reference =
        gantry_cri::image::normalise(written).map_err(|error| invalid(error.to_string()))?;
    let repository =
        gantry_cri::image::repository(written).map_err(|error| invalid(error.to_string()))?;
    let event = |severity, reason: &str, message: &str| {
        node.reports
            .event(pod, Some(&container.name), severity, reason, message);
    };
    let policy = policy(container, &reference);
    let candidates = credentials(node, pod, &reference);
    let secrets: Vec<SecretUsed> = candidates.iter().map(|one| one.secret.clone()).collect();
    let images = &*node.images;
    if !matches!(policy, Policy::Always)
        && let Some(image) = images.find(written).await
        && !node
            .pulls
            .must_pull(images, &repository, &image, &secrets)
            .await
    {
        event(
            Severity::Normal,
            "Pulled",
            &format!(
                "Container image \"{written}\" already present on machine and can be accessed by the pod"
            ),
        );
        return Ok(image);
    }
    if matches!(policy, Policy::Never) {
        let message =
            format!("Container image \"{written}\" is not present with pull policy of Never");
        event(Severity::Warning, "ErrImageNeverPull", &message);
        return Err(NoImage {
            reason: "ErrImageNeverPull",
            message,
            retry: true,
        });
    }
    event(
        Severity::Normal,
        "Pulling",
        &format!("Pulling image \"{written}\""),
    );
    let begun = tokio::time::Instant::now();
    let failed = |message: String| {
        let words = format!("Failed to pull image \"{written}\": {message}");
        event(Severity::Warning, "Failed", &words);
        event(Severity::Warning, "Failed", "Error: ErrImagePull");
        NoImage {
            reason: "ErrImagePull",
            message,
            retry: true,
        }
    };
    let intent = node.pulls.intend(&reference).map_err(|error| {
        failed(format!(
            "Failed to record image pull intent for container image \"{written}\": {error}"
        ))
    })?;
    let mut refused = None;
    for candidate in candidates.into_iter().map(Some).chain([None]) {
        let (credentials, secret) = candidate.map(|one| (one.credentials, one.secret)).unzip();
        match images.pull(written, credentials, None).await {
            Ok(image) => {
                intent.pulled(&image, &repository, secret.as_ref());
                let took = begun.elapsed().as_millis();
                let took = if took < 1000 {
                    format!("{took}ms")
                } else {
                    format!("{:.3}s", took as f64 / 1000.0)
                };
                let message = format!(
                    "Successfully pulled image \"{written}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size
                );
                event(Severity::Normal, "Pulled", &message);
                return Ok(image);
            }
            Err(ImageError::InvalidReference { cause, .. }) => return Err(invalid(cause)),
            // The first refusal is that of the most fitting credentials.
            Err(error) => refused = refused.or(Some(words(&error))),
        }
    }
    Err(failed(refused.unwrap_or_default()))
}

/// What a pod may be let in with, and the Secret that it is from.
struct Candidate {
    credentials: Credentials,
    secret: SecretUsed,
}

/// Credentials for a registry from the pod's and its account's pull secrets, in that order.
fn credentials(node: &Node, pod: &Pod, reference: &str) -> Vec<Candidate> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let account = spec
        .service_account_name
        .as_deref()
        .and_then(|name| node.objects.service_account(namespace, name));
    let of_account = account
        .iter()
        .flat_map(|account| account.image_pull_secrets.iter().flatten());
    let names = spec
        .image_pull_secrets
        .iter()
        .flatten()
        .chain(of_account)
        .map(|reference| reference.name.clone());
    names
        .filter_map(|name| node.objects.secret(namespace, &name))
        .flat_map(|secret| {
            let data = secret.data.clone().unwrap_or_default();
            let json = data
                .get(".dockerconfigjson")
                .map(|bytes| bytes.0.as_slice());
            let found = json.map(|json| from_docker_config(json, reference));
            let legacy = || {
                data.get(".dockercfg")
                    .map(|bytes| from_auths(parse(&bytes.0), reference))
            };
            let found = found.or_else(legacy).unwrap_or_default();
            found.into_iter().map(move |credentials| Candidate {
                secret: SecretUsed {
                    uid: secret.metadata.uid.clone().unwrap_or_default(),
                    namespace: namespace.to_owned(),
                    name: secret.metadata.name.clone().unwrap_or_default(),
                    credentials: credentials.fingerprint(),
                },
                credentials,
            })
        })
        .collect()
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_default()
}

fn from_docker_config(json: &[u8], reference: &str) -> Vec<Credentials> {
    from_auths(parse(json)["auths"].clone(), reference)
}

/// Those entries whose registry (and path, when there is one) the reference begins with; the longest first.
fn from_auths(auths: Value, reference: &str) -> Vec<Credentials> {
    let mut fitting: Vec<(usize, Credentials)> = auths
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(registry, entry)| {
            let bare = registry
                .trim_start_matches("https://")
                .trim_start_matches("http://")
                .trim_end_matches('/');
            let bare = match bare {
                "index.docker.io/v1" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
                other => other.trim_end_matches("/v1").trim_end_matches("/v2"),
            };
            let rest = reference.strip_prefix(bare)?;
            (rest.starts_with(['/', ':', '@']) || rest.is_empty()).then_some(())?;
            Some((bare.len(), of_entry(entry)?))
        })
        .collect();
    fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    fitting
        .into_iter()
        .map(|(_, credentials)| credentials)
        .collect()
}

fn of_entry(entry: &Value) -> Option<Credentials> {
    use base64::Engine as _;
    if let Some(encoded) = entry["auth"].as_str().filter(|auth| !auth.is_empty()) {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.split_once(':')?;
        return Some(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        });
    }
    let (username, password) = (entry["username"].as_str()?, entry["password"].as_str()?);
    Some(Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_credentials_come_first() {
        let config = br#"{"auths": {
            "registry.example": {"username": "a", "password": "1"},
            "https://registry.example/team": {"auth": "YjoyOjM="},
            "https://index.docker.io/v1/": {"username": "hub", "password": "h"}}}"#;
        let users = |reference: &str| -> Vec<(String, String)> {
            let all = from_docker_config(config, reference);
            all.into_iter()
                .map(|found| (found.username, found.password))
                .collect()
        };
        let pair = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(
            users("registry.example/team/app:1"),
            [pair("b", "2:3"), pair("a", "1")]
        );
        assert_eq!(users("registry.example/other:1"), [pair("a", "1")]);
        assert_eq!(users("registry.example.org/x:1"), []);
        assert_eq!(users("docker.io/library/nginx:1"), [pair("hub", "h")]);
    }

    #[test]
    fn a_secret_that_is_no_object_gives_no_credentials() {
        for wrong in [
            "",
            "[]",
            "null",
            "1",
            "{\"auths\": []}",
            "{\"auths\": {\"r\": []}}",
        ] {
            let found = from_docker_config(wrong.as_bytes(), "r/image");
            assert!(found.iter().all(|one| one.username.is_empty()), "{wrong}");
        }
    }
}
