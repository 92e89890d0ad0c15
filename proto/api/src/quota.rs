//! ResourceQuotas: which objects count for one, by which names, and for how much. Who charges objects that come, and who counts
//! those that are there, must agree in this, so that both ask here.
//!
//! Pure: the time is given, in nanoseconds since the epoch.

mod charge;
mod pods;
mod scopes;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

pub use charge::{Change, Charge, charge};
pub use pods::counts_until;

use crate::kinds::persistent_volume;
use crate::kinds::pod_spec::{HUGE_PAGES, is_native};
use crate::quantity::Quantity;

/// Amounts by the names that quotas have for them.
pub type Amounts = BTreeMap<String, Quantity>;

/// What the count of objects of a kind is called: `count/deployments.apps`, `count/pods`.
const COUNT: &str = "count/";
const REQUESTS: &str = "requests.";
const CLAIMS: &str = "persistentvolumeclaims";
const STORAGE: &str = "requests.storage";
/// Between the name of a class and what is limited of its claims.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Devices that pods ask for by a class of them.
const OF_DEVICES: &str = "requests.deviceclass.resource.kubernetes.io/";

const OF_PODS: [&str; 10] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "pods",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const OF_SERVICES: [&str; 3] = ["services", "services.loadbalancers", "services.nodeports"];
/// Kinds whose count has a name of its own, which is theirs.
const BY_NAME: [&str; 4] = [
    "configmaps",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
];

/// A kind of objects, by the group and the plural name of its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counted<'a> {
    /// Empty for the core.
    pub group: &'a str,
    /// As in paths.
    pub plural: &'a str,
}

impl<'a> Counted<'a> {
    /// Those whose objects count for more than themselves.
    pub const PODS: Counted<'static> = Counted::core("pods");
    /// See [`Self::PODS`].
    pub const SERVICES: Counted<'static> = Counted::core("services");
    /// See [`Self::PODS`].
    pub const CLAIMS: Counted<'static> = Counted::core(CLAIMS);

    /// One of the core.
    pub const fn core(plural: &'a str) -> Self {
        Self { group: "", plural }
    }

    /// Whether objects of the kind count at all: events never did.
    pub fn is_countable(&self) -> bool {
        !matches!((self.group, self.plural), ("" | "events.k8s.io", "events"))
    }

    /// Whether `name` is what the count of these objects is called.
    fn is_count(&self, name: &str) -> bool {
        let Some(kind) = name.strip_prefix(COUNT) else {
            return false;
        };
        match kind.strip_prefix(self.plural) {
            Some("") => self.group.is_empty(),
            Some(group) => !self.group.is_empty() && group.strip_prefix('.') == Some(self.group),
            None => false,
        }
    }

    fn count(&self) -> String {
        match self.group {
            "" => format!("{COUNT}{}", self.plural),
            group => format!("{COUNT}{}.{group}", self.plural),
        }
    }

    /// Whether a quota's limit of that name is about objects of the kind.
    pub fn has(&self, name: &str) -> bool {
        if !self.is_countable() {
            return false;
        }
        if self.is_count(name) {
            return true;
        }
        if *self == Self::PODS {
            return OF_PODS.contains(&name) || is_huge_pages(name) || is_device(name);
        }
        if *self == Self::SERVICES {
            return OF_SERVICES.contains(&name);
        }
        if *self == Self::CLAIMS {
            let of_class = name.split_once(OF_CLASS);
            return [CLAIMS, STORAGE].contains(&of_class.map_or(name, |(_, name)| name));
        }
        self.group.is_empty() && BY_NAME.contains(&self.plural) && name == self.plural
    }

    /// The kind that a limit of that name is about, where it is the count of objects that count for nothing else: its resource,
    /// as [`Self::qualified`] has it.
    pub fn named(name: &str) -> Option<&str> {
        let kind = name.strip_prefix(COUNT);
        let kind = kind.or_else(|| BY_NAME.contains(&name).then_some(name))?;
        let richer = [Counted::PODS, Counted::SERVICES, Counted::CLAIMS];
        let never = ["events", "events.events.k8s.io"];
        let other = !richer.iter().any(|richer| richer.plural == kind) && !never.contains(&kind);
        other.then_some(kind)
    }

    /// The kind that is called so; see [`Self::qualified`].
    pub fn of_qualified(name: &'a str) -> Self {
        match name.split_once('.') {
            Some((plural, group)) => Self { group, plural },
            None => Self::core(name),
        }
    }

    /// `configmaps`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

fn is_huge_pages(name: &str) -> bool {
    name.strip_prefix(REQUESTS)
        .unwrap_or(name)
        .starts_with(HUGE_PAGES)
}

/// Whether it is a limit of what devices of nodes are counted under.
fn is_device(name: &str) -> bool {
    name.starts_with(REQUESTS) && !is_native(name) || name.starts_with(OF_DEVICES)
}

/// One object, as far as it counts.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// It counts for what it asks for.
    Pod(&'a Pod),
    /// It counts for its ports and its balancer.
    Service(&'a Service),
    /// It counts for its size.
    Claim(&'a PersistentVolumeClaim),
    /// One of a kind of which each counts as one.
    Other(Counted<'a>),
}

impl<'a> Item<'a> {
    /// Its kind.
    pub fn kind(&self) -> Counted<'a> {
        match self {
            Self::Pod(_) => Counted::PODS,
            Self::Service(_) => Counted::SERVICES,
            Self::Claim(_) => Counted::CLAIMS,
            Self::Other(kind) => *kind,
        }
    }

    /// What it counts for.
    pub fn usage(&self, now: i64) -> Amounts {
        let mut usage = Amounts::from([(self.kind().count(), Quantity::from_units(1))]);
        match self {
            Self::Pod(pod) => pods::add_usage(pod, now, &mut usage),
            Self::Service(service) => add_service(service, &mut usage),
            Self::Claim(claim) => add_claim(claim, &mut usage),
            Self::Other(kind) if kind.has(kind.plural) => {
                usage.insert(kind.plural.to_owned(), Quantity::from_units(1));
            }
            Self::Other(_) => {}
        }
        usage
    }

    /// Whether it is in all the scopes of a quota.
    pub fn is_in_scopes(&self, quota: &ResourceQuota) -> bool {
        scopes::all(quota).all(|scope| scope.has(self))
    }
}

fn add_service(service: &Service, usage: &mut Amounts) {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|spec| spec.ports.as_deref());
    let ports = ports.unwrap_or_default();
    let sort = spec.and_then(|spec| spec.type_.as_deref());
    let balanced = sort == Some("LoadBalancer");
    let chosen = |spec: &k8s_openapi::api::core::v1::ServiceSpec| {
        spec.allocate_load_balancer_node_ports == Some(false)
    };
    let node_ports = match sort {
        Some("LoadBalancer") if spec.is_some_and(chosen) => {
            let has_one = |port: &i32| *port != 0;
            let given = ports.iter().filter_map(|port| port.node_port);
            given.filter(has_one).count()
        }
        Some("LoadBalancer" | "NodePort") => ports.len(),
        _ => 0,
    };
    let mut set = |name: &str, number: usize| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        usage.insert(name.to_owned(), Quantity::from_units(number));
    };
    set("services", 1);
    set("services.loadbalancers", balanced.into());
    set("services.nodeports", node_ports);
}

fn add_claim(claim: &PersistentVolumeClaim, usage: &mut Amounts) {
    let spec = claim.spec.as_ref();
    let named = spec.and_then(|spec| spec.storage_class_name.as_ref());
    let class = persistent_volume::class(&claim.metadata, named);
    let mut set = |name: &str, amount: Quantity| {
        if !class.is_empty() {
            usage.insert(format!("{class}{OF_CLASS}{name}"), amount);
        }
        usage.insert(name.to_owned(), amount);
    };
    set(CLAIMS, Quantity::from_units(1));
    let storage = |amounts: Option<&BTreeMap<String, ApiQuantity>>| {
        let amount: Quantity = amounts?.get("storage")?.0.parse().ok()?;
        Some(amount)
    };
    let resources = spec.and_then(|spec| spec.resources.as_ref());
    let Some(asked) = storage(resources.and_then(|resources| resources.requests.as_ref())) else {
        return;
    };
    let status = claim.status.as_ref();
    let given = storage(status.and_then(|status| status.allocated_resources.as_ref()));
    set(STORAGE, in_bytes(asked.max(given.unwrap_or(asked))));
}

/// An amount of whole units.
fn in_bytes(amount: Quantity) -> Quantity {
    match amount.is_whole() {
        true => amount,
        false => Quantity::from_units(amount.units()),
    }
}

/// Amounts as the API has them; what is none was refused when it was decoded.
pub fn parsed(amounts: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
    let each = amounts.into_iter().flatten();
    each.filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?)))
        .collect()
}

/// Amounts for the API.
pub fn printed(amounts: &Amounts) -> BTreeMap<String, ApiQuantity> {
    let each = amounts.iter();
    each.map(|(name, amount)| (name.clone(), ApiQuantity(amount.to_string())))
        .collect()
}

/// Adds amounts to others.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let all = sum.entry(name.clone()).or_default();
        *all = all.plus(*amount);
    }
}

#[cfg(test)]
mod tests;
