//! The search lists of the pods that ask: what makes a name that a client asks for one step of its walk through that
//! list, and where the walk goes on.
//!
//! A client with `search shop.svc.cluster.local svc.cluster.local cluster.local corp.example` and `ndots:5` that looks
//! for `www.example.com` asks for `www.example.com.shop.svc.cluster.local` first, and then for four more names, each
//! twice (A and AAAA). Knowing its list, the first question can be answered with where the walk would have ended.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use imbl::HashMap;
use parking_lot::Mutex;

#[derive(Debug)]
struct SearchList {
    first: Name,
    others: Vec<Name>,
}

/// The clients that told their search list.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    lists: ArcSwap<HashMap<IpAddr, Arc<SearchList>>>,
    changing: Mutex<()>,
}

impl Clients {
    /// Learns or forgets the list of a client. Only one whose first entry is below `origin` is of use: the others'
    /// first question is not ours to answer.
    pub(crate) fn tell(&self, address: IpAddr, searches: Option<Vec<String>>, origin: &Name) {
        let list = searches.and_then(|searches| list(&searches, origin));
        let _one_at_a_time = self.changing.lock();
        let mut lists = HashMap::clone(&self.lists.load());
        match list {
            Some(list) => lists.insert(address, Arc::new(list)),
            None => lists.remove(&address),
        };
        self.lists.store(Arc::new(lists));
    }

    /// The names that a client asks for next when `query` finds nothing, in that order; empty when it is not the first
    /// step of the client's own walk.
    pub(crate) fn walk(&self, address: IpAddr, query: &Query) -> Vec<Name> {
        if !matches!(query.query_type(), RecordType::A | RecordType::AAAA) {
            return Vec::new();
        }
        let lists = self.lists.load();
        let Some(list) = lists.get(&address.to_canonical()) else {
            return Vec::new();
        };
        let Some(wanted) = before(query.name(), &list.first) else {
            return Vec::new();
        };
        let searched = list.others.iter();
        let searched = searched.filter_map(|search| wanted.clone().append_domain(search).ok());
        let mut bare = wanted.clone();
        bare.set_fqdn(true);
        let mut names: Vec<Name> = Vec::new();
        for name in searched.chain([bare]) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

fn list(searches: &[String], origin: &Name) -> Option<SearchList> {
    let mut names = searches.iter().filter_map(|search| {
        let mut name = Name::from_ascii(search).ok()?;
        name.set_fqdn(true);
        Some(name)
    });
    let first = names.next().filter(|first| origin.zone_of(first))?;
    Some(SearchList {
        first,
        others: names.collect(),
    })
}

/// What stands before the suffix, as a relative name.
fn before(name: &Name, suffix: &Name) -> Option<Name> {
    let labels = usize::from(name.num_labels()).checked_sub(usize::from(suffix.num_labels()))?;
    if labels == 0 || !suffix.zone_of(name) {
        return None;
    }
    let mut relative = Name::from_labels(name.iter().take(labels)).ok()?;
    relative.set_fqdn(false);
    Some(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(clients: &Clients, from: [u8; 4], name: &str, wanted: RecordType) -> Vec<String> {
        let query = Query::query(Name::from_ascii(name).unwrap(), wanted);
        let names = clients.walk(from.into(), &query);
        names.iter().map(Name::to_ascii).collect()
    }

    fn shop() -> Clients {
        let clients = Clients::default();
        let searches = [
            "shop.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local.",
            "corp.example",
            ".",
        ];
        let searches = searches.map(str::to_owned).to_vec();
        let origin = Name::from_ascii("cluster.local.").unwrap();
        clients.tell([10, 244, 0, 5].into(), Some(searches), &origin);
        clients
    }

    #[test]
    fn the_first_step_tells_the_others() {
        let clients = shop();
        let name = "WWW.example.com.shop.svc.cluster.local.";
        for wanted in [RecordType::A, RecordType::AAAA] {
            assert_eq!(
                walk(&clients, [10, 244, 0, 5], name, wanted),
                [
                    "WWW.example.com.svc.cluster.local.",
                    "WWW.example.com.cluster.local.",
                    "WWW.example.com.corp.example.",
                    "WWW.example.com.",
                ]
            );
        }
    }

    #[test]
    fn nothing_else_is_a_first_step() {
        let clients = shop();
        let pod = [10, 244, 0, 5];
        for name in [
            "db.other.svc.cluster.local.",
            "www.example.com.svc.cluster.local.",
            "shop.svc.cluster.local.",
            "xshop.svc.cluster.local.",
            "www.example.com.",
            ".",
        ] {
            assert!(
                walk(&clients, pod, name, RecordType::A).is_empty(),
                "{name}"
            );
        }
        let first = "www.example.com.shop.svc.cluster.local.";
        assert!(walk(&clients, pod, first, RecordType::SRV).is_empty());
        assert!(walk(&clients, [10, 244, 0, 6], first, RecordType::A).is_empty());
        let origin = Name::from_ascii("cluster.local.").unwrap();
        let foreign = vec![
            "corp.example".to_owned(),
            "shop.svc.cluster.local".to_owned(),
        ];
        clients.tell(pod.into(), Some(foreign), &origin);
        assert!(walk(&clients, pod, first, RecordType::A).is_empty());
    }

    #[test]
    fn a_client_that_is_gone_is_forgotten() {
        let clients = shop();
        let origin = Name::from_ascii("cluster.local.").unwrap();
        clients.tell([10, 244, 0, 5].into(), None, &origin);
        let name = "www.example.com.shop.svc.cluster.local.";
        assert!(walk(&clients, [10, 244, 0, 5], name, RecordType::A).is_empty());
    }
}
