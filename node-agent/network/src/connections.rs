//! How many TCP connections pods have. The kernel counts them in each network namespace, so that looking costs the same
//! whatever passes: one small file of each pod is read, which stays open (some 10 µs for each; to enter its namespace for it every
//! time would more than double that).
//!
//! What a pod has opened itself is in those counts. Only the list of its sockets tells which that is (`own.rs`), and the kernel
//! goes through those of the whole machine for it (3 ms where its table has 262,144 places): so that is looked at only while a
//! pod connects to others, every ten seconds, and for few pods at a time.

mod counters;
mod own;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{Connections, NetworkError, netns};
use counters::Counters;

/// Of the network of the thread that opens it; whoever reads it later reads of the same.
const COUNTERS: &str = "/proc/thread-self/net/snmp";
/// The kernel writes some 1,500 bytes, those of TCP before these are over.
const LARGEST: usize = 8192;
/// Between looks at the sockets of a pod.
const PERIOD: Duration = Duration::from_secs(10);
/// Looks in one round, which take some hundredth of a processor: the others wait for the next.
const MOST_LOOKS: usize = 4;

/// The connections of a node's pods. What is open in here belongs to namespaces that are gone for no longer than until the next
/// reading.
#[derive(Default)]
pub(crate) struct PodConnections {
    pods: Mutex<HashMap<String, Pod>>,
}

struct Pod {
    /// Which namespace it is of: no other has this number while the file is open.
    namespace: u64,
    file: File,
    looked: Option<Looked>,
}

/// What was seen of a pod's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looked {
    at: Instant,
    counters: Counters,
    /// Connections that others had opened to it.
    open: u64,
}

impl PodConnections {
    /// Those of the pods whose namespaces are mounted at these paths, by uid, and of no others from now on.
    pub(crate) fn read(
        &self,
        namespaces: &BTreeMap<String, PathBuf>,
    ) -> BTreeMap<String, Connections> {
        let mut pods = self.pods.lock();
        let there: BTreeMap<&str, (&Path, u64)> = namespaces
            .iter()
            .filter_map(|(uid, path)| {
                let namespace = fs::metadata(path).ok()?.ino();
                Some((uid.as_str(), (path.as_path(), namespace)))
            })
            .collect();
        pods.retain(|uid, pod| {
            let now = there.get(uid.as_str()).map(|(_, namespace)| *namespace);
            now == Some(pod.namespace)
        });
        open_new(&mut pods, &there);
        let mut buffer = vec![0; LARGEST];
        let mut read: BTreeMap<String, Counters> = BTreeMap::new();
        pods.retain(|uid, pod| match counters(&pod.file, &mut buffer) {
            Ok(counters) => {
                read.insert(uid.clone(), counters);
                true
            }
            Err(error) => {
                tracing::debug!(pod = uid, %error, "reading the connections of a pod");
                false
            }
        });
        look(&mut pods, &read, &there, Instant::now());
        let connections = read.into_iter().filter_map(|(uid, counters)| {
            let connections = Connections {
                open: open(pods.get(&uid)?.looked.as_ref(), counters),
                accepted: counters.accepted,
            };
            Some((uid, connections))
        });
        connections.collect()
    }
}

/// Opens the counters of pods that were not there before.
fn open_new(pods: &mut HashMap<String, Pod>, there: &BTreeMap<&str, (&Path, u64)>) {
    let new = there.iter().filter(|(uid, _)| !pods.contains_key(**uid));
    let new: Vec<(&str, &Path, u64)> = new
        .map(|(uid, (path, namespace))| (*uid, *path, *namespace))
        .collect();
    let paths = new.iter().map(|(_, path, _)| *path);
    let opened = inside_each(paths.collect(), || File::open(COUNTERS));
    for ((uid, _, namespace), file) in new.into_iter().zip(opened) {
        // One that is not opened is tried again in a second.
        if let Some(file) = file {
            let pod = Pod {
                namespace,
                file,
                looked: None,
            };
            pods.insert(uid.to_owned(), pod);
        }
    }
}

/// Looks at the sockets of those pods of which that is due, at some of them: those that have waited longest.
fn look(
    pods: &mut HashMap<String, Pod>,
    read: &BTreeMap<String, Counters>,
    there: &BTreeMap<&str, (&Path, u64)>,
    now: Instant,
) {
    let mut due: Vec<(Option<Instant>, &str, &Path, Counters)> = read
        .iter()
        .filter_map(|(uid, counters)| {
            let looked = pods.get(uid)?.looked;
            let (path, _) = there.get(uid.as_str())?;
            let since = looked.map(|looked| looked.at);
            is_due(looked.as_ref(), *counters, now).then_some((
                since,
                uid.as_str(),
                *path,
                *counters,
            ))
        })
        .collect();
    due.sort_unstable_by_key(|(since, ..)| *since);
    due.truncate(MOST_LOOKS);
    let paths = due.iter().map(|(_, _, path, _)| *path);
    let seen = inside_each(paths.collect(), own::opened_here);
    for ((_, uid, _, counters), own) in due.into_iter().zip(seen) {
        if let Some(pod) = pods.get_mut(uid) {
            pod.looked = Some(Looked {
                at: now,
                counters,
                // What cannot be seen is taken for what others have opened.
                open: counters.established.saturating_sub(own.unwrap_or_default()),
            });
        }
    }
}

/// Does something in the namespaces mounted at some paths; what does not succeed has no answer.
fn inside_each<T: Send>(
    paths: Vec<&Path>,
    work: impl Fn() -> io::Result<T> + Sync,
) -> Vec<Option<T>> {
    if paths.is_empty() {
        return Vec::new();
    }
    let work = || {
        work().map_err(|source| NetworkError::Io {
            doing: "looking at the connections of a pod".to_owned(),
            source,
        })
    };
    let seen = netns::inside_each(&paths, work).unwrap_or_else(|error| vec![Err(error)]);
    let seen = seen.into_iter().map(|answer| {
        answer
            .inspect_err(|error| {
                tracing::debug!(error = gantry_cri::words(error), "a pod's network");
            })
            .ok()
    });
    seen.collect()
}

fn counters(file: &File, buffer: &mut [u8]) -> io::Result<Counters> {
    // The kernel counts anew for each reading from the beginning.
    let length = file.read_at(buffer, 0)?;
    let text = buffer.get(..length).unwrap_or_default();
    counters::parse(text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "there are no counters of TCP"))
}

/// Whether a pod may have opened something itself of which nothing is known yet, and was not looked at just now.
fn is_due(looked: Option<&Looked>, counters: Counters, now: Instant) -> bool {
    let Some(looked) = looked else {
        return counters.begun > 0;
    };
    let has_own = looked.open < looked.counters.established;
    let may_differ =
        counters.begun != looked.counters.begun || (has_own && counters != looked.counters);
    may_differ && now.saturating_duration_since(looked.at) >= PERIOD
}

/// The connections that others have opened, at most: no more than there are, and no more than others had when it was looked
/// and it has accepted since. Of those that have closed since nobody knows whose they were; a look is due for them.
fn open(looked: Option<&Looked>, counters: Counters) -> u64 {
    let Some(looked) = looked else {
        return counters.established.min(counters.accepted);
    };
    let accepted = counters.accepted.saturating_sub(looked.counters.accepted);
    let most = looked.open.saturating_add(accepted);
    counters.established.min(most)
}

#[cfg(test)]
mod tests;
