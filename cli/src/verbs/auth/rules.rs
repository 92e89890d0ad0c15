//! The table of everything that somebody may do, laid out as kubectl does.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::output;

/// One line: verbs on one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    group: Option<String>,
    resource: Option<String>,
    name: Option<String>,
    url: Option<String>,
    verbs: Vec<String>,
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn bracketed(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

impl Line {
    /// What lines are sorted by: how Go writes the rule.
    fn order(&self) -> String {
        let one = |item: &Option<String>| bracketed(item.as_slice());
        format!(
            "&PolicyRule{{Verbs:{},APIGroups:{},Resources:{},ResourceNames:{},NonResourceURLs:{},}}",
            bracketed(&self.verbs),
            one(&self.group),
            one(&self.resource),
            one(&self.name),
            one(&self.url)
        )
    }

    /// `deployments.apps/scale`
    fn resource(&self) -> String {
        let Some(resource) = &self.resource else {
            return String::new();
        };
        let (of, subresource) = match resource.split_once('/') {
            Some((of, subresource)) => (of, Some(subresource)),
            None => (resource.as_str(), None),
        };
        let mut text = of.to_owned();
        if let Some(group) = self.group.as_ref().filter(|group| !group.is_empty()) {
            text.push('.');
            text.push_str(group);
        }
        if let Some(subresource) = subresource {
            text.push('/');
            text.push_str(subresource);
        }
        text
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.resource(),
            bracketed(self.url.as_slice()),
            bracketed(self.name.as_slice()),
            bracketed(&self.verbs),
        ]
    }
}

/// The lines of a SelfSubjectRulesReview's status.
fn lines(status: &Value) -> Vec<Line> {
    let rules = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let mut things: BTreeMap<(String, String, Option<String>), Vec<String>> = BTreeMap::new();
    for rule in rules("resourceRules") {
        let names = texts(&rule["resourceNames"]);
        let names: Vec<Option<String>> = match names.is_empty() {
            true => vec![None],
            false => names.into_iter().map(Some).collect(),
        };
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for name in &names {
                    let thing = (group.clone(), resource.clone(), name.clone());
                    let verbs = things.entry(thing).or_default();
                    for verb in texts(&rule["verbs"]) {
                        if !verbs.contains(&verb) {
                            verbs.push(verb);
                        }
                    }
                }
            }
        }
    }
    let mut lines: Vec<Line> = things
        .into_iter()
        .map(|((group, resource, name), verbs)| Line {
            group: Some(group),
            resource: Some(resource),
            name,
            url: None,
            verbs,
        })
        .collect();
    for rule in rules("nonResourceRules") {
        for url in texts(&rule["nonResourceURLs"]) {
            for verb in texts(&rule["verbs"]) {
                lines.push(Line {
                    url: Some(url.clone()),
                    verbs: vec![verb],
                    ..Line::default()
                });
            }
        }
    }
    lines.sort_by_cached_key(Line::order);
    lines
}

/// The whole table.
pub(super) fn table(status: &Value, headers: bool) -> String {
    let header = ["Resources", "Non-Resource URLs", "Resource Names", "Verbs"];
    let mut rows = Vec::new();
    if headers {
        rows.push(header.map(str::to_owned).to_vec());
    }
    rows.extend(lines(status).iter().map(Line::cells));
    output::align(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn verbs_on_one_thing_are_in_one_line_and_lines_are_in_order() {
        let status = json!({
            "resourceRules": [
                {"verbs": ["get"], "apiGroups": ["apps"], "resources": ["deployments/scale"]},
                {"verbs": ["create"], "apiGroups": ["", "x"], "resources": ["pods"]},
                {"verbs": ["list"], "apiGroups": ["apps"], "resources": ["deployments/scale"]},
                {"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"], "resourceNames": ["a"]},
            ],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}],
        });
        assert_eq!(
            table(&status, true),
            "Resources                Non-Resource URLs   Resource Names   Verbs\n\
             pods                     []                  []               [create]\n\
             pods.x                   []                  []               [create]\n\
             deployments.apps/scale   []                  []               [get list]\n\
             \x20                        [/healthz]          []               [get]\n\
             nodes                    []                  [a]              [get]\n"
        );
    }
}
