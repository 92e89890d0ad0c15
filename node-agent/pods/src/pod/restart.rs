//! Whether a container that ended is started again: its own rules decide, then its own policy, then its pod's.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, PodSpec};

/// `restartPolicy`, of a pod or of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn named(written: Option<&str>) -> Option<Self> {
        match written {
            Some("Always") => Some(Self::Always),
            Some("OnFailure") => Some(Self::OnFailure),
            Some("Never") => Some(Self::Never),
            _ => None,
        }
    }

    fn again(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// Restarts after some exit codes, whatever the policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Not the container alone, but all of the pod's begin anew.
    all: bool,
    /// Whether it is about the codes or about all others.
    within: bool,
    codes: Vec<i32>,
}

/// What decides about the restarts of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    rules: Vec<Rule>,
}

/// What a rule can ask of this node.
pub(crate) const ACTIONS: [&str; 2] = [RESTART, RESTART_ALL];
const RESTART: &str = "Restart";
const RESTART_ALL: &str = "RestartAllContainers";

impl Restarts {
    /// Of a container of this pod. Rules count only beside a policy of the container's own.
    pub(crate) fn of(spec: &PodSpec, container: &Container) -> Self {
        let own = RestartPolicy::named(container.restart_policy.as_deref());
        let pods = RestartPolicy::named(spec.restart_policy.as_deref());
        let rules = container.restart_policy_rules.iter().flatten();
        Self {
            policy: own.or(pods).unwrap_or(RestartPolicy::Always),
            rules: match own {
                Some(_) => rules.filter_map(Rule::of).collect(),
                None => Vec::new(),
            },
        }
    }

    /// By a policy alone.
    #[cfg(test)]
    pub(crate) fn by(policy: RestartPolicy) -> Self {
        Self {
            policy,
            rules: Vec::new(),
        }
    }

    /// The first rule that is about this code decides.
    fn rule(&self, code: i32) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.applies(code))
    }

    /// Whether it is started again after it ended with this code.
    pub(crate) fn again(&self, code: i32) -> bool {
        self.rule(code).is_some() || self.policy.again(code)
    }

    /// Whether all containers of its pod begin anew after it ended with this code.
    pub(crate) fn all(&self, code: i32) -> bool {
        self.rule(code).is_some_and(|rule| rule.all)
    }

    /// Whether there is a code after which all containers of its pod begin anew.
    pub(crate) fn ever_all(&self) -> bool {
        self.rules.iter().any(|rule| rule.all)
    }
}

impl Rule {
    fn of(written: &ContainerRestartRule) -> Option<Self> {
        let action = written.action.as_str();
        let known = ACTIONS.contains(&action);
        let exit_codes = written.exit_codes.as_ref().filter(|_| known)?;
        let within = match exit_codes.operator.as_str() {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        Some(Self {
            all: action == RESTART_ALL,
            within,
            codes: exit_codes.values.clone().unwrap_or_default(),
        })
    }

    fn applies(&self, code: i32) -> bool {
        self.codes.contains(&code) == self.within
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn rules_come_before_policies() {
        let rule = |operator: &str, values: &[i32]| json!({"action": "Restart", "exitCodes": {"operator": operator, "values": values}});
        let own = |policy: &str, rules: Value| json!({"name": "c", "restartPolicy": policy, "restartPolicyRules": rules});
        let bare = json!({"name": "c"});
        for (pod, container, restarts) in [
            // After 0, 1 and 42.
            (None, bare.clone(), [true, true, true]),
            (Some("Always"), bare.clone(), [true, true, true]),
            (Some("OnFailure"), bare.clone(), [false, true, true]),
            (Some("Never"), bare, [false, false, false]),
            (
                Some("Always"),
                own("Never", json!([])),
                [false, false, false],
            ),
            (
                Some("Never"),
                own("OnFailure", json!([])),
                [false, true, true],
            ),
            (
                Some("Never"),
                own("Never", json!([rule("In", &[42])])),
                [false, false, true],
            ),
            (
                Some("Never"),
                own("Never", json!([rule("In", &[7]), rule("NotIn", &[1])])),
                [true, false, true],
            ),
            (
                Some("Never"),
                own("OnFailure", json!([rule("In", &[0])])),
                [true, true, true],
            ),
            (
                Some("Never"),
                json!({"name": "c", "restartPolicyRules": [rule("In", &[42])]}),
                [false, false, false],
            ),
            (
                Some("Never"),
                own("Never", json!([{"action": "Restart"}, rule("Like", &[1])])),
                [false, false, false],
            ),
        ] {
            let spec = json!({"restartPolicy": pod, "containers": [container]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let decides = Restarts::of(&spec, &spec.containers[0]);
            let found = [0, 1, 42].map(|code| decides.again(code));
            assert_eq!(found, restarts, "{spec:?}");
        }
    }

    #[test]
    fn the_first_rule_about_a_code_decides_who_begins_anew() {
        let rule = |action: &str, codes: &[i32]| json!({"action": action, "exitCodes": {"operator": "In", "values": codes}});
        let rules = json!([
            rule("Restart", &[1]),
            rule("RestartAllContainers", &[1, 88]),
            rule("Other", &[2])
        ]);
        let spec = json!({"containers": [{"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules}]});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let decides = Restarts::of(&spec, &spec.containers[0]);
        assert_eq!(
            [1, 2, 88].map(|code| decides.again(code)),
            [true, false, true]
        );
        assert_eq!(
            [1, 2, 88].map(|code| decides.all(code)),
            [false, false, true]
        );
        assert!(decides.ever_all() && !Restarts::by(RestartPolicy::Always).ever_all());
    }
}
