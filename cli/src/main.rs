//! The `gantry` binary: a whole cluster in one file, and the client for it.
//!
//! Knows the composition roots of server and agent, and otherwise only the REST API. Before anything else it looks
//! whether it was re-executed as a pod's shim or as one of the runtime's helpers: those must start with one thread
//! and little memory.

mod client;
mod cluster;
mod duration;
mod failures;
mod manifest;
mod output;
mod process;
mod verbs;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use client::{Cluster, Credentials};

/// Runs containers on one machine or many, from Kubernetes manifests.
#[derive(Debug, Parser)]
#[command(
    name = "gantry",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(flatten)]
    credentials: Credentials,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(cluster::Up),
    Down(cluster::Down),
    Server(cluster::ServerCommand),
    Agent(cluster::AgentCommand),
    Recover(cluster::Recover),
    Auth(verbs::auth::Auth),
    Backup(verbs::backup::Backup),
    Certs(verbs::certs::Certs),
    Apply(verbs::apply::Apply),
    Create(verbs::create::Create),
    Get(verbs::get::Get),
    Describe(verbs::describe::Describe),
    Doctor(verbs::doctor::Doctor),
    Explain(verbs::explain::Explain),
    Top(verbs::top::Top),
    Logs(verbs::logs::Logs),
    Exec(verbs::exec::Exec),
    Attach(verbs::attach::Attach),
    Cp(verbs::cp::Cp),
    PortForward(verbs::port_forward::PortForward),
    Delete(verbs::delete::Delete),
    Scale(verbs::scale::Scale),
    Set(verbs::set::Set),
    Rollout(verbs::rollout::Rollout),
    Image(verbs::image::ImageCommand),
    Member(verbs::member::Member),
    Secrets(verbs::secrets::Secrets),
    Token(verbs::token::Token),
    User(verbs::user::User),
    Version(verbs::version::Version),
}

impl Command {
    /// Whether files are made that are nobody else's business, unlike those that a client fetches for its user.
    fn keeps_state(&self) -> bool {
        matches!(
            self,
            Self::Up(_)
                | Self::Down(_)
                | Self::Server(_)
                | Self::Agent(_)
                | Self::Recover(_)
                | Self::Backup(_)
        )
    }

    fn join_token(&self) -> Option<&cluster::JoinToken> {
        match self {
            Self::Up(up) => Some(&up.join.token),
            Self::Server(server) => Some(&server.join.token),
            Self::Agent(agent) => Some(&agent.token),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    if let Some(code) = gantry_runtime::dispatch(std::env::args_os()) {
        return code;
    }
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", client::explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.command.keeps_state() {
        cluster::keep_to_ourselves();
    }
    if let Some(token) = arguments.command.join_token() {
        token.hide()?;
    }
    let netns = match &arguments.command {
        Command::Up(up) => up.netns.as_deref(),
        Command::Agent(agent) => agent.netns.as_deref(),
        _ => None,
    };
    if let Some(netns) = netns {
        cluster::enter(netns)?;
    }
    // Detaching forks, which a process with threads must not do.
    if let Command::Up(up) = &arguments.command
        && !up.foreground
    {
        return up.detach();
    }
    if arguments.command.keeps_state() {
        await_randomness();
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    runtime.build()?.block_on(execute(arguments))
}

/// Reads a byte of /dev/random, for which the kernel makes randomness when it has none yet. Libraries only wait for it to be
/// readable, which on an idle machine that has just booted it never becomes by itself.
fn await_randomness() {
    use std::io::Read;
    let read = std::fs::File::open("/dev/random").and_then(|mut file| file.read_exact(&mut [0]));
    // Where there is no such file, there is nothing to wait for.
    read.unwrap_or_default();
}

async fn execute(arguments: Arguments) -> Result<ExitCode> {
    let credentials = &arguments.credentials;
    match &arguments.command {
        Command::Up(up) => log_then(up.run()).await?,
        Command::Server(server) => log_then(server.run()).await?,
        Command::Agent(agent) => log_then(agent.run()).await?,
        Command::Down(down) => down.run().await?,
        Command::Recover(recover) => recover.run().await?,
        Command::Auth(auth) => return auth.run(credentials).await,
        Command::Backup(backup) => backup.run(credentials).await?,
        Command::Certs(certs) => certs.run(&Cluster::connect(credentials).await?).await?,
        Command::Image(image) => image.run().await?,
        Command::Version(version) => version.run(Cluster::connect(credentials).await).await?,
        Command::Member(member) => member.run(&Cluster::connect(credentials).await?).await?,
        Command::Secrets(secrets) => secrets.run(&Cluster::connect(credentials).await?).await?,
        Command::Token(token) => token.run(&Cluster::connect(credentials).await?).await?,
        Command::User(user) => user.run(credentials).await?,
        Command::Apply(apply) => apply.run(&Cluster::connect(credentials).await?).await?,
        Command::Create(create) => create.run(&Cluster::connect(credentials).await?).await?,
        Command::Get(get) => get.run(&Cluster::connect(credentials).await?).await?,
        Command::Describe(describe) => describe.run(&Cluster::connect(credentials).await?).await?,
        Command::Doctor(doctor) => return doctor.run(credentials).await,
        Command::Explain(explain) => explain.run(&Cluster::connect(credentials).await?).await?,
        Command::Top(top) => top.run(&Cluster::connect(credentials).await?).await?,
        Command::Logs(logs) => logs.run(&Cluster::connect(credentials).await?).await?,
        Command::Exec(exec) => return exec.run(&Cluster::connect(credentials).await?).await,
        Command::Attach(attach) => return attach.run(&Cluster::connect(credentials).await?).await,
        Command::Cp(cp) => cp.run(&Cluster::connect(credentials).await?).await?,
        Command::PortForward(forward) => forward.run(&Cluster::connect(credentials).await?).await?,
        Command::Delete(delete) => delete.run(&Cluster::connect(credentials).await?).await?,
        Command::Scale(scale) => scale.run(&Cluster::connect(credentials).await?).await?,
        Command::Set(set) => set.run(&Cluster::connect(credentials).await?).await?,
        Command::Rollout(rollout) => rollout.run(&Cluster::connect(credentials).await?).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Daemons log; client verbs only print.
async fn log_then(daemon: impl Future<Output = Result<()>>) -> Result<()> {
    process::raise_descriptors();
    let filter = tracing_subscriber::EnvFilter::try_from_env("GANTRY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would be told on standard error too, which panics when that is a file on a full disk.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    gantry_tasks::log_panics();
    let last = gantry_runtime::guard_process();
    if !last.context("hiding this process's memory from others")? {
        tracing::warn!(
            "without CAP_SYS_RESOURCE the kernel may end this process before pods when memory runs out"
        );
    }
    tokio::select! {
        ended = daemon => ended,
        () = process::give_memory_back() => Ok(()),
    }
}
