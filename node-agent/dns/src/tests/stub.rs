//! A resolver for tests: it knows a few names, counts the questions, and can be told to misbehave.

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{RData, Record};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::super::message::reply;
use super::*;

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Answer,
    /// Over UDP it says only that TCP be used.
    Truncate,
    /// Takes questions and says nothing.
    Silent,
    /// Holds questions until it is told to answer.
    Hold,
    Fail,
    /// Says something else first: another number, another name.
    Forge,
}

/// The resolver. It knows `*.example.com` (IPv4), `six.corp.example` (IPv6), and nothing else.
pub(super) struct Stub {
    pub(super) address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<String>>>,
    pub(super) release: Arc<Notify>,
    pub(super) over_tcp: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Stub {
    pub(super) async fn new(manner: Manner) -> Self {
        Self::with_ttl(manner, 60).await
    }

    /// Its answers hold for so many seconds.
    pub(super) async fn with_ttl(manner: Manner, ttl: u32) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind(ANY_PORT).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let mut stub = Self {
            address: udp.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            asked: Arc::default(),
            release: Arc::default(),
            over_tcp: Arc::default(),
            _tasks: JoinSet::new(),
        };
        let (manner, asked, release) = (
            stub.manner.clone(),
            stub.asked.clone(),
            stub.release.clone(),
        );
        stub._tasks.spawn(async move {
            let mut buffer = vec![0; 1500];
            loop {
                let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
                let request = Message::from_vec(&buffer[..length]).unwrap();
                let query = &request.queries[0];
                if query.query_type() == RecordType::HINFO {
                    // Our server looking for loops: at once, and of no interest here.
                    let answer = reply(&request, ResponseCode::NXDomain).to_vec().unwrap();
                    udp.send_to(&answer, client).await.unwrap();
                    continue;
                }
                asked
                    .lock()
                    .push(format!("{} {}", query.query_type(), query.name()));
                let mut answer = answer(&request, ttl);
                let manner = *manner.lock();
                match manner {
                    Manner::Answer => {}
                    Manner::Truncate => answer = answer.truncate(),
                    Manner::Fail => answer = reply(&request, ResponseCode::ServFail),
                    Manner::Silent => continue,
                    Manner::Hold => {
                        let (udp, release) = (Arc::clone(&udp), Arc::clone(&release));
                        tokio::spawn(async move {
                            release.notified().await;
                            udp.send_to(&answer.to_vec().unwrap(), client)
                                .await
                                .unwrap();
                        });
                        continue;
                    }
                    Manner::Forge => {
                        let mut forged = answer.clone();
                        forged.metadata.id = forged.metadata.id.wrapping_add(1);
                        forged.answers.clear();
                        udp.send_to(&forged.to_vec().unwrap(), client)
                            .await
                            .unwrap();
                        forged.metadata.id = answer.metadata.id;
                        forged.queries[0].set_name(Name::from_ascii("evil.example.").unwrap());
                        udp.send_to(&forged.to_vec().unwrap(), client)
                            .await
                            .unwrap();
                    }
                }
                udp.send_to(&answer.to_vec().unwrap(), client)
                    .await
                    .unwrap();
            }
        });
        let over_tcp = stub.over_tcp.clone();
        stub._tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut bytes).await.unwrap();
                over_tcp.fetch_add(1, Ordering::SeqCst);
                let answer = answer(&Message::from_vec(&bytes).unwrap(), ttl)
                    .to_vec()
                    .unwrap();
                let length = u16::try_from(answer.len()).unwrap();
                stream.write_all(&length.to_be_bytes()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        stub
    }

    pub(super) fn behave(&self, manner: Manner) {
        *self.manner.lock() = manner;
    }

    /// The questions so far, as "type name".
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

fn answer(request: &Message, ttl: u32) -> Message {
    let mut answer = reply(request, ResponseCode::NoError);
    let query = &request.queries[0];
    let name = query.name().to_ascii().to_lowercase();
    let known = match name.as_str() {
        "six.corp.example." => Some(RData::AAAA(
            "fd00::7".parse::<std::net::Ipv6Addr>().unwrap().into(),
        )),
        name if name.ends_with("example.com.") => {
            Some(RData::A(Ipv4Addr::new(192, 0, 2, 7).into()))
        }
        _ => None,
    };
    match known {
        Some(data) if data.record_type() == query.query_type() => {
            answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
        }
        known => {
            if known.is_none() {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, ttl);
            answer.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
        }
    }
    answer
}
