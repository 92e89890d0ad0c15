//! Log streams: a container's log, followed until the container has ended.

use std::path::Path;

use gantry_cri::runtime::{ContainerId, ContainerState, ContainerStatus, RuntimeEvent};
use gantry_pods::logs::{self, LogQuery};
use gantry_rpc::node::LogOptions;
use gantry_rpc::node::stream_frame::Frame;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::status::{Failure, exit_status, failure, internal};
use super::{CHUNK, Streams, Wire, frame, hung_up};

/// Lines read ahead of a client.
const LINES: usize = 256;

impl Streams {
    /// Sends the log of an attempt (or of the one before), and what is written meanwhile when followed. `pod` is for
    /// messages.
    pub(super) async fn logs(
        &self,
        directory: &Path,
        mut id: ContainerId,
        pod: &str,
        options: &LogOptions,
        mut wire: Wire,
    ) -> Result<Value, Failure> {
        if options.previous {
            let before = id.attempt.checked_sub(1);
            let before = before.filter(|old| directory.join(format!("{old}.log")).exists());
            id.attempt = before.ok_or_else(|| {
                let message = format!(
                    "previous terminated container \"{}\" in pod \"{pod}\" not found",
                    id.name
                );
                failure(400, "BadRequest", message)
            })?;
        }
        let query = query(options)?;
        let ended = CancellationToken::new();
        let watcher = if query.follow {
            Some(self.watch_end(id.clone(), ended.clone()))
        } else {
            None
        };
        let (sender, mut lines) = mpsc::channel(LINES);
        let read = async {
            let result = logs::read(directory, id.attempt, &query, &ended, &sender).await;
            drop(sender);
            result.map_err(|error| internal(&error))
        };
        let send = async {
            while let Some(line) = lines.recv().await {
                let mut bytes = line.bytes;
                // What is there already goes in one frame.
                while bytes.len() < CHUNK
                    && let Ok(more) = lines.try_recv()
                {
                    bytes.extend(more.bytes);
                }
                if wire
                    .up
                    .send(frame(Frame::Stdout(bytes.into())))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        };
        let both = async { tokio::join!(read, send).0 };
        let result = tokio::select! {
            result = both => result,
            // The client went away.
            () = hung_up(&mut wire.down) => Ok(()),
        };
        if let Some(watcher) = watcher {
            watcher.abort();
        }
        result.map(|()| exit_status(0))
    }

    /// Cancels the token when the container is not running, or ends.
    fn watch_end(&self, id: ContainerId, ended: CancellationToken) -> tokio::task::JoinHandle<()> {
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            loop {
                let mut events = runtime.events();
                let runs = |containers: &[ContainerStatus]| {
                    containers.iter().any(|known| {
                        known.id == id && !matches!(known.state, ContainerState::Exited(_))
                    })
                };
                let known = runtime.containers(&id.pod).await.unwrap_or_default();
                if !runs(&known) {
                    return ended.cancel();
                }
                loop {
                    match events.recv().await {
                        Ok(RuntimeEvent::Exited { id: other, .. }) if other == id => {
                            return ended.cancel();
                        }
                        Ok(RuntimeEvent::SandboxLost { pod }) if pod == id.pod => {
                            return ended.cancel();
                        }
                        Ok(_) => {}
                        // Something may have been missed: look again.
                        Err(_) => break,
                    }
                }
            }
        })
    }
}

fn query(options: &LogOptions) -> Result<LogQuery, Failure> {
    let bad = |what: &str| failure(400, "BadRequest", format!("invalid log option {what}"));
    let since = match (&options.since_time, options.since_seconds) {
        (Some(time), _) => Some(time.parse::<Timestamp>().map_err(|_| bad("sinceTime"))?),
        (None, Some(seconds)) => Some(
            Timestamp::now()
                .checked_sub(SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MIN),
        ),
        (None, None) => None,
    };
    let tail = options
        .tail_lines
        .map(usize::try_from)
        .transpose()
        .map_err(|_| bad("tailLines"))?;
    let limit_bytes = options
        .limit_bytes
        .map(u64::try_from)
        .transpose()
        .map_err(|_| bad("limitBytes"))?;
    Ok(LogQuery {
        follow: options.follow,
        timestamps: options.timestamps,
        since,
        tail,
        limit_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let refused = [
            LogOptions {
                tail_lines: Some(-1),
                ..LogOptions::default()
            },
            LogOptions {
                limit_bytes: Some(-1),
                ..LogOptions::default()
            },
            LogOptions {
                since_time: Some("nonsense".into()),
                ..LogOptions::default()
            },
        ];
        for options in refused {
            assert!(query(&options).is_err(), "{options:?}");
        }
        let since = |seconds| {
            let options = LogOptions {
                since_seconds: Some(seconds),
                ..LogOptions::default()
            };
            query(&options).ok().and_then(|query| query.since)
        };
        assert!(since(5).is_some_and(|since| since < Timestamp::now()));
        assert_eq!(since(i64::MAX), Some(Timestamp::MIN));
        assert!(since(i64::MIN).is_some());
    }
}
