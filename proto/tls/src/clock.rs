//! Certificates that are refused for the time of day: what a person needs to know to see that a clock is wrong.

use std::error::Error;
use std::io;

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

use crate::Lifetime;

const FIX: &str = "set it, best by a time service such as chrony or systemd-timesyncd";
/// How libraries between this one and its caller repeat an alert, of which they keep only the words.
const ALERT: &str = "received fatal alert: CertificateExpired";

/// Words about the clocks, when an error (or one of its causes) says that a certificate is not valid at this time. `own`
/// is the certificate that this side has shown, where that is known.
pub fn about_clocks(error: &(dyn Error + 'static), own: Option<Lifetime>) -> Option<String> {
    explained(error, own, Timestamp::now())
}

fn explained(
    error: &(dyn Error + 'static),
    own: Option<Lifetime>,
    now: Timestamp,
) -> Option<String> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(words) = of_one(cause, own, now) {
            return Some(words);
        }
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

fn of_one(cause: &(dyn Error + 'static), own: Option<Lifetime>, now: Timestamp) -> Option<String> {
    let refused = match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(refused)) => refused,
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            return Some(refused_by_the_other(own, now));
        }
        Some(_) => return None,
        None => {
            return cause
                .to_string()
                .contains(ALERT)
                .then(|| refused_by_the_other(own, now));
        }
    };
    let valid = match refused {
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("is valid only from {} on", at(*not_before))
        }
        CertificateError::NotValidYet => "is not valid yet".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("was valid until {}", at(*not_after))
        }
        CertificateError::Expired => "is not valid any more".to_owned(),
        _ => return None,
    };
    let now = whole(now);
    Some(format!(
        "the server's certificate {valid}, and this machine's clock says {now}: if this clock is wrong, {FIX}; if it is \
         right, look at the server's clock and 'gantry certs'"
    ))
}

/// TLS has one alert for certificates that are not valid yet and for those that have expired.
fn refused_by_the_other(own: Option<Lifetime>, now: Timestamp) -> String {
    let valid = own.map_or_else(String::new, |own| {
        format!(
            " (valid from {} until {})",
            whole(own.valid_from()),
            whole(own.expires)
        )
    });
    let now = whole(now);
    format!(
        "the server says that this machine's certificate{valid} is not valid at this time, and this machine's clock says \
         {now}: if the clock of one of them is wrong, {FIX}; if both are right, a new certificate is needed"
    )
}

fn at(time: UnixTime) -> String {
    let second = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(second)
        .unwrap_or(Timestamp::MAX)
        .to_string()
}

/// To the second.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: &str = "2026-01-02T03:04:05.6Z";

    fn explain(error: &(dyn Error + 'static), own: Option<Lifetime>) -> Option<String> {
        explained(error, own, NOW.parse().expect("a time"))
    }

    fn invalid(error: CertificateError) -> io::Error {
        io::Error::other(rustls::Error::InvalidCertificate(error))
    }

    #[test]
    fn both_times_and_the_clock_are_named() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let early = invalid(CertificateError::NotValidYetContext {
            time: at(1),
            not_before: at(1_900_000_000),
        });
        let late = invalid(CertificateError::ExpiredContext {
            time: at(1),
            not_after: at(1_700_000_000),
        });
        for (error, validity) in [
            (early, "from 2030-03-17T17:46:40Z on"),
            (late, "until 2023-11-14T22:13:20Z"),
            (invalid(CertificateError::Expired), "not valid any more"),
            (invalid(CertificateError::NotValidYet), "not valid yet"),
        ] {
            let words = explain(&error, None).expect("a certificate's time");
            assert!(
                words.contains(validity)
                    && words.contains("this machine's clock says 2026-01-02T03:04:05Z")
                    && words.contains("chrony"),
                "{words}"
            );
        }
    }

    #[test]
    fn an_alert_is_understood_with_and_without_its_type() {
        let own = Lifetime {
            issued: "2025-01-02T00:00:00Z".parse().expect("a time"),
            expires: "2025-06-01T00:00:00Z".parse().expect("a time"),
        };
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        assert_eq!(alert.to_string(), ALERT);
        // As HTTP/2 hands it on.
        for error in [io::Error::other(alert), io::Error::other(ALERT)] {
            let words = explain(&error, Some(own)).expect("a certificate's time");
            assert!(
                words.contains("valid from 2025-01-01T00:00:00Z until 2025-06-01T00:00:00Z")
                    && words.contains("clock says 2026-01-02T03:04:05Z"),
                "{words}"
            );
        }
    }

    #[test]
    fn other_errors_have_nothing_to_do_with_clocks() {
        let foreign = invalid(CertificateError::UnknownIssuer);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        for error in [foreign, refused, io::Error::other("expired")] {
            assert_eq!(explain(&error, None), None, "{error}");
        }
    }
}
