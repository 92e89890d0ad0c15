//! Durations as they are typed: `90s`, `30m`, `24h`, `7d`, `1h30m`; a number alone is seconds.

use std::time::Duration;

/// For clap.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    seconds(text).map(Duration::from_secs).ok_or_else(|| {
        format!("\"{text}\" is no duration: give a number and s, m, h or d, e.g. 24h")
    })
}

fn seconds(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut rest = text;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let number: u64 = number.parse().ok()?;
        let unit = match after.bytes().next() {
            None if digits == text.len() => return Some(number),
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 60 * 60,
            Some(b'd') => 24 * 60 * 60,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = after.get(1..)?;
        if rest.is_empty() {
            return Some(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("3m", 180),
            ("2d", 172_800),
            ("1h30m", 5400),
            ("1m5s", 65),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in [
            "",
            "h",
            "-1h",
            "1w",
            "1.5h",
            "1h30",
            "500ms",
            "1mä",
            "ä",
            "soon",
            "99999999999999999999d",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
