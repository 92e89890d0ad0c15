//! What one node is told of the series that are wanted.

use std::collections::BTreeSet;

use gantry_rpc::node::ScrapeWanted;
use prost::Message;
use tokio::sync::watch;

use super::Wanted;

/// The largest message, in bytes. What would make it larger is not asked for.
const BYTES: usize = 1 << 20;
/// Around a series in it.
const FRAME: usize = 8;

/// See the module.
pub(crate) struct Feed {
    wanted: watch::Receiver<Option<Wanted>>,
    /// Those that the node has had pods of on this link.
    namespaces: BTreeSet<String>,
    told: Option<ScrapeWanted>,
}

impl Feed {
    pub(super) fn new(mut wanted: watch::Receiver<Option<Wanted>>) -> Self {
        wanted.mark_changed();
        Self {
            wanted,
            namespaces: BTreeSet::new(),
            told: None,
        }
    }

    /// The node has a pod of this namespace: what that has to be told, if anything.
    pub(crate) fn pod_of(&mut self, namespace: &str) -> Option<ScrapeWanted> {
        if self.namespaces.contains(namespace) {
            return None;
        }
        self.namespaces.insert(namespace.to_owned());
        // Before it is told anything it is told everything.
        self.told.is_some().then(|| self.latest())?
    }

    /// Waits for what the node has to be told next.
    pub(crate) async fn next(&mut self) -> ScrapeWanted {
        loop {
            if self.wanted.changed().await.is_err() {
                // Nothing is wanted from anybody any more.
                std::future::pending::<()>().await;
            }
            if let Some(told) = self.latest() {
                return told;
            }
        }
    }

    /// What the node is to ask for, when it has not been told so already.
    fn latest(&mut self) -> Option<ScrapeWanted> {
        let wanted = self.wanted.borrow_and_update().clone()?;
        let own = self.namespaces.iter();
        let own = own.filter_map(|namespace| wanted.get(namespace));
        let own: Vec<_> = own.filter(|series| !series.is_empty()).collect();
        // What one namespace wants crowds out nothing of another one.
        let share = BYTES / own.len().max(1);
        let series = own.into_iter().flat_map(|series| {
            let mut left = share;
            series.iter().take_while(move |series| {
                let less = left.checked_sub(series.encoded_len() + FRAME);
                left = less.unwrap_or_default();
                less.is_some()
            })
        });
        let latest = ScrapeWanted {
            series: series.cloned().collect(),
        };
        if self.told.as_ref() == Some(&latest) {
            return None;
        }
        self.told = Some(latest.clone());
        Some(latest)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use gantry_rpc::node::WantedSeries;

    use super::super::Board;
    use super::*;

    fn want(board: &Board, namespace: &str, names: &[&str]) {
        let series = names.iter().map(|name| WantedSeries {
            namespace: namespace.to_owned(),
            name: (*name).to_owned(),
            labels: Vec::new(),
        });
        let series: Arc<[WantedSeries]> = series.collect();
        board.wanted.send_modify(|wanted| {
            wanted
                .get_or_insert_default()
                .insert(namespace.to_owned(), series);
        });
    }

    fn names(told: Option<ScrapeWanted>) -> Option<Vec<String>> {
        let series = told?.series.into_iter();
        Some(series.map(|series| series.name).collect())
    }

    #[test]
    fn a_node_is_told_what_its_namespaces_want() {
        let board = Board::default();
        let mut feed = board.feed();
        let next = |feed: &mut Feed| names(feed.next().now_or_never());
        assert_eq!(next(&mut feed), None, "nobody knows yet");
        assert_eq!(names(feed.pod_of("default")), None);
        want(&board, "other", &["a"]);
        assert_eq!(
            next(&mut feed),
            Some(Vec::new()),
            "what was before is not wanted"
        );
        want(&board, "other", &["b"]);
        assert_eq!(next(&mut feed), None, "it has no pods there");
        want(&board, "default", &["c"]);
        assert_eq!(next(&mut feed), Some(vec!["c".to_owned()]));
        let both = vec!["c".to_owned(), "b".to_owned()];
        assert_eq!(names(feed.pod_of("other")), Some(both));
        assert_eq!(names(feed.pod_of("other")), None);
        assert_eq!(names(feed.pod_of("third")), None, "nothing is wanted there");
    }

    #[test]
    fn what_a_node_is_told_is_bounded() {
        let board = Board::default();
        let mut feed = board.feed();
        feed.pod_of("default");
        let long = "x".repeat(BYTES / 4);
        want(&board, "default", &[long.as_str(); 9]);
        let told = feed.next().now_or_never().expect("something is told");
        assert_eq!(told.series.len(), 3);
        assert!(told.encoded_len() <= BYTES);
        want(&board, "other", &["a"]);
        let told = names(feed.pod_of("other")).expect("it is told");
        assert_eq!(told, [long.as_str(), "a"], "each has its share");
    }
}
