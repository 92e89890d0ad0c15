//! What the agent asks, over one connection each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use gantry_rpc::shim::{
    Attach, ContainerRef, Containers, Empty, Exec, Failure, Reply, Request, Start, failure, reply,
    request,
};
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, WaitStatus, pidfd_open};

use super::container::{Attachment, Container};
use super::{Helper, Purpose, Shim, exit_code};
use crate::helper::Outcome;
use crate::sys;

/// What a connection is kept open for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Role {
    /// One answer.
    Plain,
    /// Events of all containers.
    Subscriber,
    /// Waits for a container to be created.
    Starting { name: String, attempt: u32 },
    /// A command in a container; 0 until its helper has named it.
    Exec { pid: i32 },
    /// Attached to a container.
    Attached { name: String, attempt: u32 },
}

/// One connection of the agent.
pub(crate) struct Connection {
    pub(crate) id: u64,
    stream: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    pub(crate) role: Role,
    ended: bool,
}

impl Connection {
    pub(crate) fn new(id: u64, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            id,
            stream,
            input: Vec::new(),
            fds: Vec::new(),
            output: Vec::new(),
            role: Role::Plain,
            ended: false,
        })
    }

    pub(crate) fn interest(&self) -> PollFlags {
        if self.has_output() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty() && !self.ended
    }

    pub(crate) fn closed(&self) -> bool {
        self.ended
    }

    pub(crate) fn reply(&mut self, body: reply::Body) {
        self.output
            .extend_from_slice(&sys::frame(&Reply { body: Some(body) }));
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match sys::send(&self.stream, &self.output, &[]) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    /// Reads what is there; a broken frame ends the connection.
    fn receive(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        loop {
            match sys::receive(&self.stream, &mut self.input, &mut self.fds) {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.ended = true,
            }
            loop {
                match sys::take_frame(&mut self.input) {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(_) => {
                        self.ended = true;
                        break;
                    }
                }
            }
            if self.ended {
                break;
            }
        }
        requests
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn failed(kind: failure::Kind, message: impl Into<String>) -> reply::Body {
    reply::Body::Failure(Failure {
        kind: kind.into(),
        message: message.into(),
    })
}

fn not_running(container: &ContainerRef) -> reply::Body {
    failed(failure::Kind::NotRunning, container.name.clone())
}

impl Shim {
    pub(super) fn connection_ready(&mut self, index: usize, ready: PollFlags) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if ready.contains(PollFlags::OUT) {
            connection.flush();
        }
        if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        for request in connection.receive() {
            if let Some(body) = request.body
                && let Some(answer) = self.answer(index, body)
            {
                self.connections[index].reply(answer);
            }
        }
    }

    /// `None` when the answer comes later.
    fn answer(&mut self, index: usize, body: request::Body) -> Option<reply::Body> {
        let done = Some(reply::Body::Done(Empty {}));
        match body {
            request::Body::List(_) => Some(self.list()),
            request::Body::Subscribe(_) => {
                self.connections[index].role = Role::Subscriber;
                Some(self.list())
            }
            request::Body::Start(start) => self.start(index, start),
            request::Body::Signal(signal) => {
                let reference = signal.container.unwrap_or_default();
                let Some(container) = self.find(&reference) else {
                    return Some(not_running(&reference));
                };
                match container
                    .running_pid()
                    .map(|pid| sys::kill(pid, signal.signal))
                {
                    // Its end is being recorded; a signal for it has nothing left to do.
                    None => done,
                    Some(Ok(())) => done,
                    Some(Err(error)) if error.raw_os_error() == Some(libc::ESRCH) => done,
                    Some(Err(error)) => Some(failed(
                        failure::Kind::Other,
                        format!("sending the signal: {error}"),
                    )),
                }
            }
            request::Body::Forget(reference) => {
                let position = self
                    .containers
                    .iter()
                    .position(|container| container.is(&reference));
                match position {
                    Some(found) if self.containers[found].exited() => {
                        drop(self.containers.remove(found))
                    }
                    Some(_) => {
                        let message = format!("container {} is still running", reference.name);
                        return Some(failed(failure::Kind::Other, message));
                    }
                    None => {}
                }
                done
            }
            request::Body::Exec(exec) => self.exec(index, exec),
            request::Body::Attach(attach) => self.attach(index, &attach),
            request::Body::Resize(size) => {
                if let Role::Attached { name, attempt } = self.connections[index].role.clone()
                    && let Some(container) = self.find(&ContainerRef { name, attempt })
                {
                    container.resize(size.width, size.height);
                }
                None
            }
            request::Body::Shutdown(_) => {
                self.shut_down();
                done
            }
        }
    }

    fn find(&mut self, reference: &ContainerRef) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.is(reference))
    }

    fn list(&self) -> reply::Body {
        reply::Body::Containers(Containers {
            containers: self.containers.iter().map(Container::describe).collect(),
            shim_pid: rustix::process::getpid().as_raw_pid(),
            pause_pid: self.namespaces.holder().unwrap_or(0),
            version: super::VERSION,
        })
    }

    fn start(&mut self, index: usize, start: Start) -> Option<reply::Body> {
        let reference = start.container.clone().unwrap_or_default();
        let role = Role::Starting {
            name: reference.name.clone(),
            attempt: reference.attempt,
        };
        if let Some(container) = self.find(&reference) {
            if !container.created() {
                // Asked twice: both get the answer of the one helper.
                self.connections[index].role = role;
                return None;
            }
            return Some(reply::Body::Container(container.describe()));
        }
        self.next_serial += 1;
        let created = Container::create(
            self.next_serial,
            &self.config,
            start,
            &self.executable,
            &self.namespaces,
        );
        match created {
            Ok((container, process)) => {
                self.containers.push(container);
                self.connections[index].role = role;
                let purpose = Purpose::Create {
                    name: reference.name,
                    attempt: reference.attempt,
                };
                self.helpers.insert(
                    i32::try_from(process.id()).unwrap_or(0),
                    Helper { process, purpose },
                );
                None
            }
            Err(error) => Some(failed(failure::Kind::Create, error.to_string())),
        }
    }

    fn exec(&mut self, index: usize, exec: Exec) -> Option<reply::Body> {
        let reference = exec.container.clone().unwrap_or_default();
        let fds = std::mem::take(&mut self.connections[index].fds);
        let Some(pid) = self
            .find(&reference)
            .and_then(|container| container.running_pid())
        else {
            return Some(not_running(&reference));
        };
        let process = match self.start_exec(pid, &exec, fds) {
            Ok(process) => process,
            Err(error) => {
                return Some(failed(
                    failure::Kind::Other,
                    format!("starting the exec helper: {error}"),
                ));
            }
        };
        self.connections[index].role = Role::Exec { pid: 0 };
        let purpose = Purpose::Exec {
            connection: self.connections[index].id,
            dir: PathBuf::from(exec.dir),
        };
        self.helpers.insert(
            i32::try_from(process.id()).unwrap_or(0),
            Helper { process, purpose },
        );
        None
    }

    /// Starts the helper that runs a command in the container with this init process.
    fn start_exec(&self, pid: i32, exec: &Exec, fds: Vec<OwnedFd>) -> io::Result<Child> {
        let mut command = Command::new(&self.executable);
        // By a descriptor: until this process reaps it, the number is the container's, but the helper lives longer.
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let init = pidfd_open(pid, PidfdFlags::empty())?;
        command.args([crate::EXEC_HELPER, &exec.dir]);
        command.arg(sys::let_inherit(&init)?.to_string());
        // A command that is given no input finds its end, and no file of the host.
        let (empty, _) = io::pipe()?;
        command.stdin(empty);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if !exec.tty {
            let mut fds = fds.into_iter();
            if exec.stdin
                && let Some(fd) = fds.next()
            {
                command.stdin(fd);
            }
            let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else {
                return Err(io::Error::other("no descriptors for the command's output"));
            };
            command.stdout(stdout).stderr(stderr);
        }
        command.spawn()
    }

    fn attach(&mut self, index: usize, attach: &Attach) -> Option<reply::Body> {
        let reference = attach.container.clone().unwrap_or_default();
        let fds = std::mem::take(&mut self.connections[index].fds);
        let id = self.connections[index].id;
        let Some(container) = self.find(&reference) else {
            return Some(not_running(&reference));
        };
        if container.running_pid().is_none() {
            return Some(not_running(&reference));
        }
        match Attachment::new(id, attach.stdin, fds) {
            Ok(attachment) => container.attach(attachment),
            Err(error) => return Some(failed(failure::Kind::Other, format!("attaching: {error}"))),
        }
        self.connections[index].role = Role::Attached {
            name: reference.name,
            attempt: reference.attempt,
        };
        Some(reply::Body::Done(Empty {}))
    }

    /// The agent closed a connection.
    pub(super) fn hung_up(&mut self, connection: Connection) {
        match connection.role {
            Role::Exec { pid } if pid > 0 => {
                if let Err(error) = sys::kill(pid, libc::SIGKILL) {
                    eprintln!("killing an abandoned command: {error}");
                }
            }
            Role::Attached { name, attempt } => {
                if let Some(container) = self.find(&ContainerRef { name, attempt }) {
                    container.detach(connection.id);
                }
            }
            _ => {}
        }
    }

    /// A helper has ended; what it has to say is in its result file.
    pub(super) fn helper_ended(&mut self, helper: Helper) {
        // Already reaped by the loop, so there is nothing left to wait for.
        drop(helper.process);
        match helper.purpose {
            Purpose::Create { name, attempt } => {
                let reference = ContainerRef { name, attempt };
                let Some(container) = self.find(&reference) else {
                    return;
                };
                let answer = match Outcome::read(container.dir()) {
                    Outcome::Running(pid) => {
                        container.started(pid);
                        reply::Body::Container(container.describe())
                    }
                    Outcome::CannotExecute(message) => {
                        failed(failure::Kind::CannotExecute, message)
                    }
                    Outcome::Failed(message) => failed(failure::Kind::Create, message),
                };
                if matches!(answer, reply::Body::Failure(_)) {
                    self.containers
                        .retain(|container| !container.is(&reference));
                }
                let role = Role::Starting {
                    name: reference.name,
                    attempt,
                };
                for connection in self
                    .connections
                    .iter_mut()
                    .filter(|connection| connection.role == role)
                {
                    connection.role = Role::Plain;
                    connection.reply(answer.clone());
                }
            }
            Purpose::Exec {
                connection: id,
                dir,
            } => {
                let outcome = Outcome::read(&dir);
                match self
                    .connections
                    .iter_mut()
                    .find(|connection| connection.id == id)
                {
                    Some(connection) => match outcome {
                        Outcome::Running(pid) => {
                            connection.role = Role::Exec { pid };
                            connection.reply(reply::Body::Running(pid));
                        }
                        Outcome::CannotExecute(message) => {
                            connection.reply(failed(failure::Kind::CannotExecute, message));
                        }
                        Outcome::Failed(message) => {
                            connection.reply(failed(failure::Kind::Other, message))
                        }
                    },
                    // Abandoned while it was being started.
                    None => {
                        if let Outcome::Running(pid) = outcome
                            && let Err(error) = sys::kill(pid, libc::SIGKILL)
                        {
                            eprintln!("killing an abandoned command: {error}");
                        }
                    }
                }
            }
        }
    }

    /// Whether the process was one we know.
    pub(super) fn process_ended(&mut self, pid: i32, status: WaitStatus) -> bool {
        if let Some(container) = self
            .containers
            .iter_mut()
            .find(|container| container.running_pid() == Some(pid))
        {
            container.ended(status);
            let body = reply::Body::Container(container.describe());
            let code = exit_code(status).0;
            let attached = container.attached();
            container.close_clients();
            for connection in &mut self.connections {
                if connection.role == Role::Subscriber {
                    connection.reply(body.clone());
                } else if attached.contains(&connection.id) {
                    connection.reply(reply::Body::Exited(code));
                }
            }
            return true;
        }
        for connection in &mut self.connections {
            if connection.role == (Role::Exec { pid }) {
                connection.role = Role::Plain;
                connection.reply(reply::Body::Exited(exit_code(status).0));
                return true;
            }
        }
        false
    }

    fn shut_down(&mut self) {
        for container in &mut self.containers {
            container.kill_all();
        }
        if let Some(pause) = self.namespaces.holder()
            && let Err(error) = sys::kill(pause, libc::SIGKILL)
        {
            eprintln!("ending the shared pid namespace: {error}");
        }
        self.stopping = true;
    }
}
