//! Why a reconcile failed.

pub(crate) use gantry_informer::words;
use gantry_informer::{Cache, Failure, Key, Object, is_conflict};
use kube::api::Api;

/// A reconcile that did not finish; the runner logs it and tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request that was refused or got no answer.
    #[error("{doing} {object}: {}", words(.source))]
    Request {
        doing: &'static str,
        object: String,
        source: kube::Error,
    },
    /// The world is not yet as the next step needs it; trying again is all there is to do.
    #[error("{object}: {why}")]
    NotYet { object: String, why: String },
    /// What was to be made is refused, as the object's status says, too.
    #[error("{object}: {why}")]
    Refused { object: String, why: String },
}

impl Failure for Error {
    fn is_expected(&self) -> bool {
        match self {
            Self::Request { source, .. } => is_conflict(source),
            Self::NotYet { .. } => true,
            Self::Refused { .. } => false,
        }
    }
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

/// Takes in the answer to a write. One that came too late has the object looked at as it is now, so that the next attempt
/// does not fail by the same old state, whenever the watch tells of it.
pub(crate) async fn taken_in<K: Object>(
    answer: kube::Result<K>,
    api: &Api<K>,
    cache: &Cache<K>,
    name: &str,
) -> kube::Result<()> {
    let error = match answer {
        Ok(written) => {
            cache.observe(written);
            return Ok(());
        }
        Err(error) => error,
    };
    if is_conflict(&error)
        && let Ok(Some(current)) = api.get_opt(name).await
    {
        cache.observe(current);
    }
    Err(error)
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

#[cfg(test)]
mod tests {
    use gantry_informer::object::revision;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, reason: &str) -> kube::Error {
        let status = Status::failure("in so many words", reason).with_code(code);
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn a_conflict_is_expected_and_every_error_is_told_in_a_line() {
        for (code, reason, expected) in [
            (409, "Conflict", true),
            (409, "AlreadyExists", false),
            (403, "Forbidden", false),
            (500, "InternalError", false),
        ] {
            let answer: kube::Result<()> = Err(refused(code, reason));
            let failed = answer.doing("writing", &Key::new("ns", "a"));
            let error = failed.expect_err("it was refused");
            assert_eq!(error.to_string(), "writing ns/a: in so many words");
            assert_eq!(error.is_expected(), expected, "{code} {reason}");
        }
    }

    #[tokio::test]
    async fn a_write_that_came_too_late_has_the_object_looked_at_anew() {
        let stored = r#"{"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "ns", "uid": "1", "resourceVersion": "7"}}"#;
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| async move {
            let body = kube::client::Body::from(stored.as_bytes().to_vec());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        });
        let client = kube::Client::new(service, "ns");
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        let cache = Cache::new(Vec::new());
        let late = taken_in(Err(refused(409, "Conflict")), &api, &cache, "a").await;
        assert!(late.is_err());
        let known = cache.get(&Key::new("ns", "a")).expect("it was looked at");
        assert_eq!(revision(&known.metadata), 7);
    }
}
