//! Times as the API reads and writes them, and ages as tables print them. Instants are nanoseconds since the epoch, which
//! reach from 1677 to 2262; objects may hold any time of the years 0 to 9999, which is only ever text here.

mod rfc3339;

use rfc3339::Instant;

const SECOND: i64 = 1_000_000_000;

/// Go's zero time, where none can be said by leaving it out: metav1.Time.
pub const ZERO: &str = "0001-01-01T00:00:00Z";
/// Go's zero time: metav1.MicroTime.
pub const ZERO_MICRO: &str = "0001-01-01T00:00:00.000000Z";

/// How exactly a type keeps times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// metav1.Time
    Seconds,
    /// metav1.MicroTime
    Micros,
}

/// RFC 3339 in UTC with whole seconds: metav1.Time.
pub fn seconds(nanos: i64) -> String {
    Instant::from_nanos(nanos).write(Precision::Seconds)
}

/// RFC 3339 in UTC with microseconds: metav1.MicroTime.
pub fn micros(nanos: i64) -> String {
    Instant::from_nanos(nanos).write(Precision::Micros)
}

/// Parses RFC 3339; `None` for anything else. What nanoseconds do not reach is as far away as they do.
pub fn parse(text: &str) -> Option<i64> {
    let instant = rfc3339::parse(text, Precision::Seconds).ok()?;
    Some(instant.to_nanos())
}

/// The normal form of a time in an object: UTC, and nothing for Go's zero time. The error is Go's.
pub fn normal(text: &str, precision: Precision) -> Result<Option<String>, String> {
    let instant = rfc3339::parse(text, precision)?.rounded(precision);
    Ok(written(instant, precision))
}

/// A time as seconds since the epoch and nanoseconds beyond them, as protobuf has it.
pub fn to_unix(text: &str) -> Option<(i64, i64)> {
    let instant = rfc3339::parse(text, Precision::Micros)
        .or_else(|_| rfc3339::parse(text, Precision::Seconds));
    instant.ok().map(rfc3339::Instant::to_unix)
}

/// The normal form of a time in seconds since the epoch, and nanoseconds beyond them.
pub fn from_unix(seconds: i64, nanos: i64, precision: Precision) -> Option<String> {
    written(Instant::new(seconds, nanos).rounded(precision), precision)
}

fn written(instant: Instant, precision: Precision) -> Option<String> {
    (!instant.is_zero()).then(|| instant.write(precision))
}

/// How long ago something was, as kubectl prints it: `5s`, `2m30s`, `3h5m`, `4d`; `<unknown>` when it never was.
pub fn age(since: Option<i64>, now: i64) -> String {
    match since {
        Some(since) => duration(now.saturating_sub(since)),
        None => "<unknown>".to_owned(),
    }
}

/// A duration of nanoseconds with at most two units, the larger the coarser.
pub fn duration(nanos: i64) -> String {
    let seconds = nanos.div_euclid(SECOND);
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |large: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => two(years, 'y', days % 365, 'd'),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn times_are_written_and_read() {
        let nanos = parse("2026-01-02T03:04:05.678901Z").expect("a time");
        assert_eq!(seconds(nanos), "2026-01-02T03:04:05Z");
        assert_eq!(micros(nanos), "2026-01-02T03:04:05.678901Z");
        assert_eq!(
            parse("2026-01-02T04:04:05+01:00"),
            parse("2026-01-02T03:04:05Z")
        );
        assert_eq!(parse("yesterday"), None);
        assert_eq!(parse("0001-01-01T00:00:00Z"), Some(i64::MIN));
        assert_eq!(parse("9999-01-01T00:00:00Z"), Some(i64::MAX));
        for nanos in [i64::MIN, -1, 0, i64::MAX] {
            let time = Timestamp::from_nanosecond(i128::from(nanos)).expect("in range");
            assert_eq!(
                micros(nanos),
                time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
            );
        }
    }

    #[test]
    fn the_normal_form_is_in_utc_and_has_any_year() {
        for (text, normal) in [
            (
                "2026-01-02T04:04:05.999999999+01:00",
                "2026-01-02T03:04:05Z",
            ),
            ("1600-02-29T00:00:00Z", "1600-02-29T00:00:00Z"),
            ("2400-02-29T23:59:59-23:59", "2400-03-01T23:58:59Z"),
            ("0001-01-01T00:00:01Z", "0001-01-01T00:00:01Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
            ("2026-01-02T3:04:05,5Z", "2026-01-02T03:04:05Z"),
        ] {
            let found = super::normal(text, Precision::Seconds);
            assert_eq!(found, Ok(Some(normal.to_owned())), "{text}");
            assert!(normal.parse::<Timestamp>().is_ok(), "typed objects hold it");
        }
        assert_eq!(
            normal("2026-01-02T04:04:05.123456+01:00", Precision::Micros),
            Ok(Some("2026-01-02T03:04:05.123456Z".to_owned()))
        );
        // What Go takes for no time at all.
        assert_eq!(normal(ZERO, Precision::Seconds), Ok(None));
        assert_eq!(
            normal("0001-01-01T01:00:00.5+01:00", Precision::Seconds),
            Ok(None)
        );
        assert_eq!(normal(ZERO_MICRO, Precision::Micros), Ok(None));
        assert_eq!(from_unix(-62_135_596_800, 0, Precision::Micros), None);
    }

    #[test]
    fn the_last_hours_before_year_10000_are_held_by_no_type() {
        let last = "9999-12-30T22:00:00Z";
        assert!(last.parse::<Timestamp>().is_ok());
        for text in [last, "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"] {
            let found = normal(text, Precision::Seconds);
            assert_eq!(found, Ok(Some(last.to_owned())), "{text}");
        }
        let first = Some("0000-01-01T00:00:00Z".to_owned());
        assert_eq!(
            normal("0000-01-01T00:00:00+23:00", Precision::Seconds),
            Ok(first.clone())
        );
        assert_eq!(from_unix(i64::MIN, i64::MIN, Precision::Seconds), first);
        assert_eq!(
            from_unix(i64::MAX, i64::MAX, Precision::Seconds).as_deref(),
            Some(last)
        );
    }

    #[test]
    fn refusals_are_gos() {
        let layout = "2006-01-02T15:04:05Z07:00";
        for (text, why) in [
            ("soon", "cannot parse \"soon\" as \"2006\""),
            ("2026", "cannot parse \"\" as \"-\""),
            (
                "2026-1-02T03:04:05Z",
                "cannot parse \"1-02T03:04:05Z\" as \"01\"",
            ),
            (
                "2026-01-02 03:04:05Z",
                "cannot parse \" 03:04:05Z\" as \"T\"",
            ),
            (
                "2026-01-02t03:04:05Z",
                "cannot parse \"t03:04:05Z\" as \"T\"",
            ),
            ("2026-01-02T03:04:05", "cannot parse \"\" as \"Z07:00\""),
            ("2026-01-02T03:04:05z", "cannot parse \"z\" as \"Z07:00\""),
            (
                "2026-01-02T03:04:05+0100",
                "cannot parse \"+0100\" as \"Z07:00\"",
            ),
            ("", "cannot parse \"\" as \"2006\""),
        ] {
            assert_eq!(
                normal(text, Precision::Seconds),
                Err(format!("parsing time \"{text}\" as \"{layout}\": {why}"))
            );
        }
        for (text, why) in [
            ("2026-13-02T03:04:05Z", "month out of range"),
            ("2026-02-29T03:04:05Z", "day out of range"),
            ("2026-02-00T03:04:05Z", "day out of range"),
            ("2026-01-02T24:04:05Z", "hour out of range"),
            ("2026-01-02T03:60:05Z", "minute out of range"),
            ("2026-01-02T03:04:60Z", "second out of range"),
            (
                "2026-01-02T03:04:05+25:00",
                "time zone offset hour out of range",
            ),
            ("2026-01-02T03:04:05Zx", "extra text: \"x\""),
        ] {
            assert_eq!(
                normal(text, Precision::Seconds),
                Err(format!("parsing time \"{text}\": {why}"))
            );
        }
        let layout = "2006-01-02T15:04:05.000000Z07:00";
        for (text, why) in [
            ("2026-01-02T03:04:05Z", "cannot parse \"Z\" as \".000000\""),
            (
                "2026-01-02T03:04:05.123Z",
                "cannot parse \".123Z\" as \".000000\"",
            ),
            (
                "2026-01-02T03:04:05.123456789Z",
                "cannot parse \"789Z\" as \"Z07:00\"",
            ),
        ] {
            assert_eq!(
                normal(text, Precision::Micros),
                Err(format!("parsing time \"{text}\" as \"{layout}\": {why}"))
            );
        }
        let quoted = normal("\"\u{e9}\n", Precision::Seconds).expect_err("no time");
        assert!(
            quoted.starts_with(r#"parsing time "\"\xc3\xa9\x0a" as"#),
            "{quoted}"
        );
    }

    proptest::proptest! {
        #[test]
        fn every_time_is_refused_or_held(text in "[0-9]{4}-[0-9]{2}-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](Z|[+-][0-9]{2}:[0-9]{2})") {
            if let Ok(Some(normal)) = super::normal(&text, Precision::Seconds) {
                proptest::prop_assert!(normal.parse::<Timestamp>().is_ok());
                proptest::prop_assert_eq!(super::normal(&normal, Precision::Seconds), Ok(Some(normal)));
            }
        }

        #[test]
        fn noise_never_panics(text: String) {
            // Whether it can be read does not matter here.
            drop(super::normal(&text, Precision::Micros));
            let _ = parse(&text);
        }
    }

    #[test]
    fn durations_grow_coarser() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(duration(seconds * SECOND), text, "{seconds}");
        }
        assert_eq!(age(None, 0), "<unknown>");
    }
}
