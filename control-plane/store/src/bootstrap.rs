//! Puts a member together from its configuration and what its disk says, as etcd's bootstrap does.

use std::sync::Arc;

use raft::RawNode;
use raft::eraftpb::{ConfState, HardState};
use tokio::sync::watch;

use crate::chance::Chance;
use crate::config::{OpenError, StoreConfig};
use crate::disk::{Recovered, StateWriter, Volume};
use crate::encryption::Encryption;
use crate::handover::Cut;
use crate::log::Log;
use crate::logger;
use crate::member::{Member, Parts};
use crate::shared::Shared;
use crate::state::{HistoryLimits, State};
use crate::transport::Transport;
use crate::types::Leadership;

/// A member that has not begun yet, and what its handles need.
pub(crate) struct Bootstrapped {
    pub(crate) member: Member,
    pub(crate) shared: Arc<Shared>,
    pub(crate) leadership: watch::Receiver<Leadership>,
}

impl Bootstrapped {
    /// Recovers the member, whose build knows feature levels up to `known`; `writer` makes the state's writer, given the log entry it continues after.
    pub(crate) fn open(
        config: &StoreConfig,
        volume: Option<Volume>,
        known: u32,
        chance: Chance,
        transport: Arc<dyn Transport>,
        writer: impl FnOnce(u64) -> Result<Option<StateWriter>, OpenError>,
    ) -> Result<Bootstrapped, OpenError> {
        let recovered = recover(config, volume.as_ref(), known)?;
        let history = HistoryLimits {
            events: config.event_history,
            bytes: config.event_history_bytes,
        };
        let applied = recovered.state.applied;
        let conf_state = recovered.state.conf_state.clone();
        let shared = Arc::new(Shared::new(recovered.state, history));
        let cut = Cut {
            bytes: config.snapshot_chunk_bytes,
            encryption: Encryption::new(config.transformer.clone()),
        };
        let log = Log::new(
            volume,
            recovered.start,
            recovered.entries,
            recovered.hard_state,
            conf_state,
            Arc::clone(&shared.state),
            cut,
        );
        let node = RawNode::new(&raft_config(config, applied), log, &logger::bridge()).map_err(
            |error| OpenError::Consensus {
                path: config.data_dir.clone(),
                reason: error.to_string(),
            },
        )?;
        let (sender, leadership) = watch::channel(Leadership::default());
        let member = Member::new(Parts {
            node,
            config: config.clone(),
            known_level: known,
            chance,
            shared: Arc::clone(&shared),
            transport,
            writer: writer(applied)?,
            leadership: sender,
        });
        Ok(Bootstrapped {
            member,
            shared,
            leadership,
        })
    }
}

fn raft_config(config: &StoreConfig, applied: u64) -> raft::Config {
    raft::Config {
        id: config.member_id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: 1 << 20,
        max_uncommitted_size: 64 << 20,
        max_committed_size_per_ready: 8 << 20,
        check_quorum: true,
        pre_vote: true,
        ..raft::Config::default()
    }
}

/// What the disk holds, or a new member's beginning.
fn recover(
    config: &StoreConfig,
    volume: Option<&Volume>,
    known: u32,
) -> Result<Recovered, OpenError> {
    if let Some(found) = volume
        .map(|volume| volume.recover(known))
        .transpose()?
        .flatten()
    {
        return Ok(found);
    }
    if config.begun {
        return Err(OpenError::Lost {
            path: config.data_dir.clone(),
        });
    }
    let mut hard_state = HardState::default();
    let mut state = State::default();
    let mut start = (0, 0);
    if !config.voters.is_empty() {
        // The founding members begin as if they had shared a first entry: whoever joins later gets a snapshot, and
        // with it the membership that no log entry tells.
        start = (1, 1);
        (hard_state.term, hard_state.commit, state.applied) = (1, 1, 1);
        state.conf_state = ConfState::from((config.voters.clone(), Vec::new()));
    }
    if let Some(volume) = volume {
        volume
            .bootstrap(start, &hard_state, &state.conf_state)
            .map_err(|error| OpenError::Engine {
                path: config.data_dir.clone(),
                source: error.into(),
            })?;
    }
    Ok(Recovered {
        hard_state,
        start,
        entries: Vec::new(),
        state,
    })
}
