//! Room for what goes on at the same time, of which no client takes more than its part: one that asks without end leaves
//! the others theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// A client's part is one of so many. Few enough that a busy client is not held up while others ask little.
const PARTS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Room {
    places: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of the clients that have any.
    by: HashMap<IpAddr, usize>,
}

/// A client's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    client: IpAddr,
}

impl Room {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            taken: Mutex::default(),
        })
    }

    /// A place for a client, unless all are taken or it has its part.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock();
        let own = taken.by.get(&client).copied().unwrap_or_default();
        if taken.all >= self.places || own >= self.places.div_ceil(PARTS) {
            return None;
        }
        taken.all += 1;
        taken.by.insert(client, own + 1);
        Some(Place {
            room: Arc::clone(self),
            client,
        })
    }

    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.by.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.by.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([10, 244, 0, last])
    }

    #[test]
    fn a_client_takes_its_part_and_all_take_the_whole() {
        let room = Room::new(32);
        let mut places: Vec<Place> = (0..100).filter_map(|_| room.take(client(1))).collect();
        assert_eq!(places.len(), 4);
        for other in 2..=20 {
            places.extend((0..100).filter_map(|_| room.take(client(other))));
        }
        assert_eq!((places.len(), room.taken()), (32, 32));
        assert!(room.take(client(21)).is_none());
        places.remove(0);
        assert!(room.take(client(21)).is_some(), "one of the first client's");
    }

    #[test]
    fn nothing_is_kept_of_clients_that_have_no_place() {
        let room = Room::new(32);
        let places: Vec<Place> = (0..20).filter_map(|last| room.take(client(last))).collect();
        drop(places);
        assert_eq!(room.taken(), 0);
        assert!(room.taken.lock().by.is_empty());
    }
}
