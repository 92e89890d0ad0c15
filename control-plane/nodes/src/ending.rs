//! The end of a link: whoever finds a reason ends both of its halves at once, whatever waits to be sent and whoever reads.

use std::sync::Arc;
use std::task::{Poll, Waker};

use futures::Stream;
use gantry_rpc::node::ServerMessage;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::calls::Place;

/// What goes down a link.
pub(crate) type Said = Result<ServerMessage, Status>;

/// A cancellation with its reason: the end of one link, which may have come. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Ending {
    over: CancellationToken,
    down: Arc<Mutex<Down>>,
}

/// What a node is still to be told.
#[derive(Default)]
struct Down {
    /// None before there is a stream, and after its end.
    queue: Option<mpsc::Receiver<Said>>,
    /// Told once, as the last word.
    why: Option<Status>,
    /// Who waits for the queue.
    reader: Option<Waker>,
}

impl Ending {
    /// One that has come already, with nobody to be told of it.
    pub(crate) fn past() -> Self {
        let past = Self::default();
        past.over.cancel();
        past
    }

    /// Ends the link: of what waits to be sent nothing is sent any more. The first reason counts.
    pub(crate) fn end(&self, why: Status) {
        let mut down = self.down.lock();
        if self.over.is_cancelled() {
            return;
        }
        self.over.cancel();
        down.why = Some(why);
        let (unsent, reader) = (down.queue.take(), down.reader.take());
        drop(down);
        // Here rather than when its reader comes, which may be never.
        drop(unsent);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Returns once the link has ended.
    pub(crate) async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// What waits in a queue until the end, and then why; holds the place for as long as somebody may read it.
    pub(crate) fn until(
        &self,
        queue: mpsc::Receiver<Said>,
        place: Place,
    ) -> impl Stream<Item = Said> + Send + 'static + use<> {
        {
            let mut down = self.down.lock();
            if !self.over.is_cancelled() {
                down.queue = Some(queue);
            }
        }
        let down = self.down.clone();
        futures::stream::poll_fn(move |context| {
            let _held = &place;
            let mut down = down.lock();
            if let Some(queue) = &mut down.queue {
                match queue.poll_recv(context) {
                    Poll::Ready(Some(said)) => return Poll::Ready(Some(said)),
                    Poll::Ready(None) => down.queue = None,
                    Poll::Pending => {
                        down.reader = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(down.why.take().map(Err))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::super::calls::Calls;
    use super::*;

    fn place() -> Place {
        Calls::default().links.take("one").expect("a place")
    }

    #[tokio::test]
    async fn the_end_comes_before_whatever_waits() {
        let ending = Ending::default();
        let (down, queue) = mpsc::channel(2);
        let stream = ending.until(queue, place());
        tokio::pin!(stream);
        for _ in 0..2 {
            down.try_send(Ok(ServerMessage::default())).expect("room");
        }
        ending.end(Status::permission_denied("revoked"));
        ending.end(Status::cancelled("later"));
        assert!(down.is_closed(), "nobody holds what was not sent");
        let told = stream.next().await.expect("why").expect_err("an end");
        assert_eq!(told.message(), "revoked");
        assert!(stream.next().await.is_none());
        ending.ended().await;
    }

    #[tokio::test]
    async fn who_waits_for_a_message_is_woken_by_the_end() {
        let ending = Ending::default();
        let (down, queue) = mpsc::channel(2);
        let reading = tokio::spawn({
            let stream = ending.until(queue, place());
            async move { stream.collect::<Vec<_>>().await }
        });
        tokio::task::yield_now().await;
        ending.end(Status::permission_denied("revoked"));
        assert_eq!(reading.await.expect("no panic").len(), 1);
        assert!(down.is_closed());
        let (_down, queue) = mpsc::channel(2);
        let late = Ending::past().until(queue, place());
        assert!(late.collect::<Vec<_>>().await.is_empty());
    }
}
