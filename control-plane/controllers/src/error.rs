//! Why a reconcile failed.

use gantry_informer::Key;

/// A reconcile that did not finish; the runner logs it and tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request that was refused or got no answer.
    #[error("{doing} {object}: {source}")]
    Request {
        doing: &'static str,
        object: String,
        source: kube::Error,
    },
    /// The world is not yet as the next step needs it; trying again is all there is to do.
    #[error("{object}: {why}")]
    NotYet { object: String, why: String },
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when a request failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str, object: &Key) -> Result<T>;
}

impl<T> Doing<T> for kube::Result<T> {
    fn doing(self, doing: &'static str, object: &Key) -> Result<T> {
        self.map_err(|source| Error::Request {
            doing,
            object: object.to_string(),
            source,
        })
    }
}

/// The HTTP code of an answer that is an error.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The API server's own words, or ours when it did not answer.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether a creation was refused because the namespace is on its way out, which no retry mends.
pub(crate) fn namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    status.details.as_ref().is_some_and(|details| {
        details
            .causes
            .iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
    })
}
