//! The annotation that says which steps a rollout has.

use std::fmt;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::written;
use crate::deployment::policy::duration;
use crate::deployment::sizing::scaled;

/// No rollout has more.
const MOST: usize = 32;
const PAUSE: &str = "pause";
const NO_STEPS: &str = "must be steps SHARE,HOLD with ; between them, such as 10%,30s;50%,pause: a share is 1% to 100% or a number of pods, a hold a duration of at most 24h or pause";
const TOO_MANY: &str = "must have at most 32 steps";

/// How long a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    For(Duration),
    /// Until somebody promotes it.
    ByHand,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// How much of the pods is the new template's.
    share: IntOrString,
    pub(super) hold: Hold,
}

impl Step {
    /// Its share of that many pods: rounded up, and at least one.
    pub(super) fn count(&self, wanted: i32) -> i32 {
        scaled(Some(&self.share), wanted, true).max(1).min(wanted)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.share {
            IntOrString::Int(pods) => write!(formatter, "{pods}")?,
            IntOrString::String(share) => write!(formatter, "{share}")?,
        }
        match self.hold {
            Hold::For(time) => write!(formatter, " for {}", written(time)),
            Hold::ByHand => write!(formatter, " until it is promoted"),
        }
    }
}

/// The steps, or what they must be.
pub(super) fn parse(value: &str) -> Result<Vec<Step>, &'static str> {
    let mut parts = value.split(';');
    let steps = parts.by_ref().take(MOST).map(step);
    let steps = steps.collect::<Option<Vec<_>>>().ok_or(NO_STEPS)?;
    match parts.next() {
        Some(_) => Err(TOO_MANY),
        None => Ok(steps),
    }
}

fn step(text: &str) -> Option<Step> {
    let (share, hold) = text.split_once(',')?;
    let hold = match hold.trim() {
        PAUSE => Hold::ByHand,
        time => Hold::For(duration(time)?),
    };
    let share = share.trim();
    let (digits, is_percent) = match share.strip_suffix('%') {
        Some(digits) => (digits, true),
        None => (share, false),
    };
    // A sign is none of a share's.
    let digits = Some(digits).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let number: i32 = digits.parse().ok().filter(|number| *number > 0)?;
    let share = match is_percent {
        true if number > 100 => return None,
        true => IntOrString::String(format!("{number}%")),
        false => IntOrString::Int(number),
    };
    Some(Step { share, hold })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_a_share_and_a_hold() {
        for (value, expected) in [
            ("10%,30s;50%,1m", "10% for 30s|50% for 1m"),
            (
                " 1 , 0s ; 100% , pause ",
                "1 for 0s|100% until it is promoted",
            ),
            ("3,1m30s", "3 for 1m30s"),
            ("010%,24h", "10% for 24h"),
        ] {
            let steps = parse(value).expect(value);
            let words: Vec<_> = steps.iter().map(Step::to_string).collect();
            assert_eq!(words.join("|"), expected);
        }
        for wrong in [
            "",
            ";",
            "10%",
            "10%,",
            ",30s",
            "0,1s",
            "0%,1s",
            "101%,1s",
            "-1,1s",
            "+1,1s",
            "1.5,1s",
            "10%,-1s",
            "10%,30",
            "10%,25h",
            "10%,1s;",
            "10%%,1s",
            "2147483648,1s",
            "10%,1s,1s",
            "10%,Pause",
            "☃,1s",
        ] {
            assert_eq!(parse(wrong), Err(NO_STEPS), "{wrong:?}");
        }
        let many = |count| vec!["1,1s"; count].join(";");
        assert_eq!(parse(&many(MOST)).map(|steps| steps.len()), Ok(MOST));
        assert_eq!(parse(&many(MOST + 1)), Err(TOO_MANY));
        assert_eq!(parse(&many(100_000)), Err(TOO_MANY));
    }

    #[test]
    fn a_share_is_rounded_up_and_never_none_or_more_than_all() {
        for (share, wanted, expected) in [
            ("10%", 10, 1),
            ("10%", 11, 2),
            ("10%", 1, 1),
            ("1%", 3, 1),
            ("50%", 5, 3),
            ("100%", 7, 7),
            ("2", 10, 2),
            ("20", 10, 10),
            ("10%", 0, 0),
            ("100%", i32::MAX, i32::MAX),
        ] {
            let steps = parse(&format!("{share},1s")).expect("a step");
            assert_eq!(steps[0].count(wanted), expected, "{share} of {wanted}");
        }
    }
}
