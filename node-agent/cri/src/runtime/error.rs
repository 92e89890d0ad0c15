//! What can go wrong when running containers.

/// Errors of the runtime, worded for a pod's status and Events.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The sandbox does not exist (any more).
    #[error("pod sandbox {0} is not running")]
    NoSandbox(String),
    /// The container does not exist or is not running.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The command is not in the image or cannot be executed; Kubernetes' reason is `ContainerCannotRun`/exit 127 or 126.
    #[error("exec: \"{command}\": {cause}")]
    CannotExecute {
        /// argv[0].
        command: String,
        /// e.g. `executable file not found in $PATH`, `permission denied`, `no such file or directory`.
        cause: String,
    },
    /// The container could not be created.
    #[error("creating container {container}: {cause}")]
    Create {
        /// Its name.
        container: String,
        /// Why, and what to do.
        cause: String,
    },
    /// The node lacks something.
    #[error("{0}")]
    Unsupported(String),
    /// Talking to the shim, or the file system, failed.
    #[error("{doing}")]
    Io {
        /// What was being done, to which object.
        doing: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The shim answered with an error.
    #[error("{0}")]
    Shim(String),
}
