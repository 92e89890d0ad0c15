//! One bound in bytes for everything that waits for clients: what is queued for watches here, and in the API server
//! answers on their way and bodies that arrive.
//!
//! Nothing is asked for twice: whoever holds bytes for a client holds a [`Charge`] beside them. A charge never fails, for
//! the bytes are there already; who makes more of them looks at [`Budget::free`] first and ends some reader instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// All of it, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What is held for clients, in bytes; may be more than the limit for a moment.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// What is left, in bytes.
    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// Counts bytes until the charge is dropped.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Charge {
            budget: Arc::clone(self),
            bytes,
        }
    }
}

/// Bytes of a [`Budget`] in use.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts further bytes with these.
    pub fn grow(&mut self, bytes: usize) {
        self.budget.used.fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_for_as_long_as_they_are_held() {
        let budget = Budget::new(100);
        let mut first = budget.charge(30);
        let second = budget.charge(50);
        assert_eq!((budget.used(), budget.free()), (80, 20));
        first.grow(40);
        assert_eq!((first.bytes(), budget.used(), budget.free()), (70, 120, 0));
        drop((first, second));
        assert_eq!((budget.used(), budget.free()), (0, 100));
    }
}
