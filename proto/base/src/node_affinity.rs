//! Which nodes a term of a node selector leaves: compiled once, asked of every node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// The only field of a node that a term may ask for.
pub const NAME: &str = "metadata.name";

/// The labels of a node.
pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(Option<i64>),
    LessThan(Option<i64>),
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

impl Requirement {
    fn new(requirement: &NodeSelectorRequirement) -> Option<Self> {
        let values = requirement.values.clone().unwrap_or_default();
        let bound = || values.first().and_then(|value| value.parse().ok());
        let test = match requirement.operator.as_str() {
            "In" => Test::In(values),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            "Gt" => Test::GreaterThan(bound()),
            "Lt" => Test::LessThan(bound()),
            _ => return None,
        };
        Some(Self {
            key: requirement.key.clone(),
            test,
        })
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => {
                value.is_some_and(|value| values.iter().any(|known| known == value))
            }
            Test::NotIn(values) => {
                value.is_none_or(|value| !values.iter().any(|known| known == value))
            }
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
            Test::GreaterThan(bound) => number()
                .zip(*bound)
                .is_some_and(|(have, bound)| have > bound),
            Test::LessThan(bound) => number()
                .zip(*bound)
                .is_some_and(|(have, bound)| have < bound),
        }
    }
}

/// A conjunction of requirements on a node.
#[derive(Clone, Debug)]
pub struct Term {
    labels: Vec<Requirement>,
    /// On [`NAME`].
    fields: Vec<Requirement>,
    /// It requires nothing, or something nobody understands: such a term matches no node.
    void: bool,
}

impl Term {
    /// As a pod or a volume says it.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        fn all(requirements: Option<&Vec<NodeSelectorRequirement>>) -> Option<Vec<Requirement>> {
            requirements
                .into_iter()
                .flatten()
                .map(Requirement::new)
                .collect()
        }
        let labels = all(term.match_expressions.as_ref());
        let fields = all(term.match_fields.as_ref());
        let void = match (&labels, &fields) {
            (Some(labels), Some(fields)) => labels.is_empty() && fields.is_empty(),
            _ => true,
        };
        Self {
            labels: labels.unwrap_or_default(),
            fields: fields.unwrap_or_default(),
            void,
        }
    }

    /// Whether a node of that name and with these labels is meant.
    pub fn matches(&self, node: &str, labels: &Labels) -> bool {
        !self.void
            && self.labels.iter().all(|requirement| {
                requirement.holds(labels.get(&requirement.key).map(String::as_str))
            })
            && self
                .fields
                .iter()
                .all(|requirement| requirement.key == NAME && requirement.holds(Some(node)))
    }

    /// The nodes that it names, where it means no others.
    pub fn names(&self) -> Option<&[String]> {
        self.fields.iter().find_map(|field| match &field.test {
            Test::In(names) if field.key == NAME => Some(names.as_slice()),
            _ => None,
        })
    }
}

/// The nodes that all of these terms name, each once; none where one of them means others, too.
pub fn named(terms: &[Term]) -> Option<BTreeSet<&str>> {
    let mut names = BTreeSet::new();
    for term in terms {
        names.extend(term.names()?.iter().map(String::as_str));
    }
    Some(names).filter(|_| !terms.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(key: &str, operator: &str, values: &[&str]) -> Term {
        Term::new(&NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
            }]),
            match_fields: None,
        })
    }

    #[test]
    fn operators_hold_as_documented() {
        let labels: Labels = [("zone", "z1"), ("cores", "8")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (key, operator, values, expected) in [
            ("zone", "In", vec!["z1", "z2"], true),
            ("zone", "In", vec!["z2"], false),
            ("rack", "In", vec!["z1"], false),
            ("zone", "NotIn", vec!["z1"], false),
            ("rack", "NotIn", vec!["z1"], true),
            ("zone", "Exists", vec![], true),
            ("rack", "Exists", vec![], false),
            ("rack", "DoesNotExist", vec![], true),
            ("cores", "Gt", vec!["4"], true),
            ("cores", "Gt", vec!["8"], false),
            ("cores", "Lt", vec!["9"], true),
            ("zone", "Gt", vec!["4"], false),
            ("zone", "Like", vec!["z"], false),
        ] {
            let got = term(key, operator, &values).matches("n", &labels);
            assert_eq!(got, expected, "{key} {operator} {values:?}");
        }
    }

    #[test]
    fn a_term_without_requirements_matches_nothing() {
        assert!(!Term::new(&NodeSelectorTerm::default()).matches("n", &Labels::new()));
    }

    #[test]
    fn a_field_names_the_node() {
        let term = Term::new(&NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec!["n".to_owned()]),
            }]),
        });
        assert!(term.matches("n", &Labels::new()));
        assert!(!term.matches("m", &Labels::new()));
    }

    #[test]
    fn nodes_are_named_where_every_term_names_some() {
        let of = |names: &[&str]| {
            Term::new(&NodeSelectorTerm {
                match_expressions: None,
                match_fields: Some(vec![NodeSelectorRequirement {
                    key: NAME.to_owned(),
                    operator: "In".to_owned(),
                    values: Some(names.iter().map(|name| (*name).to_owned()).collect()),
                }]),
            })
        };
        let zone = || term("zone", "In", &["z1"]);
        assert_eq!(
            named(&[of(&["m", "n"]), of(&["n"])]),
            Some(["m", "n"].into())
        );
        assert_eq!(named(&[of(&["n"]), zone()]), None);
        assert_eq!(named(&[zone()]), None);
        assert_eq!(named(&[]), None);
    }
}
