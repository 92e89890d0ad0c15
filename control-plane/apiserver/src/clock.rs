//! The time, as the server stamps it on objects.

use std::sync::Arc;

/// Nanoseconds since the epoch; another clock in tests.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Arc::new(|| {
            i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
        }))
    }

    /// A clock of one's own.
    pub fn new(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    pub fn now(&self) -> i64 {
        (self.0)()
    }

    /// Now, as metav1.Time.
    pub(crate) fn stamp(&self) -> String {
        gantry_api::time::seconds(self.now())
    }
}
