//! What has passed the node's links, as the kernel has counted it: one file says it of all of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use crate::Traffic;

/// Of the network of the thread that reads it.
const LINKS: &str = "/proc/thread-self/net/dev";
const ROUTES: &str = "/proc/thread-self/net/route";
/// Bytes that are read of each: a line has some 130, and a node has no more pods than that.
const LARGEST: u64 = 16 << 20;

fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// What has passed each link, by its name.
pub(crate) fn links() -> io::Result<HashMap<String, Traffic>> {
    Ok(parse(&read(LINKS)?))
}

/// The link that leads out of the node; none where no link does.
pub(crate) fn uplink() -> Option<String> {
    default_link(&read(ROUTES).ok()?)
}

/// The other end's view.
pub(crate) fn turned(of_one_end: &Traffic) -> Traffic {
    Traffic {
        received_bytes: of_one_end.sent_bytes,
        received_packets: of_one_end.sent_packets,
        received_errors: of_one_end.sent_errors,
        received_dropped: of_one_end.sent_dropped,
        sent_bytes: of_one_end.received_bytes,
        sent_packets: of_one_end.received_packets,
        sent_errors: of_one_end.received_errors,
        sent_dropped: of_one_end.received_dropped,
    }
}

/// Two lines of titles, then `name: bytes packets errs drop fifo frame compressed multicast`, and the same of what was sent.
fn parse(text: &str) -> HashMap<String, Traffic> {
    let lines = text.lines().skip(2);
    lines
        .filter_map(|line| {
            let (name, counts) = line.rsplit_once(':')?;
            let mut counts = counts.split_whitespace().map(|count| count.parse::<u64>());
            let mut next = || counts.next()?.ok();
            let [
                received_bytes,
                received_packets,
                received_errors,
                received_dropped,
            ] = [next()?, next()?, next()?, next()?];
            for _ in 4..8 {
                next()?;
            }
            let traffic = Traffic {
                received_bytes,
                received_packets,
                received_errors,
                received_dropped,
                sent_bytes: next()?,
                sent_packets: next()?,
                sent_errors: next()?,
                sent_dropped: next()?,
            };
            Some((name.trim().to_owned(), traffic))
        })
        .collect()
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`: the route to everywhere that is preferred.
fn default_link(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().take(8).collect();
        match words[..] {
            [link, "00000000", _, _, _, _, metric, "00000000"] => {
                Some((metric.parse::<u32>().ok()?, link))
            }
            _ => None,
        }
    });
    routes.min().map(|(_, link)| link.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str =
        "Inter-|   Receive  |  Transmit\n face |bytes packets errs|bytes packets\n";

    #[test]
    fn the_kernels_table_is_read() {
        let text = format!(
            "{TITLES}    lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0\n\
             n.5:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
             torn: 1 2 3\n\
             odd: 1 2 3 4 5 6 7 8 -9 10 11 12 13 14 15 16\n"
        );
        let links = parse(&text);
        assert_eq!(links.len(), 2);
        let expected = Traffic {
            received_bytes: 1,
            received_packets: 2,
            received_errors: 3,
            received_dropped: 4,
            sent_bytes: 9,
            sent_packets: 10,
            sent_errors: 11,
            sent_dropped: 12,
        };
        assert_eq!(links["n.5"], expected);
        let other = turned(&expected);
        assert_eq!((other.received_bytes, other.sent_dropped), (9, 4));
        assert_eq!(turned(&other), expected);
        assert_eq!(parse(""), HashMap::new());
    }

    #[test]
    fn the_preferred_way_out_is_the_uplink() {
        let title =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let routes = "eth1\t00000000\t0100A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
            eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            br\t0000F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let found = default_link(&format!("{title}{routes}"));
        assert_eq!(found.as_deref(), Some("eth0"));
        assert_eq!(default_link(title), None);
    }

    #[test]
    fn this_machine_is_read() {
        assert!(links().expect("a table").contains_key("lo"));
    }
}
