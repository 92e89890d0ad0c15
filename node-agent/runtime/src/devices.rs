//! The devices a container may open: the one list, which becomes `linux.resources.devices` of its OCI configuration and
//! from there the kernel's, on either version of cgroups.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

/// Kind, major, minor (`None` for all) and access of what every container may do: make nodes of any device, and open
/// those that its /dev has. libcontainer's own list also has /dev/net/tun, by which a container sends whatever it likes.
const ALLOWED: &[(&str, Option<i64>, Option<i64>, &str)] = &[
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    // null, zero, full, random, urandom
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    // tty, console, ptmx, and the terminals below pts
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(5), Some(1), "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(136), None, "rwm"),
];

/// The rules of a container, in the order in which they are applied.
pub(crate) fn rules(privileged: bool) -> Vec<Value> {
    let mut rules = vec![json!({"allow": privileged, "access": "rwm"})];
    if privileged {
        return rules;
    }
    for (kind, major, minor, access) in ALLOWED {
        let numbers = [("major", major), ("minor", minor)];
        let numbers = numbers
            .into_iter()
            .filter_map(|(name, number)| Some((name, json!((*number)?))));
        let fields = [
            ("allow", json!(true)),
            ("type", json!(kind)),
            ("access", json!(access)),
        ];
        let rule = fields.into_iter().chain(numbers);
        rules.push(rule.map(|(name, value)| (name.to_owned(), value)).collect());
    }
    rules
}

/// Makes the list of a cgroup v1 group the container's own again, to which libcontainer has added what it always adds.
/// `dir` is the container's, with its configuration and [`GROUP`].
pub(crate) fn apply(dir: &Path) -> io::Result<()> {
    let group = fs::read_to_string(dir.join(GROUP))?;
    if group.is_empty() {
        return Ok(());
    }
    let group = Path::new(&group);
    let configuration: Value = serde_json::from_slice(&fs::read(dir.join("config.json"))?)?;
    let rules = configuration["linux"]["resources"]["devices"].as_array();
    for rule in rules.into_iter().flatten() {
        let number = |name: &str| {
            rule[name]
                .as_i64()
                .map_or("*".to_owned(), |number| number.to_string())
        };
        let entry = match rule["type"].as_str() {
            Some(kind) => format!(
                "{kind} {}:{} {}",
                number("major"),
                number("minor"),
                rule["access"].as_str().unwrap_or_default()
            ),
            // Everything, and with it whatever was written before.
            None => "a".to_owned(),
        };
        let file = if rule["allow"] == true {
            "devices.allow"
        } else {
            "devices.deny"
        };
        fs::write(group.join(file), entry)?;
    }
    Ok(())
}

/// In a container's directory: where its group of the devices controller of cgroup v1 is; empty where there is none.
pub(crate) const GROUP: &str = "devices";
