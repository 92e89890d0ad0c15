//! What load is asked for.

use std::time::Duration;

use crate::target::Target;

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
            ("http://web --seconds soon", "--seconds is a whole number"),
            ("http://web --mode slow", "new or keep-alive"),
            ("http://web --fast 1", "no option of load"),
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains(complaint), "{text}: {said}");
        }
    }
}
