//! External metrics, as autoscalers ask for them.

use std::time::Duration;

use gantry_controllers::figures::{FiguresError, Metric};
use gantry_external::External;

use super::selector;
use crate::external::millis;

/// An autoscaler waits no longer for a first answer: it is looked at again when that has come.
const WAIT: Duration = Duration::from_millis(250);

/// The series that are selected, in thousandths.
pub(super) async fn values(
    external: &External,
    metric: Metric<'_>,
) -> Result<Vec<i64>, FiguresError> {
    let answered = external.get(metric.namespace, metric.name, WAIT).await;
    let answered = answered.map_err(|why| FiguresError(why.to_string()))?;
    let (series, selector) = (answered.series.iter(), selector(&metric));
    let selected = series.filter(|series| selector.matches_map(Some(&series.labels)));
    Ok(selected.map(|series| millis(series.value)).collect())
}
