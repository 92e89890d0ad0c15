//! How many calls nodes have open, and how long one may take to say what it is for: what has not introduced itself yet is
//! not bounded by anything that it asks for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Status;

/// Agents send the first message with the call.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Links of one node that have not been registered yet: one, and one whose connection has just broken.
const OPENING: usize = 2;
/// Links of one node whose answers are still held somewhere. Only the latest is told anything; the others are those of dead
/// connections, which are noticed within a minute.
const LINKS: usize = 16;
/// Streams of one node that have not said yet which they are. A frame of 64 KiB may be on its way on each.
const DIALLING: usize = 512;
/// Tokens that one node waits for at once.
const TOKENS: usize = 64;

/// Calls of one sort, by node.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    what: &'static str,
    limit: usize,
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// One of them; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    node: String,
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Places {
    fn new(what: &'static str, limit: usize) -> Self {
        Self {
            what,
            limit,
            taken: Arc::default(),
        }
    }

    /// A place for one more call of a node.
    pub(crate) fn take(&self, node: &str) -> Result<Place, Status> {
        let mut taken = self.taken.lock();
        let count = taken.entry(node.to_owned()).or_default();
        if *count >= self.limit {
            return Err(Status::resource_exhausted(format!(
                "node \"{node}\" has {count} {}: none is added before one of them ends",
                self.what
            )));
        }
        *count += 1;
        Ok(Place {
            node: node.to_owned(),
            taken: self.taken.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.node);
            }
        }
    }
}

/// The open calls of all nodes.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) opening: Places,
    pub(crate) links: Places,
    pub(crate) dialling: Places,
    pub(crate) tokens: Places,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            opening: Places::new("links that are being opened", OPENING),
            links: Places::new("open links", LINKS),
            dialling: Places::new("streams that have not said which they are", DIALLING),
            tokens: Places::new("tokens on their way", TOKENS),
        }
    }
}

/// The first message of a call, if it comes in time.
pub(crate) async fn first<T>(
    message: impl Future<Output = Result<Option<T>, Status>>,
) -> Result<Option<T>, Status> {
    let waited = tokio::time::timeout(FIRST_MESSAGE, message).await;
    waited.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!(
            "the first message did not come within {} s",
            FIRST_MESSAGE.as_secs()
        )))
    })
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_node_has_so_many_places_and_others_have_theirs() {
        let places = Places::new("calls", 2);
        let held: Vec<Place> = (0..2).map(|_| places.take("a").expect("a place")).collect();
        let refused = places.take("a").expect_err("a third");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let other = places.take("b").expect("another node's");
        drop(held);
        let again = places.take("a").expect("free again");
        drop((again, other));
        assert!(places.taken.lock().is_empty(), "nobody is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_says_nothing_ends() {
        let refused = first::<()>(std::future::pending()).await;
        let refused = refused.expect_err("it is silent");
        assert_eq!(refused.code(), Code::DeadlineExceeded);
        let said = first(std::future::ready(Ok(Some(7)))).await;
        assert_eq!(said.expect("in time"), Some(7));
    }
}
