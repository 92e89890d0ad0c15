//! What load is asked for.

use std::time::Duration;

use crate::target::Target;

/// Percent: with more, a second could be without any request.
const MOST_NOISE: u32 = 90;

/// Whether requests share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A connection, and a look-up of the name, per request.
    New,
    /// Each connection serves until its end.
    KeepAlive,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::KeepAlive => "keep-alive",
        }
    }
}

/// A load to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    /// Requests per second.
    pub(crate) rate: u32,
    /// Percent by which the rate of each second is higher or lower at random, the same every time.
    pub(crate) noise: u32,
    /// Kept-alive connections while answers are in time; more are made when all of them wait.
    pub(crate) connections: usize,
    /// `None` for until told to stop.
    pub(crate) duration: Option<Duration>,
    /// A request that takes longer has failed.
    pub(crate) timeout: Duration,
    /// How many failures to tell in full.
    pub(crate) messages: usize,
}

impl Options {
    /// From the arguments after `load`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let (url, options) = arguments.split_first().ok_or("a URL is missing")?;
        let mut parsed = Self {
            target: Target::parse(url)?,
            mode: Mode::New,
            rate: 100,
            noise: 0,
            connections: 10,
            duration: None,
            timeout: Duration::from_secs(5),
            messages: 20,
        };
        let mut options = options.iter();
        while let Some(name) = options.next() {
            let value = options
                .next()
                .ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--rate" => parsed.rate = number(name, value, 1)?,
                "--noise" => {
                    parsed.noise = number(name, value, 0)?;
                    if parsed.noise > MOST_NOISE {
                        return Err(format!("{name} is at most {MOST_NOISE}, not {value:?}"));
                    }
                }
                "--connections" => parsed.connections = number(name, value, 1)? as usize,
                "--seconds" => {
                    parsed.duration = Some(Duration::from_secs(number(name, value, 1)?.into()));
                }
                "--timeout-ms" => {
                    parsed.timeout = Duration::from_millis(number(name, value, 1)?.into());
                }
                "--messages" => parsed.messages = number(name, value, 0)? as usize,
                "--mode" => {
                    parsed.mode = [Mode::New, Mode::KeepAlive]
                        .into_iter()
                        .find(|mode| mode.name() == value)
                        .ok_or_else(|| format!("--mode is new or keep-alive, not {value:?}"))?;
                }
                _ => return Err(format!("{name:?} is no option of load")),
            }
        }
        Ok(parsed)
    }

    /// Between a request that is due so long after the begin and the next.
    pub(crate) fn pause(&self, after: Duration) -> Duration {
        let percent = 100 + scattered(after.as_secs(), i64::from(self.noise));
        let percent = u64::try_from(percent).unwrap_or(1);
        // Rounded up: so many seconds have no request more than they should.
        let nanos = 100_000_000_000_u64.div_ceil(u64::from(self.rate) * percent);
        Duration::from_nanos(nanos)
    }
}

/// A number from `-swing` to `swing` for each second, as if by chance (the finalizer of SplitMix64).
fn scattered(second: u64, swing: i64) -> i64 {
    let mut mixed = second.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let of = u64::try_from(2 * swing + 1).unwrap_or(1);
    i64::try_from((mixed ^ (mixed >> 31)) % of).unwrap_or_default() - swing
}

fn number(name: &str, value: &str, least: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|number| *number >= least)
        .ok_or_else(|| format!("{name} is a whole number from {least}, not {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults_and_limits() {
        let parse = |text: &str| {
            let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Options::parse(&arguments)
        };
        let usual = parse("http://web").expect("a URL is enough");
        assert_eq!(
            (usual.rate, usual.mode, usual.duration),
            (100, Mode::New, None)
        );
        let asked = parse(
            "http://web --rate 500 --mode keep-alive --connections 3 --seconds 2 --timeout-ms 70 --messages 0",
        )
        .expect("every option is known");
        assert_eq!(
            asked,
            Options {
                mode: Mode::KeepAlive,
                rate: 500,
                connections: 3,
                duration: Some(Duration::from_secs(2)),
                timeout: Duration::from_millis(70),
                messages: 0,
                ..usual
            }
        );
        for (text, complaint) in [
            ("", "URL is missing"),
            ("http://web --rate", "--rate needs a value"),
            ("http://web --rate 0", "--rate is a whole number from 1"),
            ("http://web --noise 91", "--noise is at most 90"),
            ("http://web --seconds soon", "--seconds is a whole number"),
            ("http://web --mode slow", "new or keep-alive"),
            ("http://web --fast 1", "no option of load"),
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains(complaint), "{text}: {said}");
        }
    }

    #[test]
    fn noise_changes_the_rate_of_each_second_and_not_that_of_all() {
        let asked = |noise: u32| {
            let text = ["http://web", "--rate", "100", "--noise", &noise.to_string()];
            Options::parse(&text.map(str::to_owned)).expect("known options")
        };
        let steady = asked(0);
        assert_eq!(
            steady.pause(Duration::from_secs(7)),
            Duration::from_millis(10)
        );
        let noisy = asked(20);
        let pauses = (0..1000).map(|second| noisy.pause(Duration::from_secs(second)));
        let rates: Vec<f64> = pauses.map(|pause| 1.0 / pause.as_secs_f64()).collect();
        assert!(rates.iter().all(|rate| (79.9..120.1).contains(rate)));
        assert!(rates.iter().any(|rate| *rate < 85.0));
        assert!(rates.iter().any(|rate| *rate > 115.0));
        let mean = rates.iter().sum::<f64>() / 1000.0;
        assert!((98.0..102.0).contains(&mean), "{mean}");
    }
}
