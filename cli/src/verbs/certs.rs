//! `gantry certs`: the cluster's authority and the certificates it issued.

use anyhow::Result;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::{Call, Cluster};
use crate::output;

const CERTIFICATES: &str = "/gantry/v1/certificates";
const AUTHORITIES: &str = "/gantry/v1/authorities";
/// Characters of a fingerprint that are shown.
const SHOWN: usize = 8;

/// Show when certificates expire, and replace the authority that signs them
#[derive(Debug, clap::Args)]
pub(crate) struct Certs {
    #[command(subcommand)]
    command: Option<CertsCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum CertsCommand {
    /// List the authority and the certificates of servers, nodes and administrators
    List,
    /// Replace the authority: first a new one signs beside the old one, then --finish ends the trust in the old one
    RotateCa {
        /// Stop trusting the old authority
        #[arg(long)]
        finish: bool,
        /// Finish although somebody still has a certificate of the old authority, and is locked out by it
        #[arg(long, requires = "finish")]
        force: bool,
    },
}

impl Certs {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match &self.command {
            None | Some(CertsCommand::List) => {
                let found = cluster.call(Call::get(CERTIFICATES)).await?;
                output::print(&listed(&found, Timestamp::now()))
            }
            Some(CertsCommand::RotateCa { finish: false, .. }) => begin(cluster).await,
            Some(CertsCommand::RotateCa { force, .. }) => finish(cluster, *force).await,
        }
    }
}

async fn change(cluster: &Cluster, change: &str) -> Result<()> {
    let path = format!("{AUTHORITIES}/{change}");
    let call = Call::send(Method::POST, &path, &json!({}));
    cluster.call(call).await?;
    Ok(())
}

async fn begin(cluster: &Cluster) -> Result<()> {
    change(cluster, "rotate").await?;
    output::print(
        "a new authority signs; the old one is trusted too until 'gantry certs rotate-ca --finish'\n\
         servers and nodes get new certificates by themselves within a minute or two: see 'gantry certs'\n\
         before you finish, replace copies of admin.kubeconfig that people and programs have\n",
    )
}

async fn finish(cluster: &Cluster, force: bool) -> Result<()> {
    change(cluster, if force { "finish-by-force" } else { "finish" }).await?;
    output::print(
        "the old authority is not trusted any more\n\
         copies of admin.kubeconfig made before the replacement do not work any more; pods that keep the authority in memory need \
         a restart\n",
    )
}

/// The time left, for people: days, or the two largest units below.
fn left(expires: &str, now: Timestamp) -> String {
    let Ok(expires) = expires.parse::<Timestamp>() else {
        return String::new();
    };
    let seconds = expires.as_second() - now.as_second();
    match seconds {
        ..=0 => "expired".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn listed(found: &Value, now: Timestamp) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let short = |value: &Value| text(value).chars().take(SHOWN).collect::<String>();
    let mut lines = vec![
        ["AUTHORITY", "SIGNS", "EXPIRES", "LEFT"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for authority in found["authorities"].as_array().into_iter().flatten() {
        let signs = if authority["signs"] == true {
            "yes"
        } else {
            "no, trusted only"
        };
        lines.push(vec![
            short(&authority["fingerprint"]),
            signs.to_owned(),
            text(&authority["expires"]),
            left(&text(&authority["expires"]), now),
        ]);
    }
    let authorities = output::align(&lines);
    let head = [
        "CERTIFICATE",
        "KEPT BY",
        "AUTHORITY",
        "EXPIRES",
        "LEFT",
        "RENEWED IN",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for certificate in found["certificates"].as_array().into_iter().flatten() {
        lines.push(vec![
            text(&certificate["user"]),
            text(&certificate["holder"]),
            short(&certificate["authority"]),
            text(&certificate["expires"]),
            left(&text(&certificate["expires"]), now),
            left(&text(&certificate["renews"]), now).replace("expired", "now"),
        ]);
    }
    format!("{authorities}\n{}", output::align(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_short_to_read() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        for (expires, expected) in [
            ("2025-12-31T00:00:00Z", "expired"),
            ("2026-01-01T00:00:59Z", "59s"),
            ("2026-01-01T00:02:03Z", "2m3s"),
            ("2026-01-02T01:30:00Z", "25h30m"),
            ("2027-01-01T00:00:00Z", "365d"),
            ("soon", ""),
        ] {
            assert_eq!(left(expires, now), expected, "{expires}");
        }
    }

    #[test]
    fn every_authority_and_certificate_has_a_line() {
        let found = json!({
            "authorities": [
                {"fingerprint": "0123456789abcdef", "signs": true, "expires": "2036-01-01T00:00:00Z"},
                {"fingerprint": "fedcba9876543210", "signs": false, "expires": "2027-01-01T00:00:00Z"},
            ],
            "certificates": [{
                "user": "gantry:server:1", "holder": "s1", "authority": "0123456789abcdef",
                "expires": "2026-12-31T00:00:00Z", "renews": "2025-12-31T00:00:00Z",
            }],
        });
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let text = listed(&found, now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(
            lines[2].contains("fedcba98") && lines[2].contains("trusted only"),
            "{text}"
        );
        assert!(
            lines[5].contains("s1") && lines[5].ends_with("now"),
            "{text}"
        );
    }
}
