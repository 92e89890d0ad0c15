//! Requests and answers as octets.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use crate::LARGEST_UDP;

/// Questions and records of one request, together. Nobody asks for more than one thing at a time (RFC 9619); an update has
/// a few, and is refused. More are not read: an answer repeats every question, at a cost that is their number's square.
const MOST_RECORDS: usize = 16;

/// The request in a packet. What is no request gets no answer, so that two servers never answer each other for ever;
/// what is one but cannot be read is refused as far as its header goes.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message> {
    let read = match records(bytes) > MOST_RECORDS {
        true => Err("too many questions and records".into()),
        false => Message::from_vec(bytes).map_err(ProtoError::from),
    };
    match read {
        Ok(message) => (message.metadata.message_type == MessageType::Query).then_some(message),
        Err(error) => {
            tracing::debug!(%error, "a DNS packet that cannot be read");
            let [high, low, flags, ..] = *bytes else {
                return None;
            };
            let is_query = flags & 0x80 == 0;
            is_query.then(|| {
                Message::new(
                    u16::from_be_bytes([high, low]),
                    MessageType::Query,
                    OpCode::Query,
                )
            })
        }
    }
}

/// How many questions and records a packet claims to have.
fn records(bytes: &[u8]) -> usize {
    let counts = bytes.get(4..12).unwrap_or_default().chunks_exact(2);
    counts
        .map(|count| usize::from(u16::from_be_bytes([count[0], count[1]])))
        .sum()
}

/// Why a request is not looked up at all.
pub(crate) fn refuse(request: &Message) -> Option<ResponseCode> {
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if request.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    let [query] = &request.queries[..] else {
        return Some(ResponseCode::FormErr);
    };
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    (query.query_class() != DNSClass::IN || transfer).then_some(ResponseCode::Refused)
}

/// An answer without records. The question is the asker's own, to the case of its letters: some compare it.
pub(crate) fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.checking_disabled = request.metadata.checking_disabled;
    answer.metadata.recursion_available = true;
    answer.add_queries(request.queries.iter().map(Query::clone));
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_UDP).set_version(0);
        edns.flags_mut().dnssec_ok = asked.flags().dnssec_ok;
        answer.set_edns(edns);
    }
    answer
}

/// Octets that a client takes in one packet.
pub(crate) fn udp_limit(request: &Message) -> usize {
    usize::from(request.max_payload().clamp(512, LARGEST_UDP))
}

/// The octets of an answer, at most so many. What is only helpful goes first; if the rest does not fit either, as many
/// records as do are sent, marked as a part: some clients are content with those, the others ask again over TCP.
pub(crate) fn encode(
    mut answer: Message,
    limit: usize,
) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let whole = answer.to_vec()?;
    if whole.len() <= limit {
        return Ok(whole);
    }
    answer.additionals.clear();
    if !answer.answers.is_empty() {
        answer.authorities.clear();
    }
    let bare = answer.to_vec()?;
    if bare.len() <= limit {
        return Ok(bare);
    }
    answer.metadata.truncation = true;
    answer.authorities.clear();
    let all = std::mem::take(&mut answer.answers);
    let (mut fits, mut too_many) = (0, all.len());
    let mut best = answer.to_vec()?;
    if best.len() > limit {
        // Several questions, none of which is answered.
        answer.queries.clear();
        return answer.to_vec();
    }
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        answer.answers = all[..middle].to_vec();
        let part = answer.to_vec()?;
        if part.len() <= limit {
            (fits, best) = (middle, part);
        } else {
            too_many = middle;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::SRV;
    use hickory_proto::rr::{Name, RData, Record};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(answers: usize, additionals: usize) -> Message {
        let mut request = Message::query();
        request.add_query(Query::query(
            name("db.default.svc.cluster.local."),
            RecordType::SRV,
        ));
        request.set_edns(Edns::new());
        let mut answer = reply(&request, ResponseCode::NoError);
        for index in 0..answers {
            let target = name(&format!("db-{index}.db.default.svc.cluster.local."));
            let data = RData::SRV(SRV::new(0, 100, 80, target));
            answer.add_answer(Record::from_rdata(
                name("db.default.svc.cluster.local."),
                5,
                data,
            ));
        }
        for index in 0..additionals {
            let data = RData::A(Ipv4Addr::from(u32::try_from(index).unwrap()).into());
            answer.add_additional(Record::from_rdata(name("x.cluster.local."), 5, data));
        }
        answer
    }

    #[test]
    fn a_request_with_many_questions_is_refused_by_its_header() {
        let mut request = Message::query();
        for index in 0..4000 {
            request.add_query(Query::query(name(&format!("n{index}.")), RecordType::A));
        }
        let bytes = request.to_vec().unwrap();
        let read = parse(&bytes).unwrap();
        assert!(read.queries.is_empty());
        assert_eq!(read.metadata.id, request.metadata.id);
        assert_eq!(refuse(&read), Some(ResponseCode::FormErr));
    }

    #[test]
    fn what_is_only_helpful_goes_first_and_is_no_truncation() {
        let bytes = encode(answer(5, 50), 512).unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!((message.answers.len(), message.additionals.len()), (5, 0));
        assert!(!message.metadata.truncation && message.edns.is_some());
    }

    proptest! {
        #[test]
        fn an_answer_fits_and_says_whether_it_is_a_part(
            answers in 0_usize..60, additionals in 0_usize..60, limit in 512_usize..1300
        ) {
            let bytes = encode(answer(answers, additionals), limit).unwrap();
            prop_assert!(bytes.len() <= limit);
            let message = Message::from_vec(&bytes).unwrap();
            prop_assert!(message.edns.is_some());
            prop_assert_eq!(message.metadata.truncation, message.answers.len() < answers);
            if message.metadata.truncation {
                // One more would not have fitted.
                let more = encode(answer(message.answers.len() + 1, 0), 65_535).unwrap();
                prop_assert!(more.len() > limit);
            }
        }

        /// Whatever is changed in a request, no more is answered than was asked.
        #[test]
        fn a_damaged_request_is_a_request_or_nothing(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            questions in 1_u16..4,
        ) {
            let mut request = Message::query();
            for index in 0..questions {
                let asked = format!("db-{index}.db.default.svc.cluster.local.");
                request.add_query(Query::query(name(&asked), RecordType::SRV));
            }
            request.set_edns(Edns::new());
            let mut bytes = request.to_vec().unwrap();
            for (at, octet) in damage {
                let at = at.index(bytes.len());
                bytes[at] = octet;
            }
            if let Some(request) = parse(&bytes) {
                let code = refuse(&request).unwrap_or(ResponseCode::NXDomain);
                let answer = encode(reply(&request, code), 512).unwrap();
                prop_assert!(answer.len() <= 512);
            }
        }

        #[test]
        fn any_octets_are_a_request_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(request) = parse(&bytes) {
                prop_assert_eq!(request.metadata.message_type, MessageType::Query);
                let code = refuse(&request).unwrap_or(ResponseCode::NXDomain);
                prop_assert!(encode(reply(&request, code), 512).is_ok());
            }
        }
    }
}
