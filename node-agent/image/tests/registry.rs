//! Pulling from a real registry: Debian's docker-registry on a loopback port, filled by skopeo.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gantry_image::{Credentials, ImageError, ImageStore, ImageStoreConfig, Images, Progress};

/// A registry process with its storage; both end with the value.
struct Registry {
    process: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Registry {
    /// Starts a registry; with `users`, an htpasswd file, it wants basic authentication.
    fn start(users: Option<&str>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            directory.path().join("data").display()
        );
        if let Some(users) = users {
            let file = directory.path().join("htpasswd");
            std::fs::write(&file, users).expect("a file");
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                file.display()
            ));
        }
        let config_path = directory.path().join("config.yml");
        std::fs::write(&config_path, config).expect("a file");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry runs: install Debian's package docker-registry");
        let registry = Self {
            process,
            directory,
            port,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        registry
    }

    fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Copies the demo image there with skopeo.
    fn push(&self, name: &str, options: &[&str]) {
        let archive = self.directory.path().join("web.tar");
        let file = std::fs::File::create(&archive).expect("a file");
        gantry_demo::pack("v1", file).expect("packs");
        let output = Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
            .args(options)
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}", self.reference(name)))
            .output()
            .expect("skopeo runs: install Debian's package skopeo");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The stored blobs, largest first.
    fn blobs(&self) -> Vec<PathBuf> {
        let mut blobs = Vec::new();
        find(&self.directory.path().join("data"), &mut blobs);
        blobs.sort_by_key(|path| {
            std::cmp::Reverse(path.metadata().map(|stat| stat.len()).unwrap_or(0))
        });
        blobs
    }
}

fn find(directory: &Path, blobs: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("reads") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            find(&path, blobs);
        } else if path.ends_with("data") && path.display().to_string().contains("/blobs/") {
            blobs.push(path);
        }
    }
}

async fn store(directory: &Path) -> ImageStore {
    ImageStore::open(ImageStoreConfig {
        data_dir: directory.join("images"),
    })
    .await
    .expect("opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_compression_and_media_type_are_pulled() {
    let registry = Registry::start(None);
    for (name, options) in [
        (
            "gzip:v1",
            vec!["--dest-compress-format=gzip", "--dest-compress"],
        ),
        (
            "zstd:v1",
            vec!["--dest-compress-format=zstd", "--dest-compress"],
        ),
        ("plain:v1", vec![]),
        ("docker:v1", vec!["--format=v2s2"]),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let images = store(directory.path()).await;
        registry.push(name, &options);
        let image = images
            .pull(&registry.reference(name), None, None)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(image.tags, [registry.reference(name)]);
        assert_eq!(image.config.entrypoint, ["/web"]);
        let by_digest = images
            .pull(&image.digests[0], None, None)
            .await
            .expect("pulls by digest");
        assert_eq!(by_digest.id, image.id);
        let root = images
            .mount_rootfs(&image.id, "pod_web_0", None)
            .await
            .expect("mounts");
        assert!(root.join("web").metadata().expect("the program").len() > 100_000);
        images.unmount_rootfs("pod_web_0").await.expect("unmounts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registrys_words_reach_the_user() {
    let registry = Registry::start(None);
    registry.push("web:v1", &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let error = images
        .pull(&registry.reference("web:v9"), None, None)
        .await
        .expect_err("no such tag");
    assert!(error.to_string().contains("manifest unknown"), "{error}");
    let error = images
        .pull("127.0.0.1:1/web:v1", None, None)
        .await
        .expect_err("nobody listens");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication_is_used_and_its_lack_is_named() {
    let registry = Registry::start(Some(&htpasswd("user", "secret")));
    registry.push("web:v1", &["--dest-creds=user:secret"]);
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let reference = registry.reference("web:v1");
    let error = images
        .pull(&reference, None, None)
        .await
        .expect_err("anonymous")
        .to_string();
    assert!(
        error.contains("authentication required") || error.contains("unauthorized"),
        "{error}"
    );
    let credentials = Credentials {
        username: "user".to_owned(),
        password: "secret".to_owned(),
    };
    images
        .pull(&reference, Some(credentials), None)
        .await
        .expect("pulls with credentials");
}

/// A password file with one bcrypt line.
fn htpasswd(user: &str, password: &str) -> String {
    let output = Command::new("htpasswd")
        .args(["-nbB", user, password])
        .output()
        .expect("htpasswd runs: install Debian's package apache2-utils");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_layers_are_refused_and_leave_nothing() {
    for truncate in [true, false] {
        let registry = Registry::start(None);
        registry.push("web:v1", &[]);
        let layer = registry.blobs().remove(0);
        let mut bytes = std::fs::read(&layer).expect("reads");
        match truncate {
            true => bytes.truncate(bytes.len() / 2),
            false => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0xff;
            }
        }
        std::fs::write(&layer, bytes).expect("writes");
        let directory = tempfile::tempdir().expect("a directory");
        let images = store(directory.path()).await;
        let error = images
            .pull(&registry.reference("web:v1"), None, None)
            .await
            .expect_err("damaged");
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
        assert!(images.list().await.expect("lists").is_empty());
        for place in ["layers", "tmp"] {
            let left = std::fs::read_dir(directory.path().join("images").join(place))
                .expect("reads")
                .count();
            assert_eq!(left, 0, "{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_share_one_transfer() {
    let registry = Registry::start(None);
    registry.push("web:v1", &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let pieces = Arc::new(AtomicUsize::new(0));
    let finished = Arc::new(AtomicUsize::new(0));
    let reference = registry.reference("web:v1");
    let pulls = (0..4).map(|_| {
        let (pieces, finished) = (pieces.clone(), finished.clone());
        images.pull(
            &reference,
            None,
            Some(Arc::new(move |event| match event {
                // A transfer of this layer starts with its first bytes.
                Progress::Bytes { done, .. } if done > 0 => {
                    pieces.fetch_max(done as usize, Ordering::Relaxed);
                }
                Progress::Unpacked { .. } => {
                    finished.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            })),
        )
    });
    let pulled = futures::future::try_join_all(pulls)
        .await
        .expect("all pull");
    assert!(pulled.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(finished.load(Ordering::Relaxed), 4);
    assert_eq!(
        std::fs::read_dir(directory.path().join("images/layers"))
            .expect("reads")
            .count(),
        1
    );
}
