//! Load on the node's DNS: how many queries it answers, how long an answer takes, and what that costs in processor time.
//!
//! A table of 1,000 services with ten pods each is served on the loopback. Clients are threads of this process, so that
//! on a small machine they compete with the server; its processor time is therefore told beside each rate.
//!
//! ```text
//! names        cluster names and reverse names, 16 under way in each of two clients; then one at a time
//! walk         what getaddrinfo does with ndots:5 for an external name: A and AAAA at once, along the search list.
//!              Once by a client whose search list the server knows, once by one that has to walk by itself
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use gantry_cri::ServiceName;
use gantry_cri::dns::{ClusterDns, DnsRecord, DnsTable};
use gantry_dns::DnsServer;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::runtime::Runtime;

const SERVICES: u16 = 1000;
const PODS: u8 = 10;
const CLIENTS: usize = 2;
const WINDOW: usize = 16;
/// The server's threads, by which its processor time is found.
const THREADS: &str = "dns-server";
const SEARCHES: [&str; 4] = [
    "n1.svc.cluster.local",
    "svc.cluster.local",
    "cluster.local",
    "corp.example",
];

fn service(index: u16) -> (ServiceName, DnsTable) {
    let (namespace, name) = (format!("n{}", index % 20), format!("s{index}"));
    let base = format!("{name}.{namespace}.svc.cluster.local");
    let [high, low] = index.to_be_bytes();
    let mut table = DnsTable::default();
    let cluster_ip = IpAddr::from([10, 96, high, low]);
    table
        .records
        .insert(base.clone(), vec![DnsRecord::Addresses(vec![cluster_ip])]);
    table.reverse.insert(cluster_ip, base.clone());
    for pod in 0..PODS {
        let ip = IpAddr::from([10 + pod, 97, high, low]);
        let host = format!("p{pod}.{base}");
        table
            .records
            .insert(host.clone(), vec![DnsRecord::Addresses(vec![ip])]);
        table.reverse.insert(ip, host);
    }
    (ServiceName { namespace, name }, table)
}

fn query(name: &str, wanted: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    request.add_query(Query::query(name, wanted));
    request
}

/// A resolver that knows IPv4 addresses of names below example.com, and that all other names do not exist.
fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("the resolver's socket");
    let address = socket.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let Ok(request) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let (id, code) = (request.metadata.id, request.metadata.op_code);
            let mut answer = Message::response(id, code);
            answer.add_queries(request.queries.clone());
            let name = request.queries[0].name().clone();
            let known = name.to_ascii().ends_with(".example.com.");
            if known && request.queries[0].query_type() == RecordType::A {
                let data = RData::A(Ipv4Addr::new(192, 0, 2, 7).into());
                answer.add_answer(Record::from_rdata(name, 60, data));
            } else {
                if !known {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 60);
                answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
            }
            let bytes = answer.to_vec().expect("an answer");
            let _client_may_be_gone = socket.send_to(&bytes, client);
        }
    });
    address
}

/// Processor time of the server's threads so far.
fn processor_time() -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task")
        .expect("threads")
        .flatten()
    {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == THREADS {
            let stat = read("stat");
            let fields = stat.rsplit(')').next().unwrap_or_default();
            let times = fields.split_whitespace().skip(11).take(2);
            ticks += times
                .filter_map(|time| time.parse::<u64>().ok())
                .sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 10)
}

/// What clients measured.
#[derive(Default)]
struct Measured {
    /// Of what is counted: an answer, or a whole walk.
    times: Vec<Duration>,
    questions: usize,
}

/// Lets clients work at the same time and tells what came of it.
fn report(what: &str, clients: usize, work: impl Fn(usize) -> Measured + Sync) {
    let (start, processor) = (Instant::now(), processor_time());
    let mut all = Measured::default();
    std::thread::scope(|scope| {
        let work = &work;
        let clients: Vec<_> = (0..clients)
            .map(|client| scope.spawn(move || work(client)))
            .collect();
        for client in clients {
            let measured = client.join().expect("a client");
            all.times.extend(measured.times);
            all.questions += measured.questions;
        }
    });
    let (elapsed, processor) = (start.elapsed(), processor_time() - processor);
    all.times.sort_unstable();
    let count = all.times.len();
    let at = |part: f64| all.times[((count - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!(
        "{what:44} {:9.0}/s {:9.0} queries/s   p50 {:6.0} us   p99 {:6.0} us   server {:5.1} us of CPU per query",
        count as f64 / elapsed.as_secs_f64(),
        all.questions as f64 / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
        processor.as_secs_f64() * 1e6 / all.questions as f64,
    );
}

fn client(server: SocketAddr, from: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).expect("a client's socket");
    socket.connect(server).expect("connecting");
    let patience = Some(Duration::from_secs(5));
    socket.set_read_timeout(patience).expect("a deadline");
    socket
}

/// Keeps so many queries under way, each answered with a record.
fn names(server: SocketAddr, window: usize, time: Duration, questions: &[Vec<u8>]) -> Measured {
    let socket = client(server, Ipv4Addr::LOCALHOST);
    let (start, mut sent) = (Instant::now(), vec![Instant::now(); window]);
    let mut measured = Measured::default();
    let mut next = 0;
    let mut ask = |slot: usize, sent: &mut [Instant]| {
        let mut bytes = questions[next % questions.len()].clone();
        next += 1;
        bytes[..2].copy_from_slice(&u16::try_from(slot).unwrap_or(0).to_be_bytes());
        sent[slot] = Instant::now();
        socket.send(&bytes).expect("sending");
    };
    (0..window).for_each(|slot| ask(slot, &mut sent));
    let mut under_way = window;
    let mut buffer = [0; 1500];
    while under_way > 0 {
        let length = socket.recv(&mut buffer).expect("an answer");
        assert!(
            length > 12 && buffer[3] & 15 == 0 && buffer[7] > 0,
            "an answer with a record"
        );
        let slot = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
        measured.times.push(sent[slot].elapsed());
        if start.elapsed() < time {
            ask(slot, &mut sent);
        } else {
            under_way -= 1;
        }
    }
    measured.questions = measured.times.len();
    measured
}

/// Resolves external names along the search list until one exists, as the C library does.
fn walks(server: SocketAddr, from: Ipv4Addr, time: Duration) -> Measured {
    let socket = client(server, from);
    let start = Instant::now();
    let mut measured = Measured::default();
    let mut buffer = [0; 1500];
    for round in 0_usize.. {
        if start.elapsed() >= time {
            break;
        }
        let begun = Instant::now();
        let wanted = format!("w{}.example.com", round % 50);
        let names = SEARCHES.iter().map(|search| format!("{wanted}.{search}."));
        let mut found = false;
        for name in names.chain([format!("{wanted}.")]) {
            for wanted in [RecordType::A, RecordType::AAAA] {
                let bytes = query(&name, wanted).to_vec().expect("a query");
                socket.send(&bytes).expect("sending");
            }
            measured.questions += 2;
            for _ in 0..2 {
                let length = socket.recv(&mut buffer).expect("an answer");
                found |= length > 12 && buffer[3] & 15 == 0 && buffer[7] > 0;
            }
            if found {
                break;
            }
        }
        assert!(found, "{wanted} was not found");
        measured.times.push(begun.elapsed());
    }
    measured
}

fn main() {
    // Without `--bench` it only shows that it runs.
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let time = Duration::from_millis(if measuring { 4000 } else { 50 });
    let runtime: Runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(THREADS)
        .enable_all()
        .build()
        .expect("a runtime");
    let listen = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    let start = DnsServer::start(&listen, "cluster.local", vec![upstream()]);
    let dns = runtime.block_on(start).expect("DNS");
    let all: BTreeMap<_, _> = (0..SERVICES).map(service).collect();
    let begun = Instant::now();
    dns.replace(all);
    println!(
        "{:44} {:9.1} ms",
        "all of 1,000 services with 10,000 pods",
        begun.elapsed().as_secs_f64() * 1e3
    );
    let (name, mut table) = service(500);
    let mut changes = Vec::new();
    for round in 0..200 {
        let address = vec![DnsRecord::Addresses(vec![[10, 200, 0, round].into()])];
        let pod = format!("p0.s500.{}.svc.cluster.local", name.namespace);
        table.records.insert(pod, address);
        let begun = Instant::now();
        dns.change(name.clone(), Some(table.clone()));
        changes.push(begun.elapsed());
    }
    changes.sort_unstable();
    println!(
        "{:44} {:9.1} us",
        "one service changed, p50",
        changes[100].as_secs_f64() * 1e6
    );

    let server = dns.addresses()[0];
    let questions = |wanted: RecordType| -> Vec<Vec<u8>> {
        let names = (0..SERVICES).map(|index| match wanted {
            RecordType::PTR => {
                let [high, low] = index.to_be_bytes();
                format!("{low}.{high}.96.10.in-addr.arpa.")
            }
            _ => format!("s{index}.n{}.svc.cluster.local.", index % 20),
        });
        let queries = names.map(|name| query(&name, wanted).to_vec().expect("a query"));
        queries.collect()
    };
    let (forward, reverse) = (questions(RecordType::A), questions(RecordType::PTR));
    for (what, questions) in [("cluster name", &forward), ("reverse name", &reverse)] {
        report(
            &format!("{what}, 2 clients, 16 under way in each"),
            CLIENTS,
            |_| names(server, WINDOW, time, questions),
        );
        report(&format!("{what}, one at a time"), 1, |_| {
            names(server, 1, time, questions)
        });
    }
    let known = Ipv4Addr::new(127, 0, 1, 1);
    dns.client(known.into(), Some(SEARCHES.map(str::to_owned).to_vec()));
    for (what, from) in [
        ("walk to an external name, list known", known),
        (
            "walk to an external name, list unknown",
            Ipv4Addr::new(127, 0, 1, 2),
        ),
    ] {
        report(&format!("{what}, 2 clients"), CLIENTS, |_| {
            walks(server, from, time)
        });
        report(what, 1, |_| walks(server, from, time));
    }
}
