//! A program as people write them with kube-rs, for a pod with a service account of its own: it says once a second what it may
//! do, with which token, and which token its file holds. One client is made at the start and used to the end.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// 200, the code of a refusal, or what went wrong on the way.
fn answered<T>(answer: kube::Result<T>) -> Value {
    match answer {
        Ok(_) => json!(200),
        Err(kube::Error::Api(status)) => json!(status.code),
        Err(error) => json!(error.to_string()),
    }
}

/// The id of the token in the file, as `credential-id` has it.
fn in_file() -> Result<String> {
    let token = std::fs::read_to_string(TOKEN).context("reading the token")?;
    let payload = token.split('.').nth(1).context("a token has three parts")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    let id = claims["jti"].as_str().context("a token has an id")?;
    Ok(format!("JTI={id}"))
}

/// The id of the token that the client shows.
async fn shown(client: &Client) -> Result<String> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let asked = SelfSubjectReview::default();
    let review = reviews.create(&PostParams::default(), &asked).await?;
    let user = review.status.and_then(|status| status.user_info);
    let extra = user.and_then(|user| user.extra).unwrap_or_default();
    let id = extra.get(CREDENTIAL_ID).and_then(|ids| ids.first());
    Ok(id.context("the token's id is missing")?.clone())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = Client::try_default().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let all = ListParams::default();
    let text = |told: Result<String>| told.unwrap_or_else(|error| format!("{error:#}"));
    loop {
        let line = json!({
            "pods": answered(pods.list(&all).await),
            "secrets": answered(secrets.list(&all).await),
            "file": text(in_file()),
            "shown": text(shown(&client).await),
        });
        println!("{line}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
