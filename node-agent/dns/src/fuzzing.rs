//! What a client's or a resolver's packets meet, for the fuzzer; no interface of the crate.

use crate::error::DnsError;
use crate::zone::Zone;
use crate::{LARGEST_UDP, message};

/// A packet read, answered from a zone without services, and the answer written.
pub fn packet(bytes: &[u8]) -> Result<(), DnsError> {
    let Some(request) = message::parse(bytes) else {
        return Ok(());
    };
    let code = message::refuse(&request);
    if code.is_none() {
        let zone = Zone::new("cluster.local")?;
        for query in &request.queries {
            drop(zone.find(query, 1));
        }
    }
    let answer = message::reply(&request, code.unwrap_or_default());
    // What cannot be written is not sent.
    drop(message::encode(
        answer,
        message::udp_limit(&request).min(LARGEST_UDP.into()),
    ));
    Ok(())
}
