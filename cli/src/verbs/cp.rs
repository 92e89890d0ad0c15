//! `gantry cp`: files and directories into a container and out of it, as kubectl does: by the container's own `tar`.

mod archive;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::session::exit_code;
use crate::client::{ApiError, Cluster};
use archive::{Incoming, Outgoing};

/// Pieces of an archive under way.
const QUEUE: usize = 16;
const PIECE: usize = 64 * 1024;

/// Copy files and directories into a container, or out of it; its image needs a tar
#[derive(Debug, clap::Args)]
pub(crate) struct Cp {
    /// What to copy: a local path, or [NAMESPACE/]POD:PATH
    from: String,
    /// Where to: a local path, or [NAMESPACE/]POD:PATH; into it when it is a directory
    to: String,
    /// Which container; the first when not given
    #[arg(long, short)]
    container: Option<String>,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Local(PathBuf),
    Remote {
        namespace: Option<String>,
        pod: String,
        path: String,
    },
}

impl End {
    /// A path that begins with `.` or `/` is local, whatever is in it.
    fn parse(text: &str) -> Result<Self> {
        let local = || Ok(Self::Local(PathBuf::from(text)));
        let Some((place, path)) = text.split_once(':') else {
            return local();
        };
        if place.starts_with(['.', '/']) {
            return local();
        }
        let (namespace, pod) = match place.split_once('/') {
            Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
            None => (None, place),
        };
        ensure!(
            !pod.is_empty() && !pod.contains('/') && namespace.as_deref() != Some(""),
            "\"{text}\" is not [NAMESPACE/]POD:PATH; begin a local path that has a colon with ./"
        );
        ensure!(
            !path.is_empty(),
            "\"{text}\" names no path in the container"
        );
        Ok(Self::Remote {
            namespace,
            pod: pod.to_owned(),
            path: path.to_owned(),
        })
    }
}

/// A container that commands are run in.
struct Container {
    pods: Api<Pod>,
    pod: String,
    container: Option<String>,
}

impl Container {
    async fn start(&self, command: &[&str], stdin: bool) -> Result<AttachedProcess> {
        let parameters = AttachParams {
            container: self.container.clone(),
            stdin,
            stdout: true,
            stderr: true,
            ..AttachParams::default()
        };
        let process = self.pods.exec(&self.pod, command.to_vec(), &parameters);
        Ok(process.await.map_err(ApiError::from)?)
    }

    /// Whether a path is a directory there; not, where the image has no `test`.
    async fn is_dir(&self, path: &str) -> Result<bool> {
        let mut process = self.start(&["test", "-d", path], false).await?;
        let status = process
            .take_status()
            .context("the server reports no status")?;
        Ok(exit_code(status.await).is_ok_and(|code| code == 0))
    }
}

impl Cp {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let at = |namespace: Option<String>, pod| Container {
            pods: Api::namespaced(
                cluster.client.clone(),
                namespace.as_deref().unwrap_or(&cluster.namespace),
            ),
            pod,
            container: self.container.clone(),
        };
        match (End::parse(&self.from)?, End::parse(&self.to)?) {
            (
                End::Local(from),
                End::Remote {
                    namespace,
                    pod,
                    path,
                },
            ) => upload(&from, &at(namespace, pod), &path).await,
            (
                End::Remote {
                    namespace,
                    pod,
                    path,
                },
                End::Local(to),
            ) => download(&at(namespace, pod), &path, &to).await,
            _ => bail!("one of the two is a local path, the other [NAMESPACE/]POD:PATH"),
        }
    }
}

/// The directory and the name of a path in a container; the name is `.` for the root and for paths that end in `..`.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        None if path.is_empty() => ("/", "."),
        Some((_, "..")) => (path, "."),
        None if path == ".." => (path, "."),
        None => (".", path),
        Some(("", name)) => ("/", name),
        Some((directory, name)) => (directory, name),
    }
}

async fn upload(from: &Path, container: &Container, to: &str) -> Result<()> {
    let named = std::path::absolute(from)?;
    let from = from
        .canonicalize()
        .with_context(|| format!("reading {}", from.display()))?;
    let own_name = named.file_name().or_else(|| from.file_name());
    let own_name = own_name.map(|name| name.to_string_lossy().into_owned());
    let (directory, name) = match container.is_dir(to).await? {
        true => (to, own_name.unwrap_or_else(|| ".".to_owned())),
        false => {
            let (directory, name) = split(to);
            (directory, name.to_owned())
        }
    };
    let mut process = container
        .start(&["tar", "-xmf", "-", "-C", directory], true)
        .await?;
    let mut stdin = process.stdin().context("the server takes no input")?;
    let (pieces, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
    let packing = tokio::task::spawn_blocking(move || {
        archive::pack(&from, &name, Outgoing::new(pieces, PIECE))
    });
    let sending = async {
        while let Some(piece) = queue.recv().await {
            stdin.write_all(&piece).await?;
        }
        stdin.shutdown().await
    };
    let (said, sent) = tokio::join!(finish(&mut process), sending);
    // Why tar has ended says more than that it takes no more.
    said?;
    packing.await?.context("packing the archive")?;
    sent.context("sending the archive")
}

async fn download(container: &Container, from: &str, to: &Path) -> Result<()> {
    let (directory, name) = split(from);
    let to = match to.is_dir() && name != "." {
        true => to.join(name),
        false => to.to_owned(),
    };
    let mut process = container
        .start(&["tar", "-cf", "-", "-C", directory, name], false)
        .await?;
    let mut stdout = process.stdout().context("the server sends no output")?;
    let (pieces, queue) = mpsc::channel(QUEUE);
    let name = name.to_owned();
    let unpacking =
        tokio::task::spawn_blocking(move || archive::unpack(Incoming::new(queue), &name, &to));
    let receiving = async {
        loop {
            let mut piece = vec![0; PIECE];
            let count = stdout.read(&mut piece).await?;
            piece.truncate(count);
            // Who takes no more says why.
            if count == 0 || pieces.send(piece).await.is_err() {
                drop(pieces);
                return io::Result::Ok(());
            }
        }
    };
    let (said, received) = tokio::join!(finish(&mut process), receiving);
    let unpacked = unpacking.await?;
    said?;
    received.context("receiving the archive")?;
    for left_out in unpacked? {
        eprintln!("warning: {left_out}");
    }
    Ok(())
}

/// Waits for tar; what it says when it fails is the error.
async fn finish(process: &mut AttachedProcess) -> Result<()> {
    let status = process
        .take_status()
        .context("the server reports no status")?;
    let mut words = Vec::new();
    if let Some(mut stderr) = process.stderr() {
        stderr.read_to_end(&mut words).await?;
    }
    let code = exit_code(status.await).context("running tar in the container")?;
    let words = String::from_utf8_lossy(&words);
    ensure!(code == 0, "tar in the container: {}", words.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_by_the_colon() {
        let remote = |namespace: Option<&str>, pod: &str, path: &str| End::Remote {
            namespace: namespace.map(str::to_owned),
            pod: pod.to_owned(),
            path: path.to_owned(),
        };
        let local = |path: &str| End::Local(path.into());
        for (text, expected) in [
            ("web-0:/tmp/a", remote(None, "web-0", "/tmp/a")),
            ("shop/web-0:a:b", remote(Some("shop"), "web-0", "a:b")),
            ("file", local("file")),
            ("/a:b", local("/a:b")),
            ("./a:b", local("./a:b")),
            ("../a/b:c", local("../a/b:c")),
        ] {
            assert_eq!(End::parse(text).unwrap(), expected, "{text}");
        }
        for wrong in [":/tmp", "web-0:", "a/b/c:/tmp", "/web:"] {
            let parsed = End::parse(wrong);
            assert!(
                matches!(parsed, Err(_) | Ok(End::Local(_))),
                "{wrong}: {parsed:?}"
            );
        }
    }

    #[test]
    fn a_path_is_a_directory_and_a_name() {
        for (path, expected) in [
            ("/tmp/a", ("/tmp", "a")),
            ("/tmp/a/", ("/tmp", "a")),
            ("/a", ("/", "a")),
            ("a", (".", "a")),
            ("a/b", ("a", "b")),
            ("/", ("/", ".")),
            ("/a/..", ("/a/..", ".")),
            ("..", ("..", ".")),
        ] {
            assert_eq!(split(path), expected, "{path}");
        }
    }
}
