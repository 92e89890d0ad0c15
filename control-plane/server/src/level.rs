//! The cluster's feature level rises by itself once every server knows the next one, so that what only newer versions
//! understand is written only when nobody is left who does not.

use std::time::Duration;

use gantry_members::{Roster, ServerRecord};
use gantry_store::{MemberStatus, Store};
use tokio_util::sync::CancellationToken;

const AGAIN: Duration = Duration::from_secs(5);

/// On the leader: raises the level whenever it may, until told to stop.
pub(crate) async fn run(store: Store, roster: Roster, stop: CancellationToken) {
    loop {
        let members = store.members().await;
        if let Some(level) = risen(store.level(), &members, &roster.all()) {
            match store.raise_level(level).await {
                Ok(()) => {
                    tracing::info!(level, "every server knows it: the feature level has risen")
                }
                Err(error) => tracing::info!(%error, level, "raising the feature level"),
            }
        }
        // Rises are rare: a version later, never sooner.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// The level to rise to, when every member has said that it knows it.
fn risen(level: u32, members: &[MemberStatus], servers: &[ServerRecord]) -> Option<u32> {
    let known = members.iter().map(|member| {
        let server = servers.iter().find(|server| server.id == member.id);
        server.map_or(0, |server| server.level)
    });
    known.min().filter(|known| *known > level)
}

#[cfg(test)]
mod tests {
    use gantry_store::MemberRole;

    use super::*;

    fn cluster(levels: &[(u64, u32)]) -> Vec<ServerRecord> {
        let record = |(id, level): &(u64, u32)| ServerRecord {
            level: *level,
            ..ServerRecord::nowhere(*id)
        };
        levels.iter().map(record).collect()
    }

    #[test]
    fn the_slowest_server_holds_the_level() {
        let members: Vec<_> = [1, 2, 3]
            .map(|id| MemberStatus {
                short_of_room: false,
                differs: false,
                id,
                role: MemberRole::Voter,
                is_leader: id == 1,
                active: Some(true),
                lag: Some(0),
                matched: None,
            })
            .into();
        assert_eq!(
            risen(1, &members, &cluster(&[(1, 3), (2, 2), (3, 3)])),
            Some(2)
        );
        assert_eq!(
            risen(2, &members, &cluster(&[(1, 3), (2, 2), (3, 3)])),
            None
        );
        // One that has not said what it knows, and one that is not a member any more.
        assert_eq!(risen(1, &members, &cluster(&[(1, 3), (2, 3)])), None);
        assert_eq!(
            risen(1, &members, &cluster(&[(1, 2), (2, 2), (3, 2), (4, 1)])),
            Some(2)
        );
        assert_eq!(risen(1, &[], &[]), None);
    }
}
