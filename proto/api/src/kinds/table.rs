//! [`Printer`]: a kind's objects as rows of a table; and the cells and columns that many kinds share.

use std::sync::OnceLock;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::kind::Column;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// Writes the cells of some columns to the end of a row. The time is nanoseconds since the epoch.
type Cells<T> = Box<dyn Fn(&T, i64, &mut Vec<Value>) + Send + Sync>;

/// What tables show of a kind's objects: columns, each with what is in its cells. `T` is the type of the objects.
pub struct Printer<T> {
    columns: Vec<Column>,
    cells: Vec<Cells<T>>,
}

impl<T: Metadata<Ty = ObjectMeta> + 'static> Printer<T> {
    /// One whose first column is the name.
    pub fn named() -> Self {
        Self::of([name_column()], |object, _| [name_cell(object.metadata())])
    }

    /// One that begins with these columns; see [`Self::columns`].
    pub fn of<const N: usize>(
        columns: [Column; N],
        cells: impl Fn(&T, i64) -> [Value; N] + Send + Sync + 'static,
    ) -> Self {
        let printer = Self {
            columns: Vec::new(),
            cells: Vec::new(),
        };
        printer.columns(columns, cells)
    }

    /// One more column.
    pub fn column(
        self,
        column: Column,
        cell: impl Fn(&T) -> Value + Send + Sync + 'static,
    ) -> Self {
        self.columns([column], move |object, _| [cell(object)])
    }

    /// More columns, whose cells are made together. What makes them is told the time, in nanoseconds since the epoch.
    pub fn columns<const N: usize>(
        mut self,
        columns: [Column; N],
        cells: impl Fn(&T, i64) -> [Value; N] + Send + Sync + 'static,
    ) -> Self {
        self.columns.extend(columns);
        self.cells.push(Box::new(
            move |object: &T, now: i64, row: &mut Vec<Value>| {
                row.extend(cells(object, now));
            },
        ));
        self
    }

    /// The time since creation, as one more column.
    pub fn age(self) -> Self {
        self.columns([age_column()], |object, now| {
            [age_cell(object.metadata(), now)]
        })
    }

    /// The same table of objects of another version of the kind, which are converted for it.
    pub fn through<U: 'static>(
        self,
        convert: impl Fn(&U) -> T + Send + Sync + 'static,
    ) -> Printer<U> {
        let columns = self.columns.clone();
        let cells: Cells<U> = Box::new(move |object: &U, now: i64, row: &mut Vec<Value>| {
            row.extend(self.row(&convert(object), now));
        });
        Printer {
            columns,
            cells: vec![cells],
        }
    }
}

impl<T> Printer<T> {
    /// The columns.
    pub fn header(&self) -> &[Column] {
        &self.columns
    }

    /// The cells of an object, one for each column. `now` is nanoseconds since the epoch.
    pub fn row(&self, object: &T, now: i64) -> Vec<Value> {
        let mut row = Vec::with_capacity(self.columns.len());
        for cells in &self.cells {
            cells(object, now, &mut row);
        }
        row
    }
}

/// A table of names and of when they were given.
pub(super) fn created_at<T: Metadata<Ty = ObjectMeta> + 'static>() -> Printer<T> {
    let created = field_doc::<ObjectMeta>("creationTimestamp");
    Printer::<T>::named().column(column("Created At", "date", created, 0), |object| {
        let created = object.metadata().creation_timestamp.as_ref();
        let created = created.map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        json!(created.unwrap_or_default())
    })
}

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
    description: impl Into<String>,
    priority: i32,
) -> Column {
    Column {
        name: name.into(),
        kind: kind.into(),
        format: "".into(),
        description: description.into(),
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
    fn every_column_has_its_cell_and_another_version_has_the_same_table() {
        use k8s_openapi::api::core::v1::{ConfigMap, Secret};

        let printer = || {
            let kept = column("Kept", "boolean", "Whether it stays", 1);
            Printer::<ConfigMap>::named()
                .column(kept, |object| json!(object.immutable))
                .age()
        };
        let named = ObjectMeta {
            name: Some("a".to_owned()),
            ..ObjectMeta::default()
        };
        let map = ConfigMap {
            metadata: named.clone(),
            immutable: Some(true),
            ..ConfigMap::default()
        };
        let expected = [json!("a"), json!(true), json!("<unknown>")];
        assert_eq!(printer().row(&map, 0), expected);
        let names: Vec<_> = printer()
            .header()
            .iter()
            .map(|one| one.name.clone())
            .collect();
        assert_eq!(names, ["Name", "Kept", "Age"]);
        let other = printer().through(|secret: &Secret| ConfigMap {
            metadata: secret.metadata.clone(),
            immutable: secret.immutable,
            ..ConfigMap::default()
        });
        let secret = Secret {
            metadata: named,
            immutable: Some(true),
            ..Secret::default()
        };
        assert_eq!(other.row(&secret, 0), expected);
        assert_eq!(other.header(), printer().header());
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
