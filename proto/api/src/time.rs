//! Times as the API writes them, and ages as tables print them. Instants are nanoseconds since the epoch.

use jiff::Timestamp;

const SECOND: i64 = 1_000_000_000;

/// RFC 3339 in UTC with whole seconds: metav1.Time.
pub fn seconds(nanos: i64) -> String {
    format(nanos, "%Y-%m-%dT%H:%M:%SZ")
}

/// RFC 3339 in UTC with microseconds: metav1.MicroTime.
pub fn micros(nanos: i64) -> String {
    format(nanos, "%Y-%m-%dT%H:%M:%S%.6fZ")
}

fn format(nanos: i64, pattern: &str) -> String {
    // Every i64 of nanoseconds is within jiff's range.
    Timestamp::from_nanosecond(i128::from(nanos))
        .map(|time| time.strftime(pattern).to_string())
        .unwrap_or_default()
}

/// Parses RFC 3339; `None` for anything else.
pub fn parse(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
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
