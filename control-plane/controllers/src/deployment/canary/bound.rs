//! The annotation that says which metric of the new pods must hold.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use gantry_api::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;

use crate::deployment::evidence::shown;
use crate::figures::PodValue;
use crate::pods::is_active;

pub(super) const NO_BOUND: &str = "must be a metric of pods, one of <, <=, > and >=, and an amount, such as errors_per_second<0.5";
/// What a metric's name may have, in bytes.
const LONGEST_NAME: usize = 253;
/// Longest first: the shorter ones begin them.
const SIGNS: [(&str, &[Ordering]); 4] = [
    ("<=", &[Ordering::Less, Ordering::Equal]),
    (">=", &[Ordering::Greater, Ordering::Equal]),
    ("<", &[Ordering::Less]),
    (">", &[Ordering::Greater]),
];

/// What must hold of the average of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The metric.
    pub(crate) name: String,
    sign: &'static str,
    /// How the average may be to the amount.
    allowed: &'static [Ordering],
    amount: Quantity,
}

/// What the figures come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Holds,
    /// It does not hold; in words.
    Broken(String),
    /// Nobody can tell, and why.
    Unknown(String),
}

impl Bound {
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (name, rest) = value.split_at(value.find(['<', '>'])?);
        let name = name.trim();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_:.-".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_name) {
            return None;
        }
        let (sign, allowed) = SIGNS.into_iter().find(|(sign, _)| rest.starts_with(sign))?;
        let amount = rest.strip_prefix(sign)?.trim().parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            sign,
            allowed,
            amount,
        })
    }

    /// Whether it holds of these pods, on average. It can be broken by some of them; but it holds only if all are known.
    pub(super) fn judge(
        &self,
        pods: &[Arc<Pod>],
        figures: &Result<Vec<PodValue>, String>,
    ) -> Figure {
        let values = match figures {
            Ok(values) => values,
            Err(why) => return Figure::Unknown(shown(why)),
        };
        let by_name: HashMap<&str, i64> = values
            .iter()
            .map(|value| (value.pod.as_str(), value.millis))
            .collect();
        let names = pods.iter().filter(|pod| is_active(pod));
        let names: Vec<&str> = names
            .filter_map(|pod| pod.metadata.name.as_deref())
            .collect();
        let known = names.iter().filter_map(|name| by_name.get(name));
        let known: Vec<i128> = known.map(|millis| i128::from(*millis)).collect();
        let count = i128::try_from(known.len()).unwrap_or(i128::MAX);
        let sum: i128 = known.iter().sum();
        let nanos = sum.saturating_mul(1_000_000);
        let order = nanos.cmp(&self.amount.nanos().saturating_mul(count));
        if count > 0 && !self.allowed.contains(&order) {
            let average = i64::try_from(sum.div_euclid(count)).unwrap_or(i64::MAX);
            return Figure::Broken(format!(
                "the average of {} over {count} of its pods is {}, not {}{}",
                self.name,
                Quantity::from_millis(average),
                self.sign,
                self.amount
            ));
        }
        match names.len().saturating_sub(known.len()) {
            0 if count > 0 => Figure::Holds,
            missing => Figure::Unknown(format!("{missing} of {} pods have none", names.len())),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}{}", self.name, self.sign, self.amount)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn pods(count: usize) -> Vec<Arc<Pod>> {
        let pod = |at: usize| {
            let pod =
                json!({"metadata": {"name": format!("p{at}")}, "status": {"phase": "Running"}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        (0..count).map(pod).collect()
    }

    fn values(millis: &[i64]) -> Result<Vec<PodValue>, String> {
        let values = millis.iter().enumerate().map(|(at, millis)| PodValue {
            pod: format!("p{at}"),
            millis: *millis,
            at: Timestamp::UNIX_EPOCH,
            window: Duration::ZERO,
        });
        Ok(values.collect())
    }

    #[test]
    fn a_bound_is_a_metric_a_sign_and_an_amount() {
        for (value, expected) in [
            ("errors<5", "errors<5"),
            (" http:errors.rate-1m <= 0.5 ", "http:errors.rate-1m<=500m"),
            ("free>1Gi", "free>1Gi"),
            ("score>=-3", "score>=-3"),
        ] {
            let bound = Bound::parse(value).expect(value);
            assert_eq!(bound.to_string(), expected);
        }
        let long = format!("{}<1", "x".repeat(LONGEST_NAME + 1));
        for wrong in [
            "",
            "errors",
            "<5",
            "errors<",
            "errors=5",
            "errors<many",
            "a b<5",
            "a/b<5",
            "errors<5<6",
            "errors=<5",
            "é<1",
            &long,
        ] {
            assert_eq!(Bound::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_average_of_the_new_pods_is_held_against_it() {
        for (bound, millis, holds) in [
            ("m<5", &[4000, 5999][..], true),
            ("m<5", &[4000, 6000], false),
            ("m<=5", &[4000, 6000], true),
            ("m>5", &[5000, 5001], true),
            ("m>5", &[5000, 5000], false),
            ("m>=5", &[5000, 5000], true),
            ("m>=5", &[-5000, 5000], false),
            ("m<0.0005", &[0], true),
            // Of others than the step's pods nothing is asked.
            ("m<5", &[1000, 1000, 9_000_000], true),
            ("m<5", &[i64::MAX, i64::MAX], false),
        ] {
            let bound = Bound::parse(bound).expect("a bound");
            let figure = bound.judge(&pods(millis.len().min(2)), &values(millis));
            assert_eq!(
                figure == Figure::Holds,
                holds,
                "{bound} {millis:?} {figure:?}"
            );
        }
        let bound = Bound::parse("m<5").expect("a bound");
        assert_eq!(
            bound.judge(&pods(2), &values(&[4000, 20_001])),
            Figure::Broken("the average of m over 2 of its pods is 12, not <5".to_owned())
        );
    }

    #[test]
    fn it_holds_only_of_pods_that_are_all_known() {
        let bound = Bound::parse("m<5").expect("a bound");
        let unknown = |words: &str| Figure::Unknown(words.to_owned());
        assert_eq!(
            bound.judge(&pods(2), &values(&[1000])),
            unknown("1 of 2 pods have none")
        );
        assert_eq!(
            bound.judge(&pods(0), &values(&[1000])),
            unknown("0 of 0 pods have none")
        );
        assert!(matches!(
            bound.judge(&pods(2), &values(&[9000])),
            Figure::Broken(_)
        ));
        let why = Err(format!("not\nserved{}", "!".repeat(10_000)));
        let Figure::Unknown(words) = bound.judge(&pods(1), &why) else {
            panic!("nothing is known");
        };
        assert!(words.starts_with("not served!") && words.len() < 500);
    }
}
