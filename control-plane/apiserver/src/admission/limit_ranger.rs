//! LimitRanger: the LimitRanges of a namespace, kept by its pods. Containers that ask for nothing get what these say, and pods
//! that ask for more, or for less, than is allowed are refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_api::field::aggregate;
use gantry_api::kind::Draft;
use gantry_api::kinds::limit_range::{CONTAINER, MAX_IN_MILLIS, POD};
use gantry_api::kinds::pod_spec;
use gantry_api::quantity::Quantity;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::{Container, LimitRange, LimitRangeItem, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::plugin::{Attributes, Plugin, shown_name};
use super::view::View;
use crate::tables::table;

/// Says what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Violations that are looked for: enough for who mends them, and a bound of what they cost.
const MOST: usize = 1_000;

/// Amounts that the ranges of a namespace may add to a pod: every container gets every one, and more would be larger than an
/// object may be.
const MOST_FILLED: usize = 100_000;

type Amounts = BTreeMap<String, ApiQuantity>;
type Parsed<'a> = BTreeMap<&'a str, Quantity>;

pub(super) struct LimitRanger {
    ranges: View<LimitRange>,
}

impl Default for LimitRanger {
    fn default() -> Self {
        Self {
            ranges: View::new(table("", "limitranges"), |_| true),
        }
    }
}

impl LimitRanger {
    /// The ranges of the pod's namespace; none for a pod that ends.
    fn ranges(&self, attributes: &Attributes<'_>, draft: &dyn Draft) -> Vec<Arc<LimitRange>> {
        let old = draft.old_metadata();
        if old.is_some_and(|old| old.deletion_timestamp.is_some()) {
            return Vec::new();
        }
        let context = attributes.context;
        let namespace = context.namespace().unwrap_or_default();
        self.ranges.of(&context.api.store, namespace)
    }
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("", "Pod") || attributes.resizes_pod()
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let ranges = self.ranges(attributes, draft);
        let Some(pod) = draft.typed_mut::<Pod>() else {
            return Ok(());
        };
        let filled: usize = ranges.iter().map(|range| fills(range, pod)).sum();
        if filled > MOST_FILLED {
            let name = shown_name(&pod.metadata);
            let why = format!(
                "the limit ranges of its namespace could add {filled} amounts to it: at most {MOST_FILLED} are allowed"
            );
            return Err(StatusError::forbidden(attributes.info(), name, &why));
        }
        for range in &ranges {
            fill(range, pod);
        }
        Ok(())
    }

    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let Some(pod) = draft.typed::<Pod>() else {
            return Ok(Vec::new());
        };
        for range in self.ranges(attributes, draft) {
            let broken = broken(&range, pod);
            if broken.is_empty() {
                continue;
            }
            let why = aggregate(&broken);
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(StatusError::forbidden(attributes.info(), name, &why));
        }
        Ok(Vec::new())
    }
}

fn items<'a>(range: &'a LimitRange, about: &'a str) -> impl Iterator<Item = &'a LimitRangeItem> {
    let items = range.spec.iter().flat_map(|spec| &spec.limits);
    items.filter(move |item| item.type_ == about)
}

/// How many amounts a range adds to a pod at most.
fn fills(range: &LimitRange, pod: &Pod) -> usize {
    let length = |amounts: &Option<Amounts>| amounts.as_ref().map_or(0, BTreeMap::len);
    let items = items(range, CONTAINER);
    let amounts = items.map(|item| length(&item.default_request) + length(&item.default));
    let containers = pod.spec.as_ref().map_or(0, |spec| {
        spec.containers.len() + spec.init_containers.iter().flatten().count()
    });
    amounts.sum::<usize>().saturating_mul(containers)
}

/// Gives the containers what they do not say themselves, and the pod a note of it.
fn fill(range: &LimitRange, pod: &mut Pod) {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for item in items(range, CONTAINER) {
        requests.extend(item.default_request.clone().unwrap_or_default());
        limits.extend(item.default.clone().unwrap_or_default());
    }
    let Some(spec) = &mut pod.spec else {
        return;
    };
    let containers = spec.containers.iter_mut().map(|one| (one, "container"));
    let inits = spec.init_containers.iter_mut().flatten();
    let inits = inits.map(|one| (one, "init container"));
    let mut notes = Vec::new();
    for (container, what) in containers.chain(inits) {
        let name = container.name.clone();
        let resources = container.resources.get_or_insert_default();
        for (own, defaults, kind) in [
            (&mut resources.requests, &requests, "request"),
            (&mut resources.limits, &limits, "limit"),
        ] {
            let filled = complete(own, defaults);
            if !filled.is_empty() {
                notes.push(format!("{} {kind} for {what} {name}", filled.join(", ")));
            }
        }
    }
    if !notes.is_empty() {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        annotations.insert(ANNOTATION.to_owned(), note);
    }
}

/// Adds what is missing, and returns what it was.
fn complete<'a>(own: &mut Option<Amounts>, defaults: &'a Amounts) -> Vec<&'a str> {
    let mut filled = Vec::new();
    for (resource, amount) in defaults {
        let own = own.get_or_insert_default();
        if !own.contains_key(resource) {
            own.insert(resource.clone(), amount.clone());
            filled.push(resource.as_str());
        }
    }
    filled
}

fn parsed(amounts: Option<&Amounts>) -> Parsed<'_> {
    let amounts = amounts.into_iter().flatten();
    amounts
        .filter_map(|(resource, amount)| Some((resource.as_str(), amount.0.parse().ok()?)))
        .collect()
}

/// What a container, or a pod, asks for.
struct Asked<'a> {
    requests: Parsed<'a>,
    limits: Parsed<'a>,
}

impl<'a> Asked<'a> {
    fn by(container: &'a Container) -> Self {
        let resources = container.resources.as_ref();
        Self {
            requests: parsed(resources.and_then(|resources| resources.requests.as_ref())),
            limits: parsed(resources.and_then(|resources| resources.limits.as_ref())),
        }
    }

    /// Adds what of an item is not kept, up to [`MOST`].
    fn judge(&self, item: &Item<'_>, broken: &mut Vec<String>) {
        for (bounds, judge) in &item.bounds {
            for (&resource, &enforced) in bounds {
                if broken.len() >= MOST {
                    return;
                }
                let bound = Bound {
                    resource,
                    per: item.per,
                    enforced,
                    request: self.requests.get(resource).copied(),
                    limit: self.limits.get(resource).copied(),
                };
                broken.extend(judge(&bound));
            }
        }
    }
}

/// Says what is wrong with what is asked for of a resource.
type Judge = fn(&Bound<'_>) -> Option<String>;

/// What a range says of containers or of pods.
struct Item<'a> {
    per: &'a str,
    bounds: [(Parsed<'a>, Judge); 3],
}

impl<'a> Item<'a> {
    fn of(item: &'a LimitRangeItem) -> Self {
        Self {
            per: &item.type_,
            bounds: [
                (parsed(item.min.as_ref()), too_little),
                (parsed(item.max.as_ref()), too_much),
                (parsed(item.max_limit_request_ratio.as_ref()), too_far_apart),
            ],
        }
    }
}

/// What of a range a pod does not keep; everything once.
fn broken(range: &LimitRange, pod: &Pod) -> Vec<String> {
    let mut broken = Vec::new();
    let Some(spec) = &pod.spec else {
        return broken;
    };
    for item in range.spec.iter().flat_map(|spec| &spec.limits) {
        if item.type_ == CONTAINER {
            let inits = spec.init_containers.iter().flatten();
            let item = Item::of(item);
            for container in spec.containers.iter().chain(inits) {
                Asked::by(container).judge(&item, &mut broken);
            }
        } else if item.type_ == POD {
            let asked = Asked {
                requests: pod_spec::requests_at_once(spec),
                limits: pod_spec::limits_at_once(spec),
            };
            asked.judge(&Item::of(item), &mut broken);
        }
    }
    let mut once: Vec<String> = Vec::new();
    for why in broken {
        if !once.contains(&why) {
            once.push(why);
        }
    }
    once
}

/// One amount of a range, and what is asked for of the same resource.
struct Bound<'a> {
    resource: &'a str,
    /// A container or a pod.
    per: &'a str,
    enforced: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
}

impl Bound<'_> {
    /// Request, limit and bound as numbers that can be compared: thousandths, or units of what is too large for them.
    fn counted(&self) -> (i64, i64, i64) {
        let request = self.request.unwrap_or_default();
        let limit = self.limit.unwrap_or_default();
        let all = [request, limit, self.enforced];
        let fine = all.iter().all(|amount| amount.units() <= MAX_IN_MILLIS);
        let [request, limit, enforced] = match fine {
            true => all.map(|amount| amount.millis()),
            false => all.map(|amount| amount.units()),
        };
        (request, limit, enforced)
    }
}

/// Whether less is asked for than must be.
fn too_little(bound: &Bound<'_>) -> Option<String> {
    let (request, limit, enforced) = bound.counted();
    let minimum = format!(
        "minimum {} usage per {} is {}",
        bound.resource, bound.per, bound.enforced
    );
    match (bound.request, bound.limit) {
        (None, _) => Some(format!("{minimum}.  No request is specified")),
        (Some(asked), _) if request < enforced => {
            Some(format!("{minimum}, but request is {asked}"))
        }
        (_, Some(asked)) if limit < enforced => Some(format!("{minimum}, but limit is {asked}")),
        _ => None,
    }
}

/// Whether more is asked for than may be.
fn too_much(bound: &Bound<'_>) -> Option<String> {
    let (request, limit, enforced) = bound.counted();
    let maximum = format!(
        "maximum {} usage per {} is {}",
        bound.resource, bound.per, bound.enforced
    );
    match (bound.limit, bound.request) {
        (None, _) => Some(format!("{maximum}.  No limit is specified")),
        (Some(asked), _) if limit > enforced => Some(format!("{maximum}, but limit is {asked}")),
        (_, Some(asked)) if request > enforced => {
            Some(format!("{maximum}, but request is {asked}"))
        }
        _ => None,
    }
}

/// Whether the limit is too far above the request.
fn too_far_apart(bound: &Bound<'_>) -> Option<String> {
    let (request, limit, _) = bound.counted();
    let most = format!(
        "{} max limit to request ratio per {} is {}, but",
        bound.resource, bound.per, bound.enforced
    );
    if request == 0 {
        return Some(format!("{most} no request is specified or request is 0"));
    }
    if limit == 0 {
        return Some(format!("{most} no limit is specified or limit is 0"));
    }
    let found = limit as f64 / request as f64;
    let exceeds = match bound.enforced.units() <= MAX_IN_MILLIS {
        true => found * 1_000.0 > bound.enforced.millis() as f64,
        false => found > bound.enforced.units() as f64,
    };
    exceeds.then(|| format!("{most} provided ratio is {found:.6}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(item: Value) -> LimitRange {
        serde_json::from_value(json!({"spec": {"limits": [item]}})).expect("a range")
    }

    /// A pod whose containers have these resources.
    fn pod(resources: &[Value]) -> Pod {
        let containers = resources.iter().enumerate();
        let containers: Vec<Value> = containers
            .map(|(at, resources)| json!({"name": format!("c{at}"), "resources": resources}))
            .collect();
        serde_json::from_value(json!({"spec": {"containers": containers}})).expect("a pod")
    }

    #[test]
    fn containers_get_what_they_do_not_say_and_the_pod_says_which() {
        let range = range(json!({
            "type": "Container", "default": {"cpu": "500m", "memory": "256Mi"},
            "defaultRequest": {"cpu": "100m", "memory": "256Mi"}
        }));
        let mut filled = pod(&[
            json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "200m"}}),
            json!({}),
        ]);
        fill(&range, &mut filled);
        assert_eq!(fills(&range, &filled), 8);
        let resources = json!(filled.spec.as_ref().map(|spec| &spec.containers));
        assert_eq!(
            resources[0]["resources"]["limits"],
            json!({"cpu": "200m", "memory": "256Mi"})
        );
        assert_eq!(
            resources[1]["resources"]["requests"],
            json!({"cpu": "100m", "memory": "256Mi"})
        );
        let note = "LimitRanger plugin set: memory request for container c0; memory limit for container c0; \
            cpu, memory request for container c1; cpu, memory limit for container c1";
        let annotations = filled.metadata.annotations.clone().unwrap_or_default();
        assert_eq!(annotations.get(ANNOTATION).map(String::as_str), Some(note));
        let before = filled.clone();
        fill(&range, &mut filled);
        assert_eq!(filled, before, "asked again, nothing is left to fill");
    }

    #[test]
    fn what_is_too_little_too_much_or_too_far_apart_is_told() {
        let container = range(json!({
            "type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "1"},
            "maxLimitRequestRatio": {"cpu": "10"}
        }));
        let told = |range: &LimitRange, resources: Value| broken(range, &pod(&[resources]));
        let little = json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "500m"}});
        let expected = [
            "minimum cpu usage per Container is 50m, but request is 10m",
            "cpu max limit to request ratio per Container is 10, but provided ratio is 50.000000",
        ];
        assert_eq!(told(&container, little), expected);
        let much = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "2"}});
        let expected = ["maximum cpu usage per Container is 1, but limit is 2"];
        assert_eq!(told(&container, much), expected);
        let expected = [
            "minimum cpu usage per Container is 50m.  No request is specified",
            "maximum cpu usage per Container is 1.  No limit is specified",
            "cpu max limit to request ratio per Container is 10, but no request is specified or request is 0",
        ];
        assert_eq!(told(&container, json!({})), expected);
        let whole = range(json!({"type": "Pod", "max": {"cpu": "1"}}));
        let half = || json!({"requests": {"cpu": "600m"}, "limits": {"cpu": "600m"}});
        assert!(broken(&whole, &pod(&[half()])).is_empty());
        let expected = ["maximum cpu usage per Pod is 1, but limit is 1200m"];
        assert_eq!(broken(&whole, &pod(&[half(), half()])), expected);
    }
}
