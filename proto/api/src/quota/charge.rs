//! What becomes of a quota when an object is written that counts for it.

use k8s_openapi::api::core::v1::ResourceQuota;

use super::{Amounts, Item, parsed, pods};
use crate::quantity::Quantity;

/// An object that is to be written, and what it was before, unless it is new.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What it will be.
    pub new: Item<'a>,
    /// What it was.
    pub old: Option<Item<'a>>,
    /// When, in nanoseconds since the epoch.
    pub now: i64,
}

/// What becomes of a quota with the change.
#[derive(Clone, Debug, PartialEq)]
pub enum Charge {
    /// Nothing.
    Nothing,
    /// It is about the object, and nobody has counted yet what is used of it: whoever does that now must not miss the object.
    Uncounted,
    /// This is used of it then.
    Used(Amounts),
}

/// What becomes of each of a namespace's quotas when an object is written; why it may not be, in Kubernetes' words.
pub fn charge(quotas: &[&ResourceQuota], change: &Change<'_>) -> Result<Vec<Charge>, String> {
    let usage = change.new.usage(change.now);
    let before = change.old.map(|old| old.usage(change.now));
    let mut asked = Vec::with_capacity(quotas.len());
    for quota in quotas {
        let more = match change.new.is_in_scopes(quota) {
            true => {
                let counted_before = change.old.filter(|old| old.is_in_scopes(quota));
                difference(&usage, counted_before.and(before.as_ref()))
            }
            false => Amounts::new(),
        };
        // What is there already, and asks for no more, stays as it is.
        if !more.is_empty() {
            check_constraints(quota, &change.new)?;
        }
        asked.push(more);
    }
    let each = quotas.iter().zip(asked).map(|(quota, mut asked)| {
        let status = quota.status.as_ref();
        let hard = parsed(status.and_then(|status| status.hard.as_ref()));
        let wanted = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        let uncounted = wanted
            .into_iter()
            .flat_map(|wanted| wanted.keys())
            .any(|name| asked.contains_key(name) && !hard.contains_key(name));
        asked.retain(|name, _| hard.contains_key(name));
        let used = parsed(status.and_then(|status| status.used.as_ref()));
        match asked.is_empty() {
            false => take(quota, &hard, used, &asked).map(Charge::Used),
            true if uncounted => Ok(Charge::Uncounted),
            true => Ok(Charge::Nothing),
        }
    });
    each.collect()
}

/// What is used more of than before; nothing is given back here.
fn difference(usage: &Amounts, before: Option<&Amounts>) -> Amounts {
    let more = usage.iter().filter_map(|(name, amount)| {
        let had = before.and_then(|before| before.get(name)).copied();
        let more = amount.minus(had.unwrap_or_default());
        (more.sign() > 0).then(|| (name.clone(), more))
    });
    more.collect()
}

fn name_of(quota: &ResourceQuota) -> &str {
    quota.metadata.name.as_deref().unwrap_or_default()
}

/// Refuses what does not say all that a quota of its kind wants to know, and what a quota is about that is not counted.
fn check_constraints(quota: &ResourceQuota, item: &Item<'_>) -> Result<(), String> {
    let kind = item.kind();
    let status = quota.status.as_ref();
    let hard = status.and_then(|status| status.hard.as_ref());
    let used = status.and_then(|status| status.used.as_ref());
    let limited = || {
        let names = hard.into_iter().flat_map(|hard| hard.keys());
        names.map(String::as_str).filter(|name| kind.has(name))
    };
    if let Item::Pod(pod) = item
        && let Some(unsaid) = pods::unsaid(pod, limited())
    {
        return Err(format!("failed quota: {}: {unsaid}", name_of(quota)));
    }
    let is_counted = |name: &str| used.is_some_and(|used| used.contains_key(name));
    if limited().all(is_counted) {
        return Ok(());
    }
    let limited: Vec<&str> = limited().collect();
    Err(format!(
        "status unknown for quota: {}, resources: {}",
        name_of(quota),
        limited.join(",")
    ))
}

/// What is used of a quota with what is asked for; refused where that is more than there is.
fn take(
    quota: &ResourceQuota,
    hard: &Amounts,
    mut used: Amounts,
    asked: &Amounts,
) -> Result<Amounts, String> {
    let had = |used: &Amounts, name: &str| used.get(name).copied().unwrap_or_default();
    let too_much = asked.iter().filter(|(name, more)| {
        let most = hard.get(*name).copied().unwrap_or_default();
        had(&used, name).plus(**more) > most
    });
    let too_much: Vec<&str> = too_much.map(|(name, _)| name.as_str()).collect();
    if !too_much.is_empty() {
        let told = |amounts: &Amounts| {
            let each = too_much.iter();
            let each = each.map(|name| format!("{name}={}", had(amounts, name)));
            each.collect::<Vec<String>>().join(",")
        };
        return Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            name_of(quota),
            told(asked),
            told(&used),
            told(hard)
        ));
    }
    for (name, more) in asked {
        let all: &mut Quantity = used.entry(name.clone()).or_default();
        *all = all.plus(*more);
    }
    Ok(used)
}
