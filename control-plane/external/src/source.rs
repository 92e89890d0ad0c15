//! What is registered: whom to ask, for what, and how often. Pure.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

const DEFAULT_PERIOD: Duration = Duration::from_secs(5);
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
const LONGEST_PERIOD: Duration = Duration::from_secs(300);
/// The longest text of a source, in bytes: there is room for a certificate.
const BYTES: usize = 64 << 10;
/// The longest URL, query or path, in bytes.
const FIELD_BYTES: usize = 8 << 10;
/// Of what is wrong more is not told.
const TOLD: usize = 200;

/// What a source is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// A Prometheus server evaluates it.
    Query(String),
    /// Where the number is in what the URL answers: a JSON pointer, or names with dots between them.
    Path(String),
}

/// A source of a metric, as it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What is asked: with the query, if there is one.
    pub(crate) url: Url,
    pub(crate) question: Question,
    pub(crate) period: Duration,
    /// Trusted instead of public authorities, PEM.
    pub(crate) ca: Option<String>,
}

/// The YAML of a source.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    url: String,
    query: Option<String>,
    path: Option<String>,
    period: Option<String>,
    ca: Option<String>,
}

impl Source {
    /// Reads a source, YAML; an error names the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > BYTES {
            return Err(format!("it has more than {BYTES} bytes"));
        }
        let document = gantry_base::yaml::document(text.as_bytes()).map_err(told)?;
        if let Some(error) = document.strict_error() {
            return Err(told(error));
        }
        let value = document.to_value().map_err(told)?;
        let written: Written = serde_json::from_value(value).map_err(told)?;
        let question = match (written.query, written.path) {
            (Some(query), None) => Question::Query(short("query", query)?),
            (None, Some(path)) => Question::Path(short("path", path)?),
            _ => {
                return Err(
                    "exactly one of query (of a Prometheus server) and path (to a number in JSON) is needed"
                        .to_owned(),
                );
            }
        };
        if let Some(ca) = &written.ca {
            gantry_tls::trusting(ca).map_err(|error| told(format!("ca: {error}")))?;
        }
        let url = url(&short("url", written.url)?)?;
        Ok(Self {
            url: match &question {
                Question::Query(query) => asking(url, query)?,
                Question::Path(_) => url,
            },
            question,
            period: match &written.period {
                Some(text) => period(text)?,
                None => DEFAULT_PERIOD,
            },
            ca: written.ca,
        })
    }
}

fn told(error: impl ToString) -> String {
    let text = error.to_string().replace(char::is_control, " ");
    text.chars().take(TOLD).collect()
}

fn short(field: &str, text: String) -> Result<String, String> {
    match text.len() {
        0 => Err(format!("{field}: must not be empty")),
        1..=FIELD_BYTES => Ok(text),
        _ => Err(format!("{field}: must be at most {FIELD_BYTES} bytes")),
    }
}

fn url(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| told(format!("url: {text:?}: {why}"));
    let mut url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("must begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url: must hold no user and no password".to_owned());
    }
    url.set_fragment(None);
    Ok(url)
}

/// Where a Prometheus server answers a query.
fn asking(mut url: Url, query: &str) -> Result<Url, String> {
    if url.query().is_some() {
        return Err("url: must have no query of its own where there is a query".to_owned());
    }
    match url.path_segments_mut() {
        Ok(mut path) => drop(path.pop_if_empty().extend(["api", "v1", "query"])),
        Err(()) => return Err("url: must have a path".to_owned()),
    }
    url.query_pairs_mut().append_pair("query", query);
    Ok(url)
}

/// Whole seconds or minutes: `30s`, `5m`.
fn period(text: &str) -> Result<Duration, String> {
    let number = |digits: &str, factor: u64| {
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: Option<u64> = digits.parse().ok().filter(|_| is_plain);
        number?.checked_mul(factor)
    };
    let seconds = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(digits), _) => number(digits, 1),
        (None, Some(digits)) => number(digits, 60),
        (None, None) => None,
    };
    let period = seconds.map(Duration::from_secs);
    let period = period.filter(|period| (SHORTEST_PERIOD..=LONGEST_PERIOD).contains(period));
    period.ok_or_else(|| {
        told(format!(
            "period: {text:?}: must be 1s to 5m, in seconds or minutes, such as 30s"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read() {
        let source = Source::parse(
            "url: http://prometheus.example:9090/base/\nquery: sum(rate(a[1m])) + 1\nperiod: 1m\n",
        );
        let source = source.expect("a source");
        assert_eq!(
            source.url.as_str(),
            "http://prometheus.example:9090/base/api/v1/query?query=sum%28rate%28a%5B1m%5D%29%29+%2B+1"
        );
        assert_eq!(source.period, Duration::from_secs(60));
        let source = Source::parse("{url: 'https://a.example/q?x=y#z', path: jobs.0.depth}");
        let source = source.expect("a source");
        assert_eq!(source.url.as_str(), "https://a.example/q?x=y");
        assert_eq!(source.question, Question::Path("jobs.0.depth".to_owned()));
        assert_eq!(source.period, DEFAULT_PERIOD);
        let bare = Source::parse("{url: 'http://[fd00::1]', query: up}").expect("a source");
        assert_eq!(bare.url.as_str(), "http://[fd00::1]/api/v1/query?query=up");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "null"),
            ("[]", ""),
            ("url: http://a", "exactly one of query"),
            ("{url: http://a, query: a, path: b}", "exactly one of query"),
            ("{query: a}", "url"),
            ("{url: http://a, query: ''}", "query"),
            ("{url: '', query: a}", "url"),
            ("{url: http://a, query: a, headers: {}}", "headers"),
            ("{url: http://a, query: a, period: 0s}", "period"),
            ("{url: http://a, query: a, period: 301s}", "period"),
            ("{url: http://a, query: a, period: 6m}", "period"),
            ("{url: http://a, query: a, period: +5s}", "period"),
            ("{url: http://a, query: a, period: 5}", "string"),
            ("{url: http://a, query: a, ca: x}", "ca"),
            ("{url: 'http://a?b=c', query: a}", "url"),
            ("{url: 'ftp://a', path: a}", "url"),
            ("{url: 'file:///etc/passwd', path: a}", "url"),
            ("{url: 'a/b', path: a}", "url"),
            ("{url: 'http://user:secret@a', path: a}", "url"),
            ("{url: http://a, url: http://b, path: a}", "url"),
        ] {
            let why = Source::parse(text).expect_err(text);
            assert!(why.contains(named) && why.len() < 500, "{text}: {why}");
            assert!(!why.contains("secret") && !why.contains('\n'), "{why}");
        }
        let long = format!("{{url: http://a, path: {}}}", "x".repeat(FIELD_BYTES + 1));
        assert!(Source::parse(&long).expect_err("long").starts_with("path"));
        assert!(Source::parse(&" ".repeat(BYTES + 1)).is_err());
    }
}
