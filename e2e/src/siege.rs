//! Hostile clients: connections that ask for something and then say, or read, nothing more.
//!
//! They run in processes of their own, since each may have as many descriptors as the server has, on the cluster's machine
//! and against it alone, from as many loopback addresses as they have connections. Each process ends with the value that
//! started it, and by itself after [`LONGEST`].

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Cluster;

/// No attack lasts longer.
pub const LONGEST: Duration = Duration::from_secs(600);
/// Connections of one process.
pub const AT_MOST: usize = 12_000;
/// Connections that are being opened at once.
const OPENING: usize = 64;
/// What a connection may take to be opened; a server may well refuse it.
const PATIENCE: Duration = Duration::from_secs(20);
/// The smallest receive buffer, so that the kernel does not read for who does not.
const RECEIVE: u32 = 4096;
/// The server's port on the cluster's machine.
const PORT: u16 = 6443;

/// What hostile clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// TCP connections without a handshake.
    Silent,
    /// Half of a request's head, anonymous.
    HalfHeads,
    /// Half of a body, as the administrator.
    HalfBodies,
    /// Watches of all ConfigMaps that nobody reads, as the administrator.
    UnreadWatches,
    /// Lists of all ConfigMaps that nobody reads, as the administrator.
    UnreadLists,
    /// The same as YAML.
    UnreadYaml,
    /// The same as a Table.
    UnreadTables,
}

impl Attack {
    const ALL: [(&'static str, Self); 7] = [
        ("silent", Self::Silent),
        ("half-heads", Self::HalfHeads),
        ("half-bodies", Self::HalfBodies),
        ("unread-watches", Self::UnreadWatches),
        ("unread-lists", Self::UnreadLists),
        ("unread-yaml", Self::UnreadYaml),
        ("unread-tables", Self::UnreadTables),
    ];

    fn word(self) -> &'static str {
        let known = Self::ALL.iter().find(|(_, attack)| *attack == self);
        known.map_or("", |(word, _)| word)
    }

    fn of_word(word: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(known, _)| *known == word);
        let (_, attack) = known.with_context(|| format!("{word} is no attack"))?;
        Ok(*attack)
    }

    /// What is sent after the handshake.
    fn words(self) -> String {
        let maps = "/api/v1/configmaps";
        match self {
            Self::Silent => String::new(),
            Self::HalfHeads => "GET /version HTTP/1.1\r\nHost: gantry\r\nX-Half: ".to_owned(),
            Self::HalfBodies => format!(
                "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: gantry\r\nContent-Type: application/json\r\n\
                 Content-Length: 100000\r\n\r\n{{\"data\":{{\"text\":\"{}",
                "x".repeat(1000)
            ),
            Self::UnreadWatches => {
                format!("GET {maps}?watch=true HTTP/1.1\r\nHost: gantry\r\n\r\n")
            }
            Self::UnreadLists => format!("GET {maps} HTTP/1.1\r\nHost: gantry\r\n\r\n"),
            Self::UnreadYaml => {
                format!("GET {maps} HTTP/1.1\r\nHost: gantry\r\nAccept: application/yaml\r\n\r\n")
            }
            Self::UnreadTables => format!(
                "GET {maps}?includeObject=Object HTTP/1.1\r\nHost: gantry\r\n\
                 Accept: application/json;as=Table;g=meta.k8s.io;v=v1\r\n\r\n"
            ),
        }
    }
}

/// A process of hostile clients.
pub struct Siege {
    child: Child,
    opened: usize,
}

impl Siege {
    /// Starts so many clients on the cluster's machine, and returns when each is connected or was refused.
    pub fn begin(cluster: &Cluster, attack: Attack, count: usize) -> Result<Self> {
        let program = crate::gantry()?.with_file_name("gantry-siege");
        ensure!(
            program.is_file(),
            "{} is missing: run 'cargo build --workspace --bins' first",
            program.display()
        );
        let mut child = cluster
            .command(program)
            .args([attack.word(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting hostile clients")?;
        let output = child.stdout.take().context("their output")?;
        let mut siege = Self { child, opened: 0 };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let opened = line.trim().parse();
        siege.opened = opened.with_context(|| format!("hostile clients said {line:?}"))?;
        Ok(siege)
    }

    /// How many were connected, for some time at least.
    pub fn opened(&self) -> usize {
        self.opened
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        // They may have ended by themselves.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The program of hostile clients: `gantry-siege ATTACK COUNT`, until its input ends.
pub async fn run(arguments: &[String]) -> Result<()> {
    let [attack, count] = arguments else {
        bail!("usage: gantry-siege ATTACK COUNT");
    };
    let (attack, count) = (Attack::of_word(attack)?, count.parse::<usize>()?);
    ensure!(
        count <= AT_MOST,
        "{count} are too many for one process: {AT_MOST} at most"
    );
    let path = std::env::var("KUBECONFIG").context("KUBECONFIG names no file")?;
    let tls = Arc::new(configuration(Path::new(&path), attack)?);
    let words: Arc<str> = attack.words().into();
    let opening = futures::stream::iter(0..count).map(|number| {
        let (tls, words) = (tls.clone(), words.clone());
        async move {
            let opened = tokio::time::timeout(PATIENCE, open(number, attack, tls, &words)).await;
            opened.ok()?.ok()
        }
    });
    let open: Vec<_> = opening
        .buffer_unordered(OPENING)
        .filter_map(futures::future::ready)
        .collect()
        .await;
    println!("{}", open.len());
    let (over, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Ends with the process that began this one, at the latest.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        drop(over);
    });
    tokio::time::timeout(LONGEST, ended).await.ok();
    Ok(())
}

/// A connection that is held.
enum Held {
    Plain { _stream: TcpStream },
    Tls { _stream: Box<TlsStream<TcpStream>> },
}

async fn open(number: usize, attack: Attack, tls: Arc<ClientConfig>, words: &str) -> Result<Held> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE)?;
    // 127.0.0.0/8 is this machine's own: an address for each.
    let number = u32::try_from(number)?;
    let from = u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number;
    socket.bind(SocketAddr::new(Ipv4Addr::from(from).into(), 0))?;
    let server = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    let stream = socket.connect(server).await?;
    if attack == Attack::Silent {
        return Ok(Held::Plain { _stream: stream });
    }
    let name = ServerName::IpAddress(server.ip().into());
    let mut stream = TlsConnector::from(tls).connect(name, stream).await?;
    stream.write_all(words.as_bytes()).await?;
    stream.flush().await?;
    Ok(Held::Tls {
        _stream: Box::new(stream),
    })
}

fn configuration(kubeconfig: &Path, attack: Attack) -> Result<ClientConfig> {
    let mut config = match attack {
        Attack::Silent | Attack::HalfHeads => gantry_tls::anyone()?,
        _ => {
            let text = std::fs::read_to_string(kubeconfig)
                .with_context(|| format!("reading {}", kubeconfig.display()))?;
            let kubeconfig: serde_json::Value = serde_norway::from_str(&text)?;
            let decode = |value: &serde_json::Value| -> Result<String> {
                let text = value.as_str().context("a credential in the kubeconfig")?;
                Ok(String::from_utf8(STANDARD.decode(text)?)?)
            };
            let authority = &kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"];
            let user = &kubeconfig["users"][0]["user"];
            let credential = gantry_tls::Credential::from_pem(
                decode(&user["client-certificate-data"])?,
                decode(&user["client-key-data"])?,
            )?;
            gantry_tls::mutual(&decode(authority)?, &credential)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each handshake in full.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
