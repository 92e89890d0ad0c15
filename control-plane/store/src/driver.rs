//! The thread around a member: waits for inputs and for the time, runs rounds.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::member::{Failure, Input, Member};

/// What one round takes in at most.
const ROUND_INPUTS: usize = 4_096;

/// Serves until the member is shut down, dropped by every handle, or has failed.
pub(crate) fn run(
    mut member: Member,
    inputs: &Receiver<Input>,
    tick: Duration,
    hand_over_ticks: usize,
) {
    let mut done = None;
    let reason = match serve(&mut member, inputs, tick, hand_over_ticks, &mut done) {
        Ok(()) => "it was shut down".to_owned(),
        Err(failure) => {
            tracing::error!(error = %failure, "the store has stopped");
            failure.to_string()
        }
    };
    member.stop(&reason, inputs.try_iter());
    if let Some(done) = done {
        // The one who asked may have gone.
        done.send(()).ok();
    }
}

fn serve(
    member: &mut Member,
    inputs: &Receiver<Input>,
    tick: Duration,
    hand_over_ticks: usize,
    done: &mut Option<oneshot::Sender<()>>,
) -> Result<(), Failure> {
    let mut next_tick = Instant::now() + tick;
    let mut patience = 0;
    loop {
        let wait = next_tick.saturating_duration_since(Instant::now());
        let first = match inputs.recv_timeout(wait) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let gathered = first.into_iter().chain(inputs.try_iter());
        if let Some(end) = member.take_in(gathered.take(ROUND_INPUTS)) {
            *done = Some(end);
            patience = hand_over_ticks;
            member.hand_over();
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + tick;
            member.tick();
            member.expire_pages();
            patience = patience.saturating_sub(1);
        }
        member.settle()?;
        if done.is_some() && (patience == 0 || !member.can_hand_over()) {
            return Ok(());
        }
    }
}
