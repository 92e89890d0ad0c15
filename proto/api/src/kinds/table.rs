//! Cells and columns that many kinds' tables share.

use std::sync::OnceLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;
use serde_json::Value;

use crate::kind::Column;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// The documentation of a type's field, from the type's own schema; empty when there is none.
pub fn field_doc<T: JsonSchema>(field: &str) -> String {
    let schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
    schema
        .as_value()
        .pointer(&format!("/properties/{field}/description"))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// The column every table begins with.
pub fn name_column() -> Column {
    static DOC: OnceLock<String> = OnceLock::new();
    Column {
        name: "Name".into(),
        kind: "string".into(),
        format: "name".into(),
        description: DOC.get_or_init(|| field_doc::<ObjectMeta>("name")).clone(),
        priority: 0,
    }
}

/// The time since creation.
pub fn age_column() -> Column {
    static DOC: OnceLock<String> = OnceLock::new();
    let description = DOC
        .get_or_init(|| field_doc::<ObjectMeta>("creationTimestamp"))
        .clone();
    column("Age", "string", description, 0)
}

/// Any other column.
pub fn column(
    name: &'static str,
    kind: &'static str,
    description: String,
    priority: i32,
) -> Column {
    Column {
        name: name.into(),
        kind: kind.into(),
        format: "".into(),
        description,
        priority,
    }
}

/// The object's name as a cell.
pub fn name_cell(metadata: &ObjectMeta) -> Value {
    Value::from(metadata.name.clone().unwrap_or_default())
}

/// The object's age as a cell. `now` is nanoseconds since the epoch.
pub fn age_cell(metadata: &ObjectMeta, now: i64) -> Value {
    Value::from(since(metadata.creation_timestamp.as_ref(), now))
}

/// `<none>` for an empty cell.
pub fn or_none(text: String) -> String {
    match text.is_empty() {
        true => "<none>".to_owned(),
        false => text,
    }
}

/// How many items of a list a cell shows.
pub(super) const SHOWN: usize = 3;

/// The first few of `total` items, as many as [`SHOWN`] or fewer; `none` when there are none.
pub(super) fn few(first: &[impl AsRef<str>], total: usize, none: &str) -> String {
    let shown = first.iter().take(SHOWN).map(AsRef::as_ref);
    let shown = shown.collect::<Vec<&str>>().join(",");
    match total {
        0 => none.to_owned(),
        1..=SHOWN => shown,
        more => format!("{shown} + {} more...", more - SHOWN),
    }
}

/// The time that passed since `then`, or `<unknown>`.
pub fn since(then: Option<&Time>, now: i64) -> String {
    let Some(then) = then else {
        return "<unknown>".to_owned();
    };
    // Go's durations reach no further than 292 years.
    let nanos = i128::from(now) - then.0.as_nanosecond();
    let nanos = nanos.clamp(i64::MIN.into(), i64::MAX.into());
    human_duration(i64::try_from(nanos / NANOS_PER_SECOND).unwrap_or(i64::MAX))
}

/// A duration with two or three significant figures, in kubectl's style: `119s`, `2m5s`, `3h`, `2d1h`, `3y5d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let years = days / 365;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2_920 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit}{small}{small_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_the_figures_that_matter() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (86_400 * 731, "2y1d"),
            (86_400 * 2_920, "8y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_cell_shows_the_first_few() {
        let items = ["a", "b", "c", "d", "e"];
        assert_eq!(few(&items[..0], 0, "<unset>"), "<unset>");
        assert_eq!(few(&items[..2], 2, "<unset>"), "a,b");
        assert_eq!(few(&items[..3], 3, "<unset>"), "a,b,c");
        assert_eq!(few(&items[..3], 5, "<unset>"), "a,b,c + 2 more...");
        assert_eq!(few(&items, 5, "<unset>"), "a,b,c + 2 more...");
    }

    #[test]
    fn the_shared_columns_carry_the_documentation_of_their_fields() {
        assert!(name_column().description.starts_with("Name must be unique"));
        assert!(age_column().description.starts_with("CreationTimestamp is"));
    }
}
