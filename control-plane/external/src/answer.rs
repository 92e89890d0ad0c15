//! What a source has answered. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The most series of an answer.
const SERIES: usize = 256;
/// What the labels of an answer may have together, in bytes.
const LABEL_BYTES: usize = 64 << 10;
/// Of what is wrong more is not told.
const TOLD: usize = 200;

/// One series of an external metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Finite.
    pub value: f64,
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    // Where it is wrong, and not what stands there: it may be nobody's business.
    #[error("the answer is not what a Prometheus server says, at line {} column {}", .0.line(), .0.column())]
    NotPrometheus(serde_json::Error),
    #[error("the answer is not what a Prometheus server says: it has no data")]
    NoData,
    #[error("the answer is no JSON, at line {} column {}", .0.line(), .0.column())]
    NotJson(serde_json::Error),
    #[error("the server says: {0}")]
    Refused(String),
    #[error("the query gives a {0}, not a vector or a scalar")]
    Type(String),
    #[error(
        "the query gives {0} series, of which {SERIES} are allowed: aggregate them, as sum() does"
    )]
    TooMany(usize),
    #[error(
        "the query gives labels of more than {LABEL_BYTES} bytes: aggregate them, as sum() does"
    )]
    Labels,
    #[error("there is no number at {0:?} in the answer")]
    NoNumber(String),
}

#[derive(Deserialize)]
struct Response<'a> {
    status: String,
    #[serde(default)]
    error: String,
    #[serde(borrow)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(rename = "resultType")]
    result_type: String,
    #[serde(borrow)]
    result: &'a RawValue,
}

/// A time, and a number as text.
type Sample = (f64, String);

#[derive(Deserialize)]
struct Sampled {
    metric: BTreeMap<String, String>,
    value: Sample,
}

fn told(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    text.chars().take(TOLD).collect()
}

/// The series that a Prometheus server has found. What is no number is left out.
pub(crate) fn prometheus(body: &[u8]) -> Result<Vec<Series>, Unusable> {
    let response: Response<'_> = serde_json::from_slice(body).map_err(Unusable::NotPrometheus)?;
    let data = match response.data {
        Some(data) if response.status == "success" => data,
        _ if response.status == "error" => return Err(Unusable::Refused(told(&response.error))),
        _ => return Err(Unusable::NoData),
    };
    let text = data.result.get();
    let sampled = match data.result_type.as_str() {
        "vector" => serde_json::from_str(text),
        "scalar" => serde_json::from_str(text).map(|value| {
            vec![Sampled {
                metric: BTreeMap::new(),
                value,
            }]
        }),
        other => return Err(Unusable::Type(told(other))),
    };
    let sampled: Vec<Sampled> = sampled.map_err(Unusable::NotPrometheus)?;
    if sampled.len() > SERIES {
        return Err(Unusable::TooMany(sampled.len()));
    }
    let labels = sampled.iter().flat_map(|sampled| &sampled.metric);
    if labels
        .map(|(name, value)| name.len() + value.len())
        .sum::<usize>()
        > LABEL_BYTES
    {
        return Err(Unusable::Labels);
    }
    let series = sampled.into_iter().filter_map(|sampled| {
        Some(Series {
            labels: sampled.metric,
            value: finite(&sampled.value.1)?,
        })
    });
    Ok(series.collect())
}

fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

/// The number at a path: a JSON pointer (RFC 6901) when it begins with a slash, else names and places with dots between them.
pub(crate) fn number_at(path: &str, body: &[u8]) -> Result<Vec<Series>, Unusable> {
    let value: Value = serde_json::from_slice(body).map_err(Unusable::NotJson)?;
    let found = match path.starts_with('/') {
        true => value.pointer(path),
        false => path.split('.').try_fold(&value, |value, step| match value {
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            Value::Object(members) => members.get(step),
            _ => None,
        }),
    };
    let number = match found {
        Some(Value::Number(number)) => number.as_f64().filter(|value| value.is_finite()),
        Some(Value::String(text)) => finite(text),
        _ => None,
    };
    let value = number.ok_or_else(|| Unusable::NoNumber(told(path)))?;
    Ok(vec![Series {
        labels: BTreeMap::new(),
        value,
    }])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prometheus_server_is_understood() {
        let vector = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"queue":"a","__name__":"depth"},"value":[1435781451.781,"1.5"]},
            {"metric":{},"value":[1435781451,"NaN"]},
            {"metric":{"queue":"b"},"value":[1435781451,"-2"]}]},"warnings":["x"]}"#;
        let series = prometheus(vector.as_bytes()).expect("series");
        let values: Vec<f64> = series.iter().map(|series| series.value).collect();
        assert_eq!(values, [1.5, -2.0]);
        assert_eq!(series[0].labels["queue"], "a");
        let scalar =
            r#"{"status":"success","data":{"resultType":"scalar","result":[1435781451.781,"7"]}}"#;
        let series = prometheus(scalar.as_bytes()).expect("a number");
        assert_eq!((series.len(), series[0].value), (1, 7.0));
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let vector = |result: &str| {
            format!(r#"{{"status":"success","data":{{"resultType":"vector","result":{result}}}}}"#)
        };
        let one = r#"{"metric":{},"value":[1,"1"]}"#;
        let many = |count: usize| vector(&format!("[{}]", vec![one; count].join(",")));
        assert_eq!(
            prometheus(many(SERIES).as_bytes())
                .map(|all| all.len())
                .ok(),
            Some(SERIES)
        );
        let long = format!(
            "{{\"metric\":{{\"a\":\"{}\"}},\"value\":[1,\"1\"]}}",
            "x".repeat(LABEL_BYTES)
        );
        for (body, told) in [
            (many(SERIES + 1), "257 series"),
            (vector(&format!("[{long}]")), "more than 65536 bytes"),
            (r#"{"status":"ok"}"#.to_owned(), "no data"),
            (vector("[{\"metric\":{},\"value\":[1,1]}]"), "not what"),
            (vector("{}"), "not what"),
            (
                r#"{"status":"error","errorType":"bad_data","error":"parse error\nat char 3"}"#
                    .to_owned(),
                "parse error at char 3",
            ),
            (
                r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.to_owned(),
                "matrix",
            ),
            ("<html>".to_owned(), "not what"),
            ("[".repeat(100_000), "not what"),
            (String::new(), "not what"),
        ] {
            let why = prometheus(body.as_bytes()).expect_err(told).to_string();
            assert!(why.contains(told) && why.len() < 400, "{why}");
        }
        let secret = r#"{"status":"success","data":"a token"}"#;
        let why = prometheus(secret.as_bytes())
            .expect_err("no data")
            .to_string();
        assert!(!why.contains("token"), "{why}");
    }

    #[test]
    fn numbers_are_found_by_their_path() {
        let body =
            br#"{"jobs": [{"depth": 4}, {"depth": "2.5"}], "a.b": 1, "none": null, "nan": "NaN"}"#;
        let number = |path: &str| number_at(path, body).ok().map(|series| series[0].value);
        for (path, expected) in [
            ("jobs.0.depth", Some(4.0)),
            ("/jobs/1/depth", Some(2.5)),
            ("/a.b", Some(1.0)),
            ("a.b", None),
            ("jobs.2.depth", None),
            ("jobs.x.depth", None),
            ("jobs", None),
            ("none", None),
            ("nan", None),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(number(path), expected, "{path}");
        }
        assert_eq!(
            number_at("/", b"{\"\": 3}").map(|all| all[0].value).ok(),
            Some(3.0)
        );
        assert!(number_at("a", "[".repeat(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), path in "[a-z0-9./~]{0,12}") {
            drop(prometheus(&bytes));
            drop(number_at(&path, &bytes));
        }
    }
}
