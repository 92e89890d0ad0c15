//! A failed request, in the words a person can act on.

use gantry_tls::Lifetime;

/// What came back instead of an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The API server refused: a Status.
    #[error("Error from server ({reason}): {message}")]
    Status {
        code: u16,
        reason: String,
        message: String,
    },
    /// Nobody answered.
    #[error(
        "cannot reach the cluster: {0}\nIs it running? Start one with 'gantry up', or name another with --kubeconfig."
    )]
    Unreachable(String),
    /// A certificate is not valid at this time.
    #[error("cannot reach the cluster: {0}")]
    Clocks(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl ApiError {
    /// The HTTP status of a refusal.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// `own` is how long the client's own certificate lasts, where that is known.
    pub(crate) fn new(error: kube::Error, own: Option<Lifetime>) -> Self {
        if let Some(words) = gantry_tls::about_clocks(&error, own) {
            return Self::Clocks(words);
        }
        match error {
            kube::Error::Api(status) => Self::Status {
                code: status.code,
                reason: match status.reason.is_empty() {
                    true => "Unknown".to_owned(),
                    false => status.reason.clone(),
                },
                message: status.message.clone(),
            },
            kube::Error::Service(source) => Self::Unreachable(innermost(source.as_ref())),
            kube::Error::HyperError(source) => Self::Unreachable(innermost(&source)),
            other => Self::Other(innermost(&other)),
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        Self::new(error, None)
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(format!("{error:#}"))
    }
}

/// The last cause of an error: what the kernel or the TLS library said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// One line (or a few) for the terminal: server errors as kubectl prints them, everything else after `error: `.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    match text.starts_with("Error from server") {
        true => text,
        false => format!("error: {text}"),
    }
}
