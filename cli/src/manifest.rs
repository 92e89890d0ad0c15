//! Reads manifests from files, directories, URLs and standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use gantry_api::yaml;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// The most that is read from a URL, in bytes.
const MAX_DOWNLOAD: usize = 64 << 20;

/// One object and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) source: String,
    pub(crate) object: Value,
}

impl Manifest {
    fn field(&self, pointer: &str) -> &str {
        self.object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub(crate) fn api_version(&self) -> &str {
        self.field("/apiVersion")
    }

    pub(crate) fn kind(&self) -> &str {
        self.field("/kind")
    }

    pub(crate) fn name(&self) -> &str {
        self.field("/metadata/name")
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        Some(self.field("/metadata/namespace")).filter(|namespace| !namespace.is_empty())
    }
}

/// All objects of all sources, in order; `List` objects are unpacked.
pub(crate) async fn read_all(sources: &[String], recursive: bool) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for source in sources {
        if source == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("reading manifests from standard input")?;
            manifests.extend(parse(&text, "STDIN")?);
        } else if source.starts_with("http://") || source.starts_with("https://") {
            manifests.extend(parse(&fetch(source).await?, source)?);
        } else {
            for path in files(Path::new(source), recursive)? {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("reading the manifest {}", path.display()))?;
                manifests.extend(parse(&text, &path.display().to_string())?);
            }
        }
    }
    if manifests.is_empty() {
        bail!("no objects found in {}", sources.join(", "));
    }
    Ok(manifests)
}

/// The manifest files a path stands for, sorted by name within a directory.
fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .with_context(|| format!("reading the directory {}", path.display()))?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                found.extend(files(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension == *known)
        }) {
            found.push(entry);
        }
    }
    Ok(found)
}

fn parse(text: &str, source: &str) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let documents = yaml::documents(text.as_bytes());
    for document in documents.with_context(|| format!("error parsing {source}"))? {
        let object = document
            .to_value()
            .with_context(|| format!("error parsing {source}"))?;
        if object.is_null() {
            continue;
        }
        add(object, source, &mut manifests)?;
    }
    Ok(manifests)
}

fn add(object: Value, source: &str, manifests: &mut Vec<Manifest>) -> Result<()> {
    if !object.is_object() {
        bail!("error parsing {source}: a manifest is a mapping with apiVersion, kind and metadata");
    }
    let manifest = Manifest {
        source: source.to_owned(),
        object,
    };
    if manifest.kind().is_empty() {
        bail!("error validating \"{source}\": kind not set");
    }
    if manifest.api_version().is_empty() {
        bail!("error validating \"{source}\": apiVersion not set");
    }
    match manifest.object.get("items").and_then(Value::as_array) {
        Some(items) if manifest.kind().ends_with("List") => {
            for item in items {
                add(item.clone(), source, manifests)?;
            }
        }
        _ => manifests.push(manifest),
    }
    Ok(())
}

/// Downloads a manifest.
async fn fetch(url: &str) -> Result<String> {
    let uri: http::Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        bail!(
            "{url}: only http:// URLs can be read directly; download it and pass the file (curl -fsSL URL | gantry apply -f -)"
        );
    }
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .get(uri)
        .await
        .with_context(|| format!("reading {url}"))?;
    if !response.status().is_success() {
        bail!(
            "unable to read URL \"{url}\", server reported {}",
            response.status()
        );
    }
    let body = Limited::new(response.into_body(), MAX_DOWNLOAD)
        .collect()
        .await
        .map_err(|error| anyhow!("reading {url}: {error}"))?;
    String::from_utf8(body.to_bytes().to_vec()).with_context(|| format!("{url} is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_unpacked_in_order() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: x}}\n";
        let manifests = parse(text, "f.yaml").expect("valid");
        let names: Vec<_> = manifests
            .iter()
            .map(|m| (m.kind(), m.name(), m.namespace()))
            .collect();
        assert_eq!(
            names,
            [("ConfigMap", "a", None), ("Secret", "b", Some("x"))]
        );
    }

    #[test]
    fn a_bad_document_names_the_file() {
        for (text, words) in [
            ("a: [", "f.yaml"),
            ("kind: Pod", "apiVersion not set"),
            ("apiVersion: v1", "kind not set"),
            ("- 1", "a manifest is a mapping"),
        ] {
            let error = format!("{:#}", parse(text, "f.yaml").expect_err("invalid"));
            assert!(error.contains(words), "{error}");
        }
    }
}
