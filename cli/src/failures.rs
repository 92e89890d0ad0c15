//! Commands about several objects go on when one of them fails: each failure is said on standard error, in the order in which
//! they came, and the command ends with exit code 1.

use anyhow::{Error, Result};

use crate::client::explain;

/// What has failed so far. All but the last have been said; that one is the command's own error.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    last: Option<Error>,
}

impl Failures {
    /// Takes note of a failure.
    pub(crate) fn add(&mut self, error: impl Into<Error>) {
        if let Some(earlier) = self.last.replace(error.into()) {
            eprintln!("{}", explain(&earlier));
        }
    }

    /// What a step that may fail gave.
    pub(crate) fn keep<T>(&mut self, result: Result<T, impl Into<Error>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(error);
                None
            }
        }
    }

    /// Whether all has gone well.
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// The end of the command.
    pub(crate) fn finish(self) -> Result<()> {
        self.last.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_last_failure_is_the_commands_own() {
        let mut failures = Failures::default();
        assert_eq!(failures.keep(Ok::<_, Error>(1)), Some(1));
        assert!(failures.is_empty());
        for words in ["first", "second"] {
            assert_eq!(failures.keep(Err::<(), _>(anyhow!(words))), None);
        }
        assert!(!failures.is_empty());
        let error = failures.finish().expect_err("two failures");
        assert_eq!(error.to_string(), "second");
        assert!(Failures::default().finish().is_ok());
    }
}
