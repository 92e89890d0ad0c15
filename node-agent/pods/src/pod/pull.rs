//! Getting a container's image by its pull policy, with the credentials of the pod and its account.

use std::sync::Arc;

use gantry_cri::image::{Credentials, Image, ImageError};
use gantry_cri::words;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};

use super::keyring::{self, Entry};
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
    let candidates = credentials(node, pod, &repository);
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
    let intent = node.pulls.intend(&reference).await.map_err(|error| {
        failed(format!(
            "Failed to record image pull intent for container image \"{written}\": {error}"
        ))
    })?;
    let mut refused = None;
    for candidate in candidates.into_iter().map(Some).chain([None]) {
        let (credentials, secret) = candidate.map(|one| (one.credentials, one.secret)).unzip();
        match images.pull(written, credentials, None).await {
            Ok(image) => {
                intent.pulled(&image, &repository, secret.as_ref()).await;
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

/// Credentials for a repository from the pod's and its account's pull secrets: the most specific first, as a kubelet orders
/// them, and those that are as specific in the order of the secrets.
fn credentials(node: &Node, pod: &Pod, repository: &str) -> Vec<Candidate> {
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
    let mut names: Vec<&str> = Vec::new();
    for reference in spec.image_pull_secrets.iter().flatten().chain(of_account) {
        // Admission has given the pod its account's.
        if !names.contains(&reference.name.as_str()) {
            names.push(&reference.name);
        }
    }
    let secrets = names.into_iter();
    let secrets = secrets.filter_map(|name| node.objects.secret(namespace, name));
    let entries: Vec<Entry<Arc<Secret>>> = secrets
        .flat_map(|secret| {
            let entries = keyring::of_secret(&secret).into_iter();
            entries.map(move |entry| entry.with(secret.clone()))
        })
        .collect();
    let fitting = keyring::fitting(entries, repository).into_iter();
    fitting
        .map(
            |Entry {
                 credentials, of, ..
             }| Candidate {
                secret: SecretUsed {
                    uid: of.metadata.uid.clone().unwrap_or_default(),
                    namespace: namespace.to_owned(),
                    name: of.metadata.name.clone().unwrap_or_default(),
                    credentials: credentials.fingerprint(),
                },
                credentials,
            },
        )
        .collect()
}
