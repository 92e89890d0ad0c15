//! `gantry cp`: files and directories into a container and out of it, as kubectl does: by the container's own `tar`.

mod archive;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::container;
use super::session::exit_code;
use crate::client::{Cluster, PIECE, Process, Said, Wanted};
use archive::{Incoming, Outgoing};

/// Pieces of an archive under way.
const QUEUE: usize = 16;
/// What is kept of what a command says on its standard error.
const WORDS: usize = 16 * 1024;

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
struct Container<'a> {
    cluster: &'a Cluster,
    namespace: String,
    pod: String,
    container: Option<String>,
}

impl Container<'_> {
    /// With the name of the container, where none was given.
    async fn meant(mut self) -> Self {
        let place = (self.namespace.as_str(), self.pod.as_str());
        self.container = container::meant(self.cluster, place, self.container.as_deref()).await;
        self
    }

    async fn start(&self, command: &[&str], stdin: bool) -> Result<Process> {
        let wanted = Wanted {
            container: self.container.clone(),
            stdin,
            stderr: true,
            tty: false,
        };
        let place = (self.namespace.as_str(), self.pod.as_str());
        Ok(Process::run(self.cluster, place, command, &wanted).await?)
    }

    /// Whether a path is a directory there; not, where the image has no `test`.
    async fn is_dir(&self, path: &str) -> Result<bool> {
        let mut process = self.start(&["test", "-d", path], false).await?;
        loop {
            if let Said::Ended(status) = process.next().await? {
                return Ok(exit_code(*status).is_ok_and(|code| code == 0));
            }
        }
    }
}

impl Cp {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let at = |namespace: Option<String>, pod| Container {
            cluster,
            namespace: namespace.unwrap_or_else(|| cluster.namespace.clone()),
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
            ) => upload(&from, &at(namespace, pod).meant().await, &path).await,
            (
                End::Remote {
                    namespace,
                    pod,
                    path,
                },
                End::Local(to),
            ) => download(&at(namespace, pod).meant().await, &path, &to).await,
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

async fn upload(from: &Path, container: &Container<'_>, to: &str) -> Result<()> {
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
    let input = process.input();
    let (pieces, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
    let packing = tokio::task::spawn_blocking(move || {
        archive::pack(&from, &name, Outgoing::new(pieces, PIECE))
    });
    let sending = async move {
        while let Some(piece) = queue.recv().await {
            input.send(&piece).await?;
        }
        input.end().await
    };
    let sending = tokio::spawn(sending);
    let said = finish(&mut process, None).await;
    // When tar has ended, it takes no more, whether it has read the blocks that fill up an archive or not.
    sending.abort();
    match packing.await? {
        // It was tar that has ended first, and says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => said,
        packed => packed.context("packing the archive").and(said),
    }
}

async fn download(container: &Container<'_>, from: &str, to: &Path) -> Result<()> {
    let (directory, name) = split(from);
    let to = match to.is_dir() && name != "." {
        true => to.join(name),
        false => to.to_owned(),
    };
    let mut process = container
        .start(&["tar", "-cf", "-", "-C", directory, name], false)
        .await?;
    let (pieces, queue) = mpsc::channel(QUEUE);
    let name = name.to_owned();
    let unpacking =
        tokio::task::spawn_blocking(move || archive::unpack(Incoming::new(queue), &name, &to));
    let said = finish(&mut process, Some(pieces)).await;
    let unpacked = unpacking.await?;
    said?;
    for left_out in unpacked? {
        eprintln!("warning: {left_out}");
    }
    Ok(())
}

/// Waits for tar, and passes its output on; what it says when it fails is the error. Ends early where nobody takes the
/// output any more: whoever does not says why.
async fn finish(process: &mut Process, output: Option<mpsc::Sender<Bytes>>) -> Result<()> {
    let mut words = Vec::new();
    let status = loop {
        match process.next().await? {
            Said::Output(bytes) => {
                if let Some(output) = &output
                    && output.send(bytes).await.is_err()
                {
                    return Ok(());
                }
            }
            Said::Error(bytes) => {
                let room = WORDS.saturating_sub(words.len());
                words.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Said::Ended(status) => break status,
        }
    };
    let code = exit_code(*status).context("running tar in the container")?;
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
