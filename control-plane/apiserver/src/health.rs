//! `/healthz`, `/livez`, `/readyz`: whether this server runs, and whether it can serve.

use gantry_store::Store;
use http::StatusCode;

use crate::request::Query;
use crate::response::Answer;

/// What keeps the store from serving, if anything: it has stopped, or, where only serving counts, nobody leads.
fn store_failure(store: &Store, alive_is_enough: bool) -> Option<&'static str> {
    let leadership = store.leadership();
    if leadership.has_changed().is_err() {
        return Some("it has stopped");
    }
    let leaderless = leadership.borrow().leader.is_none();
    (leaderless && !alive_is_enough).then_some("the servers have no leader")
}

/// Answers `/healthz`, `/livez` or `/readyz`.
pub(crate) fn answer(which: &str, query: &Query, store: &Store) -> Answer {
    match store_failure(store, which == "livez") {
        Some(why) => Answer::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("[+]ping ok\n[-]store failed: {why}\n{which} check failed\n"),
        ),
        None if query.flag("verbose") => Answer::text(
            StatusCode::OK,
            format!("[+]ping ok\n[+]store ok\n{which} check passed\n"),
        ),
        None => Answer::text(StatusCode::OK, "ok"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gantry_store::{NoPeers, StoreConfig};

    use super::*;

    #[tokio::test]
    async fn without_a_leader_a_server_lives_and_is_not_ready() {
        let status = |which: &str, store: &Store| answer(which, &Query::parse(None), store).status;
        let alone = Store::ephemeral();
        assert_eq!(status("readyz", &alone), StatusCode::OK);
        let two = StoreConfig {
            voters: vec![1, 2],
            ..StoreConfig::default()
        };
        let waiting = Store::in_memory(two, Arc::new(NoPeers)).expect("it opens");
        assert_eq!(status("livez", &waiting), StatusCode::OK);
        assert_eq!(
            status("readyz", &waiting),
            StatusCode::INTERNAL_SERVER_ERROR
        );
        alone.shutdown().await;
        assert_eq!(status("livez", &alone), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
