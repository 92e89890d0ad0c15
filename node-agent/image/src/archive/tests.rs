//! Archives as others write them, unpacked already: what their images are called.

use gantry_cri::image::digest;
use serde_json::{Value, json};

use super::*;

/// An archive's directory.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn write(&self, name: &str, content: &Value) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("below the directory")).expect("makes");
        std::fs::write(path, content.to_string()).expect("writes");
    }

    fn blob(&self, content: &Value) -> String {
        let digest = digest(content.to_string().as_bytes());
        self.write(&blob_path(&digest), content);
        digest
    }

    /// An image without layers, told from others by its command; the digest of its manifest.
    fn image(&self, command: &str) -> String {
        let config = self.blob(&config(command));
        self.blob(&json!({"config": {"digest": config}, "layers": []}))
    }

    fn index(&self, manifests: &[Value]) {
        self.write("index.json", &json!({"manifests": manifests}));
    }

    /// The names of each image.
    fn names(&self) -> Result<Vec<Vec<String>>, String> {
        let names = |image: ArchivedImage| [image.tags, image.digests].concat();
        match list(self.0.path()) {
            Ok(images) => Ok(images.into_iter().map(names).collect()),
            Err(Refusal::Archive(cause)) => Err(cause),
            Err(Refusal::Name(error)) => Err(error.to_string()),
        }
    }
}

fn config(command: &str) -> Value {
    json!({"config": {"Cmd": [command]}, "rootfs": {"type": "layers", "diff_ids": []}})
}

fn entry(digest: &str, annotations: Value) -> Value {
    json!({"digest": digest, "annotations": annotations})
}

#[test]
fn every_name_of_a_docker_archive_is_taken() {
    let layout = Layout::new();
    layout.write("a.json", &config("a"));
    layout.write("b.json", &config("b"));
    layout.write(
        "manifest.json",
        &json!([
            {"Config": "a.json", "RepoTags": ["web:1", "registry.example/web:2"], "Layers": []},
            {"Config": "b.json", "RepoTags": null, "Layers": []},
            {"Config": "a.json", "RepoTags": ["web:3", "web:1", "<none>:<none>"], "Layers": []},
        ]),
    );
    let all = [
        "docker.io/library/web:1",
        "registry.example/web:2",
        "docker.io/library/web:3",
    ];
    assert_eq!(
        layout.names(),
        Ok(vec![all.map(str::to_owned).into(), vec![]])
    );
}

#[test]
fn every_entry_of_an_index_gives_its_image_a_name() {
    let layout = Layout::new();
    let (one, two) = (layout.image("one"), layout.image("two"));
    layout.index(&[
        entry(&one, json!({REF_NAME: "registry.example/one:1"})),
        entry(
            &one,
            json!({FULL_NAME: "registry.example/one:2", REF_NAME: "2"}),
        ),
        entry(&two, json!({REF_NAME: "latest"})),
        entry(&one, json!({FULL_NAME: "", REF_NAME: "three"})),
        entry(
            &one,
            json!({FULL_NAME: format!("registry.example/one@{one}")}),
        ),
    ]);
    let all = vec![
        "registry.example/one:1".to_owned(),
        "registry.example/one:2".to_owned(),
        format!("registry.example/one@{one}"),
    ];
    assert_eq!(layout.names(), Ok(vec![all, vec![]]));
}

#[test]
fn names_come_from_the_index_where_docker_has_none() {
    let layout = Layout::new();
    let one = layout.image("one");
    layout.index(&[entry(&one, json!({FULL_NAME: "registry.example/one:1"}))]);
    layout.write("one.json", &config("one"));
    let nameless = json!([{"Config": "one.json", "Layers": []}]);
    layout.write("manifest.json", &nameless);
    assert_eq!(
        layout.names(),
        Ok(vec![vec!["registry.example/one:1".to_owned()]])
    );
}

#[test]
fn a_name_that_is_none_is_refused_by_itself() {
    for name in [
        "Upper/Case:1",
        "a b:1",
        "web:",
        "registry.example/one@sha256:12",
        "a b",
    ] {
        let docker = Layout::new();
        docker.write("a.json", &config("a"));
        let named = json!([{"Config": "a.json", "RepoTags": ["web:1", name], "Layers": []}]);
        docker.write("manifest.json", &named);
        let oci = Layout::new();
        let image = oci.image("a");
        oci.index(&[
            entry(&image, json!({REF_NAME: "web:1"})),
            entry(&image, json!({REF_NAME: name})),
        ]);
        for layout in [docker, oci] {
            let refused = layout.names().expect_err(name);
            assert!(refused.contains(name), "{refused}");
        }
    }
    let layout = Layout::new();
    let (one, two) = (layout.image("one"), layout.image("two"));
    layout.index(&[entry(&one, json!({FULL_NAME: format!("web@{two}")}))]);
    let refused = layout.names().expect_err("it is the other's digest");
    assert!(refused.contains("another digest"), "{refused}");
}

#[test]
fn what_is_for_other_machines_is_left_out() {
    let layout = Layout::new();
    let one = layout.image("one");
    let other = |digest: &str| json!({"digest": digest, "platform": {"os": "unknown", "architecture": "unknown"}});
    let missing = digest(b"an attestation that was not saved");
    layout.index(&[
        other(&missing),
        entry(&one, json!({REF_NAME: "registry.example/one:1"})),
    ]);
    assert_eq!(
        layout.names(),
        Ok(vec![vec!["registry.example/one:1".to_owned()]])
    );
    layout.index(&[other(&one)]);
    let refused = layout.names().expect_err("nothing for this machine");
    assert!(refused.contains("no match for platform"), "{refused}");
}

#[test]
fn what_an_archive_makes_the_node_read_is_bounded() {
    let layout = Layout::new();
    layout.write("config.json", &config("a"));
    let size = config("a").to_string().len() as u64;
    let documents = Documents {
        directory: layout.0.path(),
        left: Cell::new(2 * size),
    };
    for _ in 0..2 {
        let read = documents.read("config.json").expect("as much as may be");
        assert_eq!(read.len() as u64, size);
    }
    let error = documents.read("config.json").expect_err("too much");
    assert!(error.contains("come to more than"), "{error}");
    let images = vec![json!({"Config": "config.json"}); 1_001];
    layout.write("manifest.json", &json!(images));
    let error = layout.names().expect_err("too many");
    assert!(error.contains("1001 images"), "{error}");
}

#[test]
fn only_files_are_opened() {
    let layout = Layout::new();
    layout.write("config.json", &config("a"));
    let mode = rustix::fs::Mode::RUSR;
    let pipe = layout.0.path().join("pipe");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).expect("a pipe");
    std::os::unix::fs::symlink("pipe", layout.0.path().join("link")).expect("a link");
    for name in ["pipe", "link", "."] {
        layout.write("manifest.json", &json!([{"Config": name, "Layers": []}]));
        let error = layout.names().expect_err("no file");
        assert!(error.contains("is no file"), "{error}");
    }
}
