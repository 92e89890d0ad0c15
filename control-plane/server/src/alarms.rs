//! What etcd raises as the alarm NOSPACE, as Events: servers whose disks are nearly full, and for how long the cluster was
//! read-only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gantry_informer::{Clock, EventStyle, Recorder, Reference};
use gantry_members::Roster;
use gantry_store::{Room, Store};
use tokio_util::sync::CancellationToken;

/// On the leader, which knows of all members: runs until told to stop.
pub(crate) async fn run(
    client: kube::Client,
    store: Store,
    roster: Roster,
    stop: CancellationToken,
) {
    let recorder = Recorder::start(
        client,
        "gantry-server",
        EventStyle::Counted,
        Clock::system(),
        &stop,
    );
    let mut changes = store.room();
    let mut alarms = Alarms::default();
    loop {
        let room = changes.borrow_and_update().clone();
        let name_of = |id: u64| {
            let known = roster.get(id).map(|server| server.name);
            known.unwrap_or_else(|| id.to_string())
        };
        for event in alarms.changed(&room, Instant::now(), name_of) {
            let record = match event.warns {
                true => Recorder::warning,
                false => Recorder::normal,
            };
            record(&recorder, about(event.server), event.reason, event.message);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// Something that an Event tells of a server.
struct Told {
    server: String,
    warns: bool,
    reason: &'static str,
    message: String,
}

/// What was told, and what has to wait until it can be written.
#[derive(Default)]
struct Alarms {
    short: BTreeMap<u64, Instant>,
    read_only: Option<Instant>,
    waiting: Vec<Told>,
}

impl Alarms {
    /// The events that can be written now.
    fn changed(&mut self, room: &Room, now: Instant, name_of: impl Fn(u64) -> String) -> Vec<Told> {
        for id in &room.short {
            if self.short.contains_key(id) {
                continue;
            }
            self.short.insert(*id, now);
            self.waiting.push(Told {
                server: name_of(*id),
                warns: true,
                reason: "DiskFull",
                message:
                    "the disk of this server is nearly full: it takes no writes until there is room"
                        .to_owned(),
            });
        }
        let (short, healed): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.short)
            .into_iter()
            .partition(|(id, _)| room.short.contains(id));
        self.short = short;
        for (id, since) in healed {
            let message = format!(
                "there is room on the disk of this server again, after {}",
                lasted(now - since)
            );
            self.waiting.push(Told {
                server: name_of(id),
                warns: false,
                reason: "DiskHasRoom",
                message,
            });
        }
        match (&room.read_only, self.read_only) {
            (Some(_), None) => self.read_only = Some(now),
            (None, Some(since)) => {
                self.read_only = None;
                let message = format!(
                    "writes were refused for {} for want of room on disks",
                    lasted(now - since)
                );
                self.waiting.push(Told {
                    server: "control-plane".to_owned(),
                    warns: true,
                    reason: "ReadOnly",
                    message,
                });
            }
            _ => {}
        }
        match room.read_only {
            // An event is a write too.
            Some(_) => Vec::new(),
            None => std::mem::take(&mut self.waiting),
        }
    }
}

fn lasted(duration: Duration) -> String {
    format!("{} s", duration.as_secs().max(1))
}

/// Servers are no objects: all that an Event can name of one is what it is called.
fn about(server: String) -> Reference {
    Reference {
        api_version: String::new(),
        kind: "Server".to_owned(),
        namespace: String::new(),
        name: server,
        uid: String::new(),
        resource_version: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(alarms: &mut Alarms, short: &[u64], read_only: bool, at: Instant) -> Vec<String> {
        let room = Room {
            short: short.to_vec(),
            read_only: read_only.then(|| "a disk is full".to_owned()),
        };
        let events = alarms.changed(&room, at, |id| format!("s{id}"));
        let text = |event: &Told| format!("{} {}", event.server, event.reason);
        events.iter().map(text).collect()
    }

    #[test]
    fn what_happens_while_nothing_is_written_is_told_afterwards() {
        let (mut alarms, now) = (Alarms::default(), Instant::now());
        assert!(told(&mut alarms, &[], false, now).is_empty());
        assert_eq!(told(&mut alarms, &[2], false, now), ["s2 DiskFull"]);
        assert!(told(&mut alarms, &[2, 3], true, now).is_empty());
        assert!(told(&mut alarms, &[2], true, now).is_empty());
        let later = now + Duration::from_secs(90);
        let room = Room::default();
        let events = alarms.changed(&room, later, |id| format!("s{id}"));
        let messages: Vec<&str> = events.iter().map(|event| event.message.as_str()).collect();
        assert_eq!(messages.len(), 4, "{messages:?}");
        assert!(messages[3].contains("refused for 90 s"), "{messages:?}");
        assert!(told(&mut alarms, &[], false, later).is_empty());
    }
}
