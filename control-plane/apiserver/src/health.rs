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

/// What is looked at, each with what is wrong, if anything.
fn checks(which: &str, store: &Store) -> [(&'static str, Option<&'static str>); 2] {
    [
        ("ping", None),
        ("store", store_failure(store, which == "livez")),
    ]
}

/// Answers `/healthz`, `/livez` or `/readyz`.
pub(crate) fn answer(which: &str, query: &Query, store: &Store) -> Answer {
    let mut excluded: Vec<&String> = query.all("exclude").iter().collect();
    let (mut told, mut fails) = (String::new(), false);
    for (name, failure) in checks(which, store) {
        let wanted = excluded.len();
        excluded.retain(|other| *other != name);
        told += &match failure {
            _ if excluded.len() < wanted => format!("[+]{name} excluded: ok\n"),
            Some(why) => {
                fails = true;
                format!("[-]{name} failed: {why}\n")
            }
            None => format!("[+]{name} ok\n"),
        };
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        let names = names.join(", ");
        told += &format!("warn: some health checks cannot be excluded: no matches for {names}\n");
    }
    if fails {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Answer::text(status, format!("{told}{which} check failed\n"));
    }
    match query.first("verbose") {
        Some(_) => Answer::text(StatusCode::OK, format!("{told}{which} check passed\n")),
        None => Answer::text(StatusCode::OK, "ok"),
    }
}

/// Answers for one check, as `/readyz/ping` does; none where there is no such check.
pub(crate) fn check(which: &str, name: &str, store: &Store) -> Option<Answer> {
    let mut all = checks(which, store).into_iter();
    let (_, failure) = all.find(|(known, _)| *known == name)?;
    Some(match failure {
        None => Answer::text(StatusCode::OK, "ok"),
        Some(why) => Answer::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("internal server error: {why}\n"),
        ),
    })
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
        // What does not count need not hold.
        let excluded = Query::parse(Some("exclude=store"));
        let answered = answer("readyz", &excluded, &waiting).status;
        assert_eq!(answered, StatusCode::OK);
        let one = |which: &str, name: &str| check(which, name, &waiting).map(|one| one.status);
        assert_eq!(one("readyz", "ping"), Some(StatusCode::OK));
        assert_eq!(one("livez", "store"), Some(StatusCode::OK));
        let failed = Some(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(one("readyz", "store"), failed);
        assert_eq!(one("readyz", "made-up"), None);
        alone.shutdown().await;
        assert_eq!(status("livez", &alone), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
