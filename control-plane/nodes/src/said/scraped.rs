//! What a node says that its pods have answered, as types: within bounds, and with numbers that can be counted with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gantry_rpc::node as rpc;
use gantry_usage::{PodName, ScrapedPod, ScrapedSeries};

use super::{PodRef, Refused, STATUSES, check_count, checked};

/// Series of one pod that an agent tells of.
const SERIES: usize = 64;
/// The longest name of a series or label, in bytes.
const NAME_BYTES: usize = 256;
/// What the labels of a pod's series have together, in bytes.
const LABEL_BYTES: usize = 16 << 10;
/// The longest reason for which a pod has not answered, in bytes.
const TROUBLE_BYTES: usize = 1024;
/// Later than any process runs, in nanoseconds.
const LATEST: u64 = 1 << 62;

/// Refuses answers of more pods than a node has.
pub(crate) fn check_pods(count: usize) -> Result<(), Refused> {
    check_count(
        "pods",
        count,
        STATUSES,
        "what the node's pods have answered",
    )
}

/// Which pod has answered.
pub(crate) fn pod_of(said: &rpc::ScrapedPod) -> Result<PodRef, Refused> {
    PodRef::new(said.namespace.clone(), said.name.clone(), said.uid.clone())
}

/// What a pod has answered.
pub(crate) fn pod(said: rpc::ScrapedPod, pod: Arc<PodName>) -> Result<ScrapedPod, Refused> {
    if said.read_at > LATEST {
        return Err(Refused::NotItsOwn(
            "a pod's answer is of a time that never comes".to_owned(),
        ));
    }
    check_count("series", said.series.len(), SERIES, "the pod's answer")?;
    let answer = match said.trouble.as_str() {
        "" => Ok(series(said.series)?),
        trouble => {
            if trouble.len() > TROUBLE_BYTES {
                return Err(Refused::TooLarge {
                    what: "why a pod has not answered",
                    bytes: trouble.len(),
                    limit: TROUBLE_BYTES,
                });
            }
            // It is told on one line.
            Err(trouble.replace(char::is_control, " "))
        }
    };
    Ok(ScrapedPod {
        pod,
        at: said.read_at,
        answer,
    })
}

fn series(said: Vec<rpc::ScrapedSeries>) -> Result<Vec<ScrapedSeries>, Refused> {
    let mut left = LABEL_BYTES;
    let mut known = BTreeSet::new();
    let series = said.into_iter().map(|said| {
        let name = checked("a series' name", said.name, name_problem)?;
        let mut labels = BTreeMap::new();
        for label in said.labels {
            let bytes = label.name.len() + label.value.len();
            left = left.checked_sub(bytes).ok_or(Refused::TooLarge {
                what: "the labels of a pod's series",
                bytes: LABEL_BYTES.saturating_add(bytes),
                limit: LABEL_BYTES,
            })?;
            let name = checked("a label's name", label.name, name_problem)?;
            labels.insert(name, label.value);
        }
        if !said.value.is_finite() {
            return Err(Refused::NotItsOwn(format!(
                "the series \"{name}\" has no finite value"
            )));
        }
        if !known.insert((name.clone(), labels.clone())) {
            return Err(Refused::NotItsOwn(format!(
                "the series \"{name}\" twice with the same labels"
            )));
        }
        Ok(ScrapedSeries {
            name,
            labels,
            is_counter: said.counter,
            value: said.value,
        })
    });
    series.collect()
}

/// Whether a series or a label can have this name.
pub(crate) fn is_name(name: &str) -> bool {
    name_problem(name).is_none()
}

/// Names as Prometheus' data model has them.
fn name_problem(name: &str) -> Option<String> {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':');
    let mut bytes = name.bytes();
    let fits = name.len() <= NAME_BYTES
        && bytes.next().is_some_and(is_letter)
        && bytes.all(|byte| is_letter(byte) || byte.is_ascii_digit());
    (!fits).then(|| {
        format!("must be 1 to {NAME_BYTES} letters, digits, '_' and ':', and begin with no digit")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, label: &str, value: f64) -> rpc::ScrapedSeries {
        rpc::ScrapedSeries {
            name: name.to_owned(),
            labels: vec![rpc::Label {
                name: label.to_owned(),
                value: "v".to_owned(),
            }],
            counter: true,
            value,
        }
    }

    fn read(series: Vec<rpc::ScrapedSeries>, trouble: &str) -> Result<ScrapedPod, Refused> {
        let said = rpc::ScrapedPod {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "1-2".to_owned(),
            read_at: 5,
            series,
            trouble: trouble.to_owned(),
        };
        let name = pod_of(&said)?;
        let name = PodName {
            namespace: name.namespace().to_owned(),
            name: name.name().to_owned(),
            uid: name.uid().to_owned(),
        };
        pod(said, Arc::new(name))
    }

    #[test]
    fn names_and_numbers_are_sane_and_few() {
        let said = read(vec![one("a_total", "b", 5.0)], "").expect("sane");
        let series = said.answer.expect("an answer");
        assert_eq!((series.len(), series[0].value), (1, 5.0));
        let long = "x".repeat(NAME_BYTES + 1);
        for wrong in ["", "1a", "a b", "a\n", "\u{e9}", &long] {
            for series in [one(wrong, "b", 1.0), one("a", wrong, 1.0)] {
                let refused = read(vec![series], "").expect_err(wrong).to_string();
                assert!(!refused.contains('\n') && refused.len() < 600, "{refused}");
            }
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            read(vec![one("a", "b", value)], "").expect_err("no number");
        }
        let many = |count: usize| {
            (0..count)
                .map(|at| one(&format!("a{at}"), "b", 1.0))
                .collect()
        };
        assert!(read(many(SERIES), "").is_ok() && read(many(SERIES + 1), "").is_err());
        read(vec![one("a", "b", 1.0), one("a", "b", 2.0)], "").expect_err("twice");
        let mut large = one("a", "b", 1.0);
        large.labels[0].value = "v".repeat(LABEL_BYTES);
        read(vec![large], "").expect_err("large");
        assert!(check_pods(STATUSES).is_ok() && check_pods(STATUSES + 1).is_err());
    }

    #[test]
    fn trouble_is_one_short_line() {
        let said = read(vec![one("a", "b", 1.0)], "no\nanswer").expect("sane");
        assert_eq!(said.answer, Err("no answer".to_owned()));
        assert!(read(Vec::new(), &"x".repeat(TROUBLE_BYTES + 1)).is_err());
    }
}
