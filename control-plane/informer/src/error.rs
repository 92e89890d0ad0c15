//! What went wrong with a request, and how much it matters.

use std::error::Error;
use std::fmt::Display;

/// Why a reconcile failed.
pub trait Failure: Display {
    /// Whether that happens now and then where many work at once, and nothing is wrong: what it was about had changed
    /// meanwhile, or is not there yet.
    fn is_expected(&self) -> bool {
        false
    }
}

/// The API server's own words, or ours when it did not answer.
///
/// What `kube::Error` says of an answer is longer: it goes on with all of it as a debugger would show it.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// What an error and its causes say, each in its own words, down to the answer of the API server if there was one.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(answer) = error.downcast_ref::<kube::Error>() {
            parts.push(words(answer));
            break;
        }
        parts.push(error.to_string());
        next = error.source();
    }
    parts.join(": ")
}

/// Whether a write was refused because the object had changed since it was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn answer(code: u16, reason: &str) -> kube::Error {
        let status = Status::failure("in so many words", reason).with_code(code);
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn an_answer_is_told_in_its_own_words_alone() {
        assert_eq!(words(&answer(409, "Conflict")), "in so many words");
        let other = kube::Error::LinesCodecMaxLineLengthExceeded;
        assert_eq!(words(&other), "Error finding newline character");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("writing it")]
    struct Outer(#[source] kube::Error);

    #[test]
    fn causes_are_told_as_briefly() {
        let outer = Outer(answer(409, "Conflict"));
        assert_eq!(chain(&outer), "writing it: in so many words");
        assert_eq!(chain(&answer(409, "Conflict")), "in so many words");
    }

    #[test]
    fn what_is_there_already_is_no_conflict() {
        assert!(is_conflict(&answer(409, "Conflict")));
        assert!(!is_conflict(&answer(409, "AlreadyExists")));
        assert!(!is_conflict(&answer(403, "Forbidden")));
    }
}
