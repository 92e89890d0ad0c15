//! What a link carries to its server: what is said as it comes, and between it the latest of what is measured, as soon as there is
//! room for it. Nothing measured waits in a queue, so that a slow link carries no old figures.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use gantry_rpc::node::{AgentMessage, Scraped, Usage, agent_message};
use tokio::sync::{mpsc, watch};

use crate::reports::Reports;
use crate::usage::Readings;

/// What is sent on a link: `hello`, what is said as it comes, and between it the latest figures and what pods have answered. At first the last two readings,
/// so that a server which knows nothing has rates at once. Services that are wanted go before all of it, since somebody waits.
/// It ends with `said`.
pub(crate) fn outgoing(
    hello: AgentMessage,
    reports: Arc<Reports>,
    said: mpsc::Receiver<AgentMessage>,
    mut readings: watch::Receiver<Readings>,
    mut scraped: watch::Receiver<Option<Arc<Scraped>>>,
) -> impl Stream<Item = AgentMessage> + Send + 'static {
    readings.mark_changed();
    scraped.mark_changed();
    let unsaid = Unsaid {
        said,
        readings,
        scraped,
        is_new: true,
    };
    let rest = futures::stream::unfold((reports, unsaid), async |(reports, mut unsaid)| {
        let message = tokio::select! {
            biased;
            wanted = reports.next_wanted() => Some(wanted),
            message = unsaid.next() => message,
        };
        Some((message?, (reports, unsaid)))
    });
    futures::stream::iter([hello]).chain(rest)
}

/// What a link is still to carry.
struct Unsaid {
    said: mpsc::Receiver<AgentMessage>,
    readings: watch::Receiver<Readings>,
    /// What pods have answered.
    scraped: watch::Receiver<Option<Arc<Scraped>>>,
    /// No figures have been sent on the link.
    is_new: bool,
}

impl Unsaid {
    /// The next message, whichever it is; nothing is lost when nobody waits for it any more.
    async fn next(&mut self) -> Option<AgentMessage> {
        loop {
            let message = tokio::select! {
                message = self.said.recv() => return message,
                Ok(()) = self.readings.changed() => self.reading().map(agent_message::Message::Usage),
                Ok(()) = self.scraped.changed() => {
                    let latest = self.scraped.borrow_and_update().clone();
                    latest.map(|latest| agent_message::Message::Scraped(Scraped::clone(&latest)))
                }
            };
            if message.is_some() {
                return Some(AgentMessage { message });
            }
        }
    }

    /// The figures whose turn it is.
    fn reading(&mut self) -> Option<Usage> {
        let known = self.readings.borrow_and_update().clone();
        let usage = match known.before {
            Some(before) if self.is_new => {
                // The latest follows.
                self.readings.mark_changed();
                Some(before)
            }
            _ => known.latest,
        };
        self.is_new = false;
        usage.map(|usage| Usage::clone(&usage))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use gantry_cri::ServiceName;
    use gantry_rpc::node::{Heartbeat, Wake};

    use super::*;
    use crate::usage::Figures;

    fn beat(sequence: u64) -> AgentMessage {
        AgentMessage {
            message: Some(agent_message::Message::Heartbeat(Heartbeat { sequence })),
        }
    }

    /// Which figures a message has; none of another one.
    fn clock_of(message: AgentMessage) -> Option<u64> {
        match message.message {
            Some(agent_message::Message::Usage(usage)) => Some(usage.clock),
            _ => None,
        }
    }

    fn usage(clock: u64) -> Usage {
        Usage {
            clock,
            ..Usage::default()
        }
    }

    fn reports() -> Arc<Reports> {
        Arc::new(Reports::new("n1"))
    }

    #[tokio::test]
    async fn a_service_that_is_wanted_waits_behind_nothing_and_is_said_once() {
        let (figures, reports) = (Figures::default(), reports());
        figures.read(usage(1));
        let (up, said) = mpsc::channel(4);
        for sequence in 1..4 {
            up.send(beat(sequence)).await.expect("room");
        }
        let web = ServiceName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        let mut sent = pin!(outgoing(
            beat(0),
            reports.clone(),
            said,
            figures.subscribe(),
            watch::Sender::default().subscribe(),
        ));
        assert_eq!(sent.next().await, Some(beat(0)));
        for _ in 0..3 {
            reports.service_wanted(&web);
        }
        let wake = Wake {
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
        };
        let wake = AgentMessage {
            message: Some(agent_message::Message::Wake(wake)),
        };
        assert_eq!(sent.next().await, Some(wake.clone()));
        assert_ne!(sent.next().await, Some(wake.clone()));
        reports.service_wanted(&web);
        assert_eq!(sent.next().await, Some(wake.clone()), "it is wanted still");
        reports.service_wanted(&web);
        reports.link_opened();
        drop(up);
        let mut left = Vec::new();
        while let Some(message) = sent.next().await {
            left.push(message);
        }
        assert!(
            !left.contains(&wake),
            "a wish is not kept for another link: {left:?}"
        );
    }

    #[tokio::test]
    async fn a_link_begins_with_two_readings_and_carries_the_latest_after_that() {
        let figures = Figures::default();
        for clock in 1..4 {
            figures.read(usage(clock));
        }
        let (up, said) = mpsc::channel(4);
        let mut sent = pin!(outgoing(
            beat(0),
            reports(),
            said,
            figures.subscribe(),
            watch::Sender::default().subscribe(),
        ));
        assert_eq!(
            sent.next().await,
            Some(beat(0)),
            "the first word is not theirs"
        );
        for clock in [2, 3] {
            let message = sent.next().await.expect("there is more");
            assert_eq!(clock_of(message), Some(clock));
        }
        // Nobody takes them for a while.
        for clock in 4..9 {
            figures.read(usage(clock));
        }
        let message = sent.next().await.expect("there is more");
        assert_eq!(clock_of(message), Some(8), "what is old is not sent");
        up.send(beat(1)).await.expect("room");
        assert_eq!(sent.next().await, Some(beat(1)));
        drop(up);
        assert_eq!(sent.next().await, None, "the link is over");
    }

    #[tokio::test]
    async fn nothing_is_said_before_anything_is_read() {
        let figures = Figures::default();
        let (up, said) = mpsc::channel(4);
        let mut sent = pin!(outgoing(
            beat(0),
            reports(),
            said,
            figures.subscribe(),
            watch::Sender::default().subscribe(),
        ));
        assert_eq!(sent.next().await, Some(beat(0)));
        up.send(beat(1)).await.expect("room");
        assert_eq!(sent.next().await, Some(beat(1)));
        figures.read(usage(1));
        let message = sent.next().await.expect("there is more");
        assert_eq!(clock_of(message), Some(1));
    }

    #[tokio::test]
    async fn of_what_pods_have_answered_the_latest_is_sent() {
        let answers = watch::Sender::new(None);
        let (_up, said) = mpsc::channel(4);
        let figures = Figures::default();
        let read = figures.subscribe();
        let sent = outgoing(beat(0), reports(), said, read, answers.subscribe());
        let mut sent = pin!(sent);
        assert_eq!(sent.next().await, Some(beat(0)));
        for clock in 1..4 {
            let scraped = Scraped {
                clock,
                ..Scraped::default()
            };
            answers.send_replace(Some(Arc::new(scraped)));
        }
        let message = sent.next().await.and_then(|message| message.message);
        assert!(matches!(
            message,
            Some(agent_message::Message::Scraped(scraped)) if scraped.clock == 3
        ));
    }
}
