//! Reads manifests from files, directories, URLs and standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use gantry_api::json::Members;
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

/// All objects of all sources, in order; lists are unpacked.
pub(crate) async fn read_all(sources: &[String], recursive: bool) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for source in sources {
        if source == "-" {
            let mut text = Vec::new();
            std::io::stdin()
                .read_to_end(&mut text)
                .context("reading manifests from standard input")?;
            manifests.extend(parse(&text, "STDIN")?);
        } else if source.starts_with("http://") || source.starts_with("https://") {
            manifests.extend(parse(&fetch(source).await?, source)?);
        } else {
            for path in files(Path::new(source), recursive)? {
                let text = std::fs::read(&path)
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

fn parse(text: &[u8], source: &str) -> Result<Vec<Manifest>> {
    let objects = yaml::objects(text).with_context(|| format!("error parsing {source}"))?;
    for duplicate in &objects.duplicates {
        eprintln!("Warning: {source}: {duplicate}: the last one counts");
    }
    let mut manifests = Vec::new();
    for object in objects.values {
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
    let missing: Vec<&str> = [
        ("apiVersion not set", manifest.api_version()),
        ("kind not set", manifest.kind()),
    ]
    .into_iter()
    .filter(|(_, text)| text.is_empty())
    .map(|(what, _)| what)
    .collect();
    match missing.as_slice() {
        [] => {}
        [what] => bail!("error validating \"{source}\": error validating data: {what}"),
        both => bail!(
            "error validating \"{source}\": error validating data: [{}]",
            both.join(", ")
        ),
    }
    let item_kind = manifest.kind().strip_suffix("List");
    match (item_kind, manifest.object.get("items")) {
        (Some(_), Some(Value::Null)) => {}
        (Some(kind), Some(Value::Array(items))) => {
            for item in items {
                let mut item = item.clone();
                // Items of a typed list say what they are only where they differ.
                if item.get("kind").is_none()
                    && item.get("apiVersion").is_none()
                    && item.is_object()
                {
                    *item.member(&["kind"]) = Value::from(kind);
                    *item.member(&["apiVersion"]) = Value::from(manifest.api_version());
                }
                add(item, source, manifests)?;
            }
        }
        _ => manifests.push(manifest),
    }
    Ok(())
}

/// Downloads a manifest.
async fn fetch(url: &str) -> Result<Vec<u8>> {
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
    Ok(body.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_unpacked_in_order() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: x}}\n";
        let manifests = parse(text.as_bytes(), "f.yaml").expect("valid");
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
            ("kind: Pod", "error validating data: apiVersion not set"),
            ("apiVersion: v1", "error validating data: kind not set"),
            ("a: 1", "data: [apiVersion not set, kind not set]"),
            (
                "apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]",
                "kind not set",
            ),
            ("- 1", "a manifest is a mapping"),
        ] {
            let error = parse(text.as_bytes(), "f.yaml").expect_err("invalid");
            let error = format!("{error:#}");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn items_of_typed_lists_are_of_the_lists_kind() {
        let text = br#"{"apiVersion":"v1","kind":"ConfigMapList","items":[
            {"metadata":{"name":"a"}},{"apiVersion":"v1","kind":"Secret","metadata":{"name":"b"}}]}
            {"apiVersion":"v1","kind":"PodList","items":null}"#;
        let manifests = parse(text, "f.json").expect("valid");
        let said: Vec<_> = manifests
            .iter()
            .map(|manifest| (manifest.api_version(), manifest.kind(), manifest.name()))
            .collect();
        assert_eq!(said, [("v1", "ConfigMap", "a"), ("v1", "Secret", "b")]);
    }
}
