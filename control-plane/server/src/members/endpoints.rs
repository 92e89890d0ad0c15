//! Keeps the endpoints of the Service `kubernetes` to the servers that are there. Runs on the leader, which alone knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use gantry_apiserver::ApiServer;
use gantry_store::{MemberRole, MemberStatus, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Roster, ServerRecord};

const LOOK: Duration = Duration::from_secs(1);
/// A server that is not heard of for longer is no endpoint until it is: an election or a slow disk takes less.
const PATIENCE: Duration = Duration::from_secs(3);

/// Since when servers have been silent.
#[derive(Default)]
struct Watchman {
    silent: BTreeMap<u64, Instant>,
}

impl Watchman {
    /// The addresses of voters that are there, by id; the leader itself always is. One whose disk fills up will soon serve
    /// nobody, so that it is left out while there are others.
    fn present(
        &mut self,
        members: &[MemberStatus],
        servers: &[ServerRecord],
        now: Instant,
    ) -> Vec<SocketAddr> {
        self.silent
            .retain(|id, _| members.iter().any(|member| member.id == *id));
        let (mut present, mut short) = (Vec::new(), Vec::new());
        for member in members
            .iter()
            .filter(|member| member.role == MemberRole::Voter)
        {
            if member.is_leader || member.active == Some(true) {
                self.silent.remove(&member.id);
            } else if now - *self.silent.entry(member.id).or_insert(now) > PATIENCE {
                continue;
            }
            let server = servers.iter().find(|server| server.id == member.id);
            let at = server.map(|server| server.address);
            match member.short_of_room {
                true => short.extend(at),
                false => present.extend(at),
            }
        }
        if present.is_empty() {
            return short;
        }
        present
    }
}

/// Publishes who is there whenever that changes.
pub(crate) async fn keep(api: ApiServer, store: Store, roster: Roster, stop: CancellationToken) {
    let mut watchman = Watchman::default();
    let mut published = Vec::new();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let present = watchman.present(&store.members().await, &roster.all(), Instant::now());
        if present.is_empty() || present == published {
            continue;
        }
        match api.publish(&present).await {
            Ok(()) => {
                tracing::info!(servers = ?present, "the API's endpoints");
                published = present;
            }
            Err(error) => tracing::warn!(%error, "publishing the API's endpoints; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, active: bool) -> MemberStatus {
        MemberStatus {
            short_of_room: false,
            differs: false,
            id,
            role: MemberRole::Voter,
            is_leader: id == 1,
            matched: None,
            lag: None,
            active: Some(active),
        }
    }

    fn server(id: u64) -> ServerRecord {
        ServerRecord::running(
            id,
            format!("s{id}"),
            SocketAddr::from(([10, 0, 0, u8::try_from(id).expect("few")], 6443)),
        )
    }

    #[test]
    fn the_silent_are_left_out_after_a_while_and_come_back_at_once() {
        let servers = [server(1), server(2), server(3)];
        let all: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let mut watchman = Watchman::default();
        let start = Instant::now();
        let heard = [member(1, false), member(2, true), member(3, true)];
        let silent = [member(1, false), member(2, false), member(3, true)];
        assert_eq!(watchman.present(&heard, &servers, start), all);
        assert_eq!(watchman.present(&silent, &servers, start), all);
        assert_eq!(watchman.present(&silent, &servers, start + PATIENCE), all);
        let later = start + PATIENCE + Duration::from_millis(1);
        let rest = [all[0], all[2]];
        assert_eq!(watchman.present(&silent, &servers, later), rest);
        assert_eq!(watchman.present(&heard, &servers, later), all);
        // Its silence begins anew.
        assert_eq!(watchman.present(&silent, &servers, later), all);
        // A server that was removed is gone at once; one that only learns does not count yet.
        assert_eq!(watchman.present(&heard[..2], &servers, later), all[..2]);
        let full = MemberStatus {
            short_of_room: true,
            ..member(2, true)
        };
        let with_full = [heard[0], full, heard[2]];
        assert_eq!(watchman.present(&with_full, &servers, later), rest);
        assert_eq!(watchman.present(&[full], &servers, later), all[1..2]);
        let learner = MemberStatus {
            role: MemberRole::Learner,
            ..member(3, true)
        };
        let joining = [heard[0], heard[1], learner];
        assert_eq!(watchman.present(&joining, &servers, later), all[..2]);
    }
}
