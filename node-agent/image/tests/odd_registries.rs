//! Pulling from registries that others have not thought of, and from hostile ones: served from memory, on a loopback port.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use gantry_image::{Credentials, ImageStore, ImageStoreConfig, Images};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What is answered: status, headers, body, and whether the body never ends.
#[derive(Clone, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    endless: bool,
}

impl Answer {
    fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    fn endless(body: impl Into<Vec<u8>>) -> Self {
        Self {
            endless: true,
            ..Self::ok(body)
        }
    }

    fn challenge(challenge: &str) -> Self {
        Self {
            status: 401,
            headers: vec![("www-authenticate", challenge.to_owned())],
            ..Self::default()
        }
    }

    fn send(&self, mut to: &TcpStream) -> std::io::Result<()> {
        write!(to, "HTTP/1.1 {} x\r\nconnection: close\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(to, "{name}: {value}\r\n")?;
        }
        if !self.endless {
            write!(to, "content-length: {}\r\n", self.body.len())?;
        }
        write!(to, "\r\n")?;
        to.write_all(&self.body)?;
        // Until the other side has had enough.
        if self.endless {
            loop {
                to.write_all(&[b' '; 64 << 10])?;
            }
        }
        Ok(())
    }
}

/// A request: its path, and who it says it is from.
struct Asked<'a> {
    path: &'a str,
    authorization: Option<&'a str>,
}

/// Serves until the test ends; returns the registry's name.
fn serve(respond: impl Fn(&Asked<'_>) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = listener.local_addr().expect("an address").to_string();
    let respond = Arc::new(respond);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let respond = respond.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&connection).lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                let path = first.split(' ').nth(1).unwrap_or_default();
                let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let authorization = headers
                    .iter()
                    .find_map(|header| header.strip_prefix("authorization: "));
                let asked = Asked {
                    path,
                    authorization,
                };
                // Whoever hangs up has read enough.
                respond(&asked).send(&connection).ok();
            });
        }
    });
    name
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer of one entry each: path, type, mode, content or link target.
fn layer(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, mode, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_path(path).expect("a path");
        if *kind == EntryType::Link {
            header.set_link_name(content).expect("a target");
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, std::io::empty()).expect("append");
        } else {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("append");
        }
    }
    builder.into_inner().expect("finish")
}

/// What a registry serves of an image, by path; the tag is `v1` of `app`, whose manifest is in two indexes.
fn image(layers: &[Vec<u8>]) -> BTreeMap<String, Vec<u8>> {
    let mut served = BTreeMap::new();
    let mut add = |kind: &str, content: Vec<u8>| -> serde_json::Value {
        let (digest, size) = (digest(&content), content.len());
        served.insert(format!("/v2/app/{kind}/{digest}"), content);
        serde_json::json!({"digest": digest, "size": size})
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = add("blobs", config.to_string().into());
    let layers: Vec<serde_json::Value> = layers
        .iter()
        .map(|layer| add("blobs", layer.clone()))
        .collect();
    let manifest = serde_json::json!({"config": config, "layers": layers});
    let mut manifest = add("manifests", manifest.to_string().into());
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    manifest["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
    let inner = serde_json::json!({"manifests": [manifest]}).to_string();
    let inner = add("manifests", inner.into());
    let outer = serde_json::json!({"manifests": [inner]}).to_string();
    served.insert("/v2/app/manifests/v1".to_owned(), outer.into());
    served
}

fn found(served: &BTreeMap<String, Vec<u8>>, path: &str) -> Answer {
    match served.get(path) {
        Some(content) => Answer::ok(content.clone()),
        None => Answer {
            status: 404,
            ..Answer::default()
        },
    }
}

async fn store(directory: &Path) -> ImageStore {
    let data_dir = directory.join("images");
    let opened = ImageStore::open(ImageStoreConfig { data_dir }).await;
    opened.expect("opens")
}

async fn pull(registry: &str, credentials: Option<Credentials>) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let reference = format!("{registry}/app:v1");
    let pulled = images.pull(&reference, credentials, None).await;
    pulled.map(drop).map_err(|error| error.to_string())
}

fn somebody() -> Option<Credentials> {
    Some(Credentials {
        username: "somebody".to_owned(),
        password: "secret".to_owned(),
    })
}

const SOMEBODY: &str = "Basic c29tZWJvZHk6c2VjcmV0";

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_completed_by_those_below_them() {
    use EntryType::{Directory, Link, Regular};
    let empty = layer(&[]);
    let registry = {
        let served = image(&[
            layer(&[
                ("./", Directory, 0o711, ""),
                ("tmp/", Directory, 0o1777, ""),
                ("bin/tool", Regular, 0o755, "tool"),
            ]),
            empty.clone(),
            layer(&[
                ("tmp/file", Regular, 0o644, "x"),
                ("usr/bin/tool", Link, 0o755, "bin/tool"),
            ]),
            empty.clone(),
        ]);
        serve(move |asked| found(&served, asked.path))
    };
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let image = images
        .pull(&format!("{registry}/app:v1"), None, None)
        .await
        .expect("pulls");
    let root = images
        .mount_rootfs(&image.id, "key", None)
        .await
        .expect("mounts");
    let mode = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        root.join(path)
            .metadata()
            .map(|found| found.mode() & 0o7777)
    };
    let modes = ["", "tmp", "usr"].map(|path| mode(path).ok());
    let tool = std::fs::read_to_string(root.join("usr/bin/tool")).ok();
    images.unmount_rootfs("key").await.expect("unmounts");
    assert_eq!(modes, [Some(0o711), Some(0o1777), Some(0o755)]);
    assert_eq!(tool.as_deref(), Some("tool"));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sent_where_a_repository_asks_for_them() {
    let served = image(&[layer(&[])]);
    // Its /v2/ is open.
    let registry = serve({
        let served = served.clone();
        move |asked| match (asked.path, asked.authorization) {
            ("/v2/", _) => Answer::ok("{}"),
            (path, Some(SOMEBODY)) => found(&served, path),
            _ => Answer::challenge("Basic realm=\"x\""),
        }
    });
    pull(&registry, somebody()).await.expect("pulls");
    let error = pull(&registry, None).await.expect_err("nobody");
    assert!(
        error.contains("unauthorized: authentication required"),
        "{error}"
    );
    // By way of a token server, which gives tokens for what the registry says.
    for field in ["token", "access_token"] {
        let served = served.clone();
        let registry = serve(move |asked| {
            let tokens = "/token?service=s&scope=repository%3Aapp%3Apull&scope=extra";
            match (asked.path, asked.authorization) {
                (path, Some(SOMEBODY)) if path == tokens => {
                    Answer::ok(format!("{{\"{field}\": \"t0ken\"}}"))
                }
                (path, Some("Bearer t0ken")) => found(&served, path),
                (path, _) if path.starts_with("/v2/app/") => {
                    let realm = "realm=\"http://REGISTRY/token\",service=\"s\"";
                    Answer::challenge(&format!(
                        "Bearer {realm},scope=\"repository:app:pull extra\""
                    ))
                }
                _ => Answer::default(),
            }
        });
        // Its own name is known only now.
        let named = registry.clone();
        let forward = serve({
            move |asked| {
                let answer = fetch(&named, asked);
                let headers = answer.headers.into_iter();
                let headers =
                    headers.map(|(name, value)| (name, value.replace("REGISTRY", &named)));
                Answer {
                    headers: headers.collect(),
                    ..answer
                }
            }
        });
        pull(&forward, somebody()).await.expect("pulls");
        pull(&forward, None).await.expect_err("nobody");
    }
}

/// Asks another registry the same.
fn fetch(registry: &str, asked: &Asked<'_>) -> Answer {
    use std::io::Read;
    let mut connection = TcpStream::connect(registry).expect("connects");
    let authorization = asked.authorization.unwrap_or("none");
    write!(
        connection,
        "GET {} HTTP/1.1\r\nauthorization: {authorization}\r\n\r\n",
        asked.path
    )
    .expect("sent");
    let mut text = Vec::new();
    connection.read_to_end(&mut text).expect("an answer");
    let end = text
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8_lossy(&text[..end]).into_owned();
    let challenge = head
        .lines()
        .find_map(|line| line.strip_prefix("www-authenticate: "));
    Answer {
        status: head[9..12].parse().expect("a status"),
        headers: challenge
            .map(|challenge| ("www-authenticate", challenge.to_owned()))
            .into_iter()
            .collect(),
        body: text[end + 4..].to_vec(),
        endless: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ends_is_cut_off() {
    let served = image(&[layer(&[("a", EntryType::Regular, 0o644, "content")])]);
    let config = served
        .iter()
        .find(|(_, content)| content.starts_with(b"{\"rootfs\""))
        .map(|(path, _)| path.clone())
        .expect("a config");
    let blob = served
        .iter()
        .find(|(path, content)| path.contains("/blobs/") && !content.starts_with(b"{"))
        .map(|(path, _)| path.clone())
        .expect("a layer");
    for (endless, words) in [
        (
            "/v2/app/manifests/v1".to_owned(),
            "larger than 8388608 bytes",
        ),
        (config, "more than its 8388608 bytes came"),
        (blob, "bytes came"),
    ] {
        let served = served.clone();
        let registry = serve({
            let endless = endless.clone();
            move |asked| match asked.path == endless {
                true => Answer::endless(found(&served, asked.path).body),
                false => found(&served, asked.path),
            }
        });
        let error = pull(&registry, None).await.expect_err(&endless);
        assert!(error.contains(words), "{endless}: {error}");
    }
    let refused = serve(|_| Answer {
        status: 500,
        ..Answer::endless("{\"errors\": [")
    });
    let error = pull(&refused, None).await.expect_err("refused");
    assert!(error.contains("the registry answered 500"), "{error}");
    let challenge = format!("Bearer {}", "realm=\"x\",".repeat(1_000));
    let odd = serve(move |_| Answer::challenge(&challenge));
    let error = pull(&odd, somebody()).await.expect_err("refused");
    assert!(error.contains("unauthorized"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_registry_of_another_with_the_same_layers() {
    let names: Vec<String> = (0..12).map(|number| format!("file-{number}")).collect();
    let layers: Vec<Vec<u8>> = names
        .iter()
        .map(|name| layer(&[(name.as_str(), EntryType::Regular, 0o644, "content")]))
        .collect();
    let held_back = format!("/v2/app/blobs/{}", digest(&layers[0]));
    let served = image(&layers);
    assert!(served.contains_key(&held_back));
    let (asks, mut asked_for) = tokio::sync::mpsc::unbounded_channel();
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let silent = {
        let served = served.clone();
        serve(move |asked| {
            if asked.path == held_back {
                asks.send(()).expect("the test waits");
                // Until the test lets go.
                held.lock().expect("one at a time").recv().ok();
            }
            found(&served, asked.path)
        })
    };
    let honest = serve(move |asked| found(&served, asked.path));
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let silent = format!("{silent}/app:v1");
    let mut waiting = images.pull(&silent, None, None);
    tokio::select! {
        ended = &mut waiting => panic!("its lowest layer was held back: {ended:?}"),
        asked = asked_for.recv() => asked.expect("the registry is there"),
    }
    let honest = format!("{honest}/app:v1");
    let pulled = tokio::select! {
        ended = &mut waiting => panic!("its lowest layer was held back: {ended:?}"),
        pulled = images.pull(&honest, None, None) => pulled.expect("pulls"),
    };
    drop(hold);
    let last = waiting.await.expect("pulls, too");
    assert_eq!(last.id, pulled.id);
    assert_eq!(
        std::fs::read_dir(directory.path().join("images/layers"))
            .expect("reads")
            .count(),
        12
    );
}
