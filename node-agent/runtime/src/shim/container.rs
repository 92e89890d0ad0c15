//! One attempt of one container, from its helper's start until the agent forgets it: its stdio, log and end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gantry_rpc::shim::{self, ContainerRef, SandboxConfig, Start};
use rustix::event::PollFlags;
use rustix::process::WaitStatus;
use rustix::termios::Winsize;

use super::exit_code;
use super::io::{Output, Read, nonblocking, read};
use super::log::{Log, Stream};
use crate::namespaces::Namespaces;
use crate::sys;

/// The socket in a container's directory over which its terminal arrives.
pub(crate) const CONSOLE: &str = "console.sock";
/// Kubernetes keeps this much of a termination message.
const MAX_MESSAGE: usize = 4096;
/// What an ended container may still have in its pipes; more than that comes from a process that should be gone.
const MAX_DRAIN: usize = 1 << 20;

/// One of a container's descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// Where the terminal arrives.
    Console,
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
    /// Its standard input has room again.
    Stdin,
    /// An attached client sent input.
    ClientInput(u64),
    /// An attached client has room again.
    ClientOutput,
}

/// An agent's client attached to a container.
pub(crate) struct Attachment {
    connection: u64,
    stdin: Option<OwnedFd>,
    outputs: Vec<Output>,
}

impl Attachment {
    /// Takes the descriptors of an `Attach` request.
    pub(crate) fn new(connection: u64, stdin: bool, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let mut fds = fds.into_iter();
        let stdin = if stdin {
            fds.next().map(nonblocking).transpose()?
        } else {
            None
        };
        let outputs = fds.map(Output::new).collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            connection,
            stdin,
            outputs,
        })
    }
}

enum Life {
    Creating,
    Running { pid: i32 },
    Exited(shim::Exit),
}

/// `Creating -> Running -> Exited`, never back.
pub(crate) struct Container {
    /// Names it within the poll loop.
    pub(crate) serial: u64,
    name: String,
    attempt: u32,
    dir: PathBuf,
    tty: bool,
    oom_file: PathBuf,
    procs_file: PathBuf,
    termination_file: PathBuf,
    life: Life,
    started_at: i64,
    console: Option<UnixListener>,
    stdin: Option<Output>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    log: Log,
    /// Whether the last write to it failed.
    log_fails: bool,
    attachments: Vec<Attachment>,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

impl Container {
    /// Prepares stdio and log, and starts the helper that creates it.
    pub(crate) fn create(
        serial: u64,
        config: &SandboxConfig,
        start: Start,
        executable: &Path,
        namespaces: &Namespaces,
    ) -> io::Result<(Self, Child)> {
        let reference = start.container.unwrap_or_default();
        let dir = PathBuf::from(start.dir);
        let log = Log::open(
            Path::new(&config.log_dir),
            &reference.name,
            reference.attempt,
            config.log_max_bytes,
            config.log_max_files,
        )?;
        let mut command = Command::new(executable);
        command.arg(crate::CREATE_HELPER).arg(&dir);
        let inherited = namespaces.hand_to(&mut command)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut console = None;
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        if start.tty {
            let listener = super::bind(&dir, CONSOLE)?;
            listener.set_nonblocking(true)?;
            console = Some(listener);
        } else {
            let (reader, writer) = io::pipe()?;
            stdout = Some(nonblocking(reader.into())?);
            command.stdout(writer);
            let (reader, writer) = io::pipe()?;
            stderr = Some(nonblocking(reader.into())?);
            command.stderr(writer);
            if start.stdin {
                let (reader, writer) = io::pipe()?;
                stdin = Some(Output::new(writer.into())?);
                command.stdin(reader);
            }
        }
        let helper = command.spawn()?;
        drop(inherited);
        let container = Self {
            serial,
            name: reference.name,
            attempt: reference.attempt,
            dir,
            tty: start.tty,
            oom_file: start.oom_file.into(),
            procs_file: start.procs_file.into(),
            termination_file: start.termination_file.into(),
            life: Life::Creating,
            started_at: 0,
            console,
            stdin,
            stdout,
            stderr,
            log,
            log_fails: false,
            attachments: Vec::new(),
        };
        Ok((container, helper))
    }

    pub(crate) fn is(&self, reference: &ContainerRef) -> bool {
        self.name == reference.name && self.attempt == reference.attempt
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn created(&self) -> bool {
        !matches!(self.life, Life::Creating)
    }

    pub(crate) fn exited(&self) -> bool {
        matches!(self.life, Life::Exited(_))
    }

    pub(crate) fn running_pid(&self) -> Option<i32> {
        match self.life {
            Life::Running { pid } => Some(pid),
            _ => None,
        }
    }

    pub(crate) fn describe(&self) -> shim::Container {
        shim::Container {
            container: Some(ContainerRef {
                name: self.name.clone(),
                attempt: self.attempt,
            }),
            pid: self.running_pid().unwrap_or(0),
            started_at: self.started_at,
            exit: match &self.life {
                Life::Exited(exit) => Some(exit.clone()),
                _ => None,
            },
            tty: self.tty,
        }
    }

    pub(crate) fn started(&mut self, pid: i32) {
        self.started_at = now();
        self.life = Life::Running { pid };
    }

    /// Names every descriptor worth waiting for.
    pub(crate) fn poll_set<'a>(&'a self, mut add: impl FnMut(Part, BorrowedFd<'a>, PollFlags)) {
        if let Some(console) = &self.console {
            add(Part::Console, console.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = &self.stdout {
            add(Part::Stdout, fd.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = &self.stderr {
            add(Part::Stderr, fd.as_fd(), PollFlags::IN);
        }
        let stdin_behind = self.stdin.as_ref().is_some_and(Output::is_behind);
        if let Some(stdin) = self.stdin.as_ref().filter(|_| stdin_behind) {
            add(Part::Stdin, stdin.as_fd(), PollFlags::OUT);
        }
        for attachment in &self.attachments {
            if let Some(fd) = attachment.stdin.as_ref().filter(|_| !stdin_behind) {
                add(
                    Part::ClientInput(attachment.connection),
                    fd.as_fd(),
                    PollFlags::IN,
                );
            }
            for output in attachment
                .outputs
                .iter()
                .filter(|output| output.is_behind())
            {
                add(Part::ClientOutput, output.as_fd(), PollFlags::OUT);
            }
        }
    }

    /// Handles one descriptor that is ready.
    pub(crate) fn ready(&mut self, part: Part) {
        match part {
            Part::Console => self.receive_terminal(),
            Part::Stdout => drop(self.forward(Stream::Stdout)),
            Part::Stderr => drop(self.forward(Stream::Stderr)),
            Part::Stdin => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.flush();
                }
            }
            Part::ClientInput(connection) => self.client_input(connection),
            Part::ClientOutput => {
                for output in self
                    .attachments
                    .iter_mut()
                    .flat_map(|attachment| &mut attachment.outputs)
                {
                    output.flush();
                }
                self.drop_finished_clients();
            }
        }
        if self.stdin.as_ref().is_some_and(Output::is_broken) {
            self.stdin = None;
        }
    }

    fn receive_terminal(&mut self) {
        let Some(Ok((stream, _))) = self.console.as_ref().map(UnixListener::accept) else {
            return;
        };
        self.console = None;
        let received = receive_console(&stream).and_then(|terminal| {
            let input = Output::new(terminal.try_clone()?)?;
            Ok((nonblocking(terminal)?, input))
        });
        match received {
            Ok((terminal, input)) => {
                self.stdout = Some(terminal);
                self.stdin = Some(input);
            }
            Err(error) => eprintln!("receiving the terminal of {}: {error}", self.name),
        }
    }

    /// Moves one buffer of output to the log and to attached clients.
    fn forward(&mut self, stream: Stream) -> Read {
        let source = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(fd) = source else { return Read::End };
        let mut buffer = [0u8; 8192];
        let result = read(&fd, &mut buffer);
        match result {
            Read::Bytes(count) => {
                let written = self.log.write(stream, &buffer[..count]);
                // Once: a container that talks while the disk is full must not fill what this is written to.
                if let Err(error) = &written
                    && !self.log_fails
                {
                    eprintln!("writing the log of {}: {error}", self.name);
                }
                self.log_fails = written.is_err();
                for attachment in &mut self.attachments {
                    if let Some(output) = attachment.outputs.get_mut(stream as usize) {
                        output.push(&buffer[..count]);
                    }
                }
            }
            Read::Later => {}
            Read::End => *source = None,
        }
        result
    }

    fn client_input(&mut self, connection: u64) {
        let Some(attachment) = self
            .attachments
            .iter_mut()
            .find(|known| known.connection == connection)
        else {
            return;
        };
        let Some(fd) = &attachment.stdin else { return };
        let mut buffer = [0u8; 8192];
        match read(fd, &mut buffer) {
            Read::Bytes(count) => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.push(&buffer[..count]);
                }
            }
            Read::Later => {}
            Read::End => {
                attachment.stdin = None;
                // A terminal stays; a pipe ends, as for any command at the end of a pipeline.
                if !self.tty {
                    self.stdin = None;
                }
            }
        }
    }

    pub(crate) fn attach(&mut self, attachment: Attachment) {
        self.attachments.push(attachment);
    }

    pub(crate) fn detach(&mut self, connection: u64) {
        self.attachments
            .retain(|attachment| attachment.connection != connection);
    }

    /// Connections of the clients attached.
    pub(crate) fn attached(&self) -> Vec<u64> {
        self.attachments
            .iter()
            .map(|attachment| attachment.connection)
            .collect()
    }

    pub(crate) fn resize(&self, width: u32, height: u32) {
        let (Some(terminal), true) = (&self.stdout, self.tty) else {
            return;
        };
        let size = Winsize {
            ws_row: u16::try_from(height).unwrap_or(u16::MAX),
            ws_col: u16::try_from(width).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Err(error) = rustix::termios::tcsetwinsize(terminal, size) {
            eprintln!("resizing the terminal of {}: {error}", self.name);
        }
    }

    /// Records the end of the init process: what it still had to say, and why it ended.
    pub(crate) fn ended(&mut self, status: WaitStatus) {
        // With a pid namespace of its own everything is gone already; in a shared one, its children are not.
        self.kill_all();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut drained = 0;
            while let Read::Bytes(count) = self.forward(stream) {
                drained += count;
                if drained > MAX_DRAIN {
                    break;
                }
            }
        }
        if let Err(error) = self.log.finish() {
            eprintln!("writing the log of {}: {error}", self.name);
        }
        (self.console, self.stdin, self.stdout, self.stderr) = (None, None, None, None);
        let (code, signal) = exit_code(status);
        self.life = Life::Exited(shim::Exit {
            code,
            signal: signal.unwrap_or(0),
            oom_killed: oom_killed(&self.oom_file),
            finished_at: now(),
            message: termination_message(&self.termination_file),
        });
    }

    fn drop_finished_clients(&mut self) {
        if self.exited() {
            self.attachments
                .retain(|attachment| attachment.outputs.iter().any(Output::is_behind));
        }
    }

    /// Attached clients that have read everything see the end of their streams.
    pub(crate) fn close_clients(&mut self) {
        self.drop_finished_clients();
    }

    /// Kills every process of its cgroup.
    pub(crate) fn kill_all(&self) {
        let Ok(members) = fs::read_to_string(&self.procs_file) else {
            return;
        };
        for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()) {
            match sys::kill(pid, libc::SIGKILL) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    eprintln!("killing {pid} of {}: {error}", self.name);
                }
                _ => {}
            }
        }
    }
}

/// Receives the one descriptor of a console socket.
pub(crate) fn receive_console(stream: &std::os::unix::net::UnixStream) -> io::Result<OwnedFd> {
    let (mut name, mut fds) = (Vec::new(), Vec::new());
    sys::receive(stream, &mut name, &mut fds)?;
    fds.pop()
        .ok_or_else(|| io::Error::other("no terminal was sent"))
}

/// Both cgroup v1 (`memory.oom_control`) and v2 (`memory.events`) count in a line `oom_kill N`.
fn oom_killed(file: &Path) -> bool {
    let Ok(counters) = fs::read_to_string(file) else {
        return false;
    };
    counters
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim() != "0")
}

fn termination_message(file: &Path) -> String {
    let mut buffer = [0u8; MAX_MESSAGE];
    let Ok(file) = fs::File::open(file) else {
        return String::new();
    };
    let length = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let start = length.saturating_sub(MAX_MESSAGE as u64);
    let count = file.read_at(&mut buffer, start).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}
