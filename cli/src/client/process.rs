//! A process in a container: its input, its outputs, and how it ends.

use anyhow::{Context, Result};
use gantry_api::paths;
use hyper::body::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde_json::json;

use super::channels::{CLOSE, Channels, Incoming, Lost, Outgoing};
use super::{ApiError, Cluster};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// Has a word for the end of the input.
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

/// Which container, and what of the process in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The first of the pod when not named.
    pub(crate) container: Option<String>,
    pub(crate) stdin: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// A process that is connected to.
pub(crate) struct Process {
    input: Input,
    incoming: Incoming,
}

/// Its input, and the size of its terminal; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    outgoing: Outgoing,
    /// The server understands that the input has ended.
    ends: bool,
}

/// What comes from a process.
#[derive(Debug)]
pub(crate) enum Said {
    Output(Bytes),
    Error(Bytes),
    /// The last.
    Ended(Box<Status>),
}

impl Process {
    /// Runs a command in a container of a pod.
    pub(crate) async fn run(
        cluster: &Cluster,
        (namespace, pod): (&str, &str),
        command: &[&str],
        wanted: &Wanted,
    ) -> Result<Self, ApiError> {
        let path = paths::namespaced(namespace, &["pods", pod, "exec"]);
        Self::open(cluster, &path, command, wanted).await
    }

    /// What a container of a pod runs already.
    pub(crate) async fn attach(
        cluster: &Cluster,
        (namespace, pod): (&str, &str),
        wanted: &Wanted,
    ) -> Result<Self, ApiError> {
        let path = paths::namespaced(namespace, &["pods", pod, "attach"]);
        Self::open(cluster, &path, &[], wanted).await
    }

    async fn open(
        cluster: &Cluster,
        path: &str,
        command: &[&str],
        wanted: &Wanted,
    ) -> Result<Self, ApiError> {
        let mut query: Vec<(&str, &str)> = command.iter().map(|word| ("command", *word)).collect();
        query.extend(wanted.container.as_deref().map(|name| ("container", name)));
        for (name, flag) in [
            ("stdin", wanted.stdin),
            ("stdout", true),
            ("stderr", wanted.stderr),
            ("tty", wanted.tty),
        ] {
            if flag {
                query.push((name, "true"));
            }
        }
        let (client, own) = (&cluster.client, cluster.certificate);
        let channels = Channels::open(client, own, path, &query, &[V5, V4]).await?;
        Ok(Self {
            input: Input {
                ends: channels.protocol == V5,
                outgoing: channels.outgoing,
            },
            incoming: channels.incoming,
        })
    }

    pub(crate) fn input(&self) -> Input {
        self.input.clone()
    }

    /// What comes next; an error when the connection is lost before the process has ended.
    pub(crate) async fn next(&mut self) -> Result<Said> {
        loop {
            let message = self.incoming.next().await?;
            let (channel, bytes) = message.context("the connection to the container was lost")?;
            return Ok(match channel {
                STDOUT => Said::Output(bytes),
                STDERR => Said::Error(bytes),
                STATUS if !bytes.is_empty() => {
                    let status = serde_json::from_slice(&bytes);
                    Said::Ended(Box::new(
                        status.context("reading how the command has ended")?,
                    ))
                }
                _ => continue,
            });
        }
    }
}

impl Input {
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<(), Lost> {
        self.outgoing.send(STDIN, bytes).await
    }

    /// No more comes. A server that has no word for that is told by the end of the connection.
    pub(crate) async fn end(&self) -> Result<(), Lost> {
        match self.ends {
            true => self.outgoing.send(CLOSE, &[STDIN]).await,
            false => self.outgoing.close().await,
        }
    }

    /// The terminal has so many columns and lines.
    pub(crate) async fn resize(&self, width: u16, height: u16) -> Result<(), Lost> {
        let size = json!({"Width": width, "Height": height});
        self.outgoing
            .send(RESIZE, size.to_string().as_bytes())
            .await
    }
}
