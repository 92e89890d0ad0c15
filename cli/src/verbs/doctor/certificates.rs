//! Certificates that end soon. Pure.

use gantry_tls::Lifetime;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::finding::Finding;

/// An authority is replaced by hand, and copies of kubeconfigs with it.
const AUTHORITY: SignedDuration = SignedDuration::from_hours(90 * 24);

/// What `/gantry/v1/certificates` lists.
pub(super) fn check(found: &Value, now: Timestamp) -> Vec<Finding> {
    let list = |field: &str| found[field].as_array().into_iter().flatten();
    let time = |value: &Value| {
        value
            .as_str()
            .and_then(|text| text.parse::<Timestamp>().ok())
    };
    let mut findings = Vec::new();
    for authority in list("authorities").filter(|authority| authority["signs"] == true) {
        let Some(expires) = time(&authority["expires"]) else {
            continue;
        };
        let fix = "replace it with 'gantry certs rotate-ca'";
        if expires <= now {
            let message = format!("the cluster's authority has expired at {expires}");
            findings.push(Finding::failed("certificates", message, fix));
        } else if expires.duration_since(now) < AUTHORITY {
            let message = format!("the cluster's authority expires at {expires}");
            findings.push(Finding::warning("certificates", message, fix));
        }
    }
    for certificate in list("certificates") {
        let (Some(renews), Some(expires)) =
            (time(&certificate["renews"]), time(&certificate["expires"]))
        else {
            continue;
        };
        // Whose holder is gone for good stays listed for a while: no failure.
        if now > overdue(renews, expires) {
            let user = certificate["user"].as_str().unwrap_or_default();
            let holder = certificate["holder"].as_str().unwrap_or_default();
            findings.push(Finding::warning(
                "certificates",
                format!("that of {user} (kept by {holder}) expires at {expires} and should have been renewed since {renews}"),
                "look whether its holder runs, and what its log says of renewal",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "certificates",
            "none of the cluster's ends soon without being renewed",
        ));
    }
    findings
}

/// From when on a certificate that should renew itself has evidently not: half of the time between.
fn overdue(renews: Timestamp, expires: Timestamp) -> Timestamp {
    let half = expires.duration_since(renews) / 2;
    renews.checked_add(half).unwrap_or(expires)
}

/// The client's own, of the kubeconfig. Nobody renews a copy.
pub(super) fn own(own: Lifetime, now: Timestamp) -> Finding {
    let expires = own.expires;
    let fix = "copy admin.kubeconfig anew from a server's data directory";
    if expires <= now {
        let message = format!("its certificate has expired at {expires}");
        Finding::failed("kubeconfig", message, fix)
    } else if now > overdue(own.renews(), expires) {
        let message = format!("its certificate expires at {expires}");
        Finding::warning("kubeconfig", message, fix)
    } else {
        Finding::ok(
            "kubeconfig",
            format!("its certificate lasts until {expires}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Outcome;
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn only_what_should_have_been_renewed_is_told() {
        let found = json!({
            "authorities": [
                {"fingerprint": "a", "signs": true, "expires": "2026-12-01T00:00:00Z"},
                {"fingerprint": "b", "signs": false, "expires": "2020-01-01T00:00:00Z"},
            ],
            "certificates": [{
                "user": "system:node:n1", "holder": "n1",
                "renews": "2026-05-01T00:00:00Z", "expires": "2026-09-01T00:00:00Z",
            }],
        });
        let outcomes = |now: &str| -> Vec<Outcome> {
            let findings = check(&found, at(now));
            findings.iter().map(|finding| finding.outcome).collect()
        };
        assert_eq!(outcomes("2026-01-01T00:00:00Z"), [Outcome::Ok]);
        assert_eq!(outcomes("2026-06-01T00:00:00Z"), [Outcome::Ok]);
        assert_eq!(outcomes("2026-08-01T00:00:00Z"), [Outcome::Warning]);
        assert_eq!(
            outcomes("2026-10-01T00:00:00Z"),
            [Outcome::Warning, Outcome::Warning]
        );
        assert_eq!(
            outcomes("2027-01-01T00:00:00Z"),
            [Outcome::Failed, Outcome::Warning]
        );
        let late = check(&found, at("2026-08-01T00:00:00Z"));
        assert!(late[0].message.contains("system:node:n1"), "{late:?}");
    }

    #[test]
    fn the_kubeconfigs_certificate_is_told_before_it_ends() {
        let lifetime = Lifetime {
            issued: at("2026-01-01T00:00:00Z"),
            expires: at("2026-12-31T00:00:00Z"),
        };
        for (now, outcome) in [
            ("2026-02-01T00:00:00Z", Outcome::Ok),
            ("2026-09-15T00:00:00Z", Outcome::Ok),
            ("2026-12-01T00:00:00Z", Outcome::Warning),
            ("2027-01-01T00:00:00Z", Outcome::Failed),
        ] {
            assert_eq!(own(lifetime, at(now)).outcome, outcome, "{now}");
        }
    }
}
