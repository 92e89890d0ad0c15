//! From differences to nft's words. Pure.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use super::elements::{Element, Frontend, Key, Scope, Value};
use super::parts::Skeleton;
use super::table::Difference;

/// Elements per command: nft's parser slows down on very long lines.
const ELEMENTS_PER_COMMAND: usize = 512;

/// The script that makes the tables anew, with a difference from nothing.
pub(super) fn from_scratch(skeletons: &[Skeleton], whole: &Difference) -> String {
    let mut script = String::new();
    for skeleton in skeletons {
        let _infallible = write!(script, "{skeleton}");
    }
    script + &difference(skeletons, whole)
}

/// The script that brings the difference into the tables. Empty when there is none.
///
/// All of it is one transaction, over both families.
pub(super) fn difference(skeletons: &[Skeleton], difference: &Difference) -> String {
    let mut script = String::new();
    for skeleton in skeletons {
        let own = |elements: &[Element]| -> Vec<Element> {
            let own = elements.iter().copied();
            own.filter(|(key, _)| key.family() == skeleton.family)
                .collect()
        };
        let (created, removed) = (difference.created.iter(), difference.removed.iter());
        for &part in created.filter(|part| part.family() == skeleton.family) {
            script.push_str(&skeleton.create(part));
        }
        commands(&mut script, skeleton, "delete", &own(&difference.gone));
        commands(&mut script, skeleton, "add", &own(&difference.added));
        for &part in removed
            .rev()
            .filter(|part| part.family() == skeleton.family)
        {
            script.push_str(&skeleton.remove(part));
        }
    }
    script
}

fn commands(script: &mut String, skeleton: &Skeleton, verb: &str, elements: &[Element]) {
    let mut by_object: BTreeMap<String, Vec<Element>> = BTreeMap::new();
    for &(key, value) in elements {
        by_object.entry(object(key)).or_default().push((key, value));
    }
    for (object, elements) in by_object {
        for some in elements.chunks(ELEMENTS_PER_COMMAND) {
            let _infallible = write!(script, "{verb} element {} {object} {{ ", skeleton.name());
            for (index, &(key, value)) in some.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                let _infallible = write!(script, "{comma}{}", KeyWords(key));
                if verb == "add" {
                    let _infallible = write!(script, "{}", ValueWords(value));
                }
            }
            script.push_str(" }\n");
        }
    }
}

/// The map or set that holds an element.
fn object(key: Key) -> String {
    match key {
        Key::Verdict(Scope::Anywhere, Frontend::Address(..)) => "service_address".to_owned(),
        Key::Verdict(Scope::Anywhere, Frontend::NodePort(..)) => "service_port".to_owned(),
        Key::Verdict(Scope::Outside, Frontend::Address(..)) => "outside_address".to_owned(),
        Key::Verdict(Scope::Outside, Frontend::NodePort(..)) => "outside_port".to_owned(),
        Key::Backend(balancer, ..) => balancer.to_string(),
        Key::Target(kind, slot, _) => format!("{kind}_slot_{slot}"),
        Key::Refused(Frontend::Address(..)) => "refused_address".to_owned(),
        Key::Refused(Frontend::NodePort(..)) => "refused_port".to_owned(),
        Key::Held(Frontend::Address(..)) => "held_address".to_owned(),
        Key::Held(Frontend::NodePort(..)) => "held_port".to_owned(),
        Key::Ignored(Frontend::Address(..), _) => "ignored_address".to_owned(),
        Key::Ignored(Frontend::NodePort(..), _) => "ignored_port".to_owned(),
        Key::Guarded(_) => "guarded".to_owned(),
        Key::Allowed(..) => "allowed".to_owned(),
        Key::Hairpin(_) => "hairpin".to_owned(),
    }
}

struct KeyWords(Key);

impl Display for KeyWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Key::Verdict(_, frontend)
            | Key::Refused(frontend)
            | Key::Held(frontend)
            | Key::Guarded(frontend) => with_protocol(f, frontend),
            Key::Ignored(frontend, range) | Key::Allowed(frontend, range) => {
                with_protocol(f, frontend)?;
                write!(f, " . {range}")
            }
            Key::Target(_, _, frontend) => without_protocol(f, frontend),
            Key::Backend(balancer, frontend, index) => {
                without_protocol(f, frontend)?;
                if balancer.endpoints > 1 {
                    write!(f, " . {index}")
                } else {
                    Ok(())
                }
            }
            Key::Hairpin(ip) => write!(f, "{ip} . {ip}"),
        }
    }
}

fn with_protocol(f: &mut fmt::Formatter<'_>, frontend: Frontend) -> fmt::Result {
    match frontend {
        Frontend::Address(protocol, ip, port) => {
            write!(f, "{ip} . {} . {port}", protocol.number())
        }
        Frontend::NodePort(_, protocol, port) => write!(f, "{} . {port}", protocol.number()),
    }
}

/// Where the protocol is that of the map.
fn without_protocol(f: &mut fmt::Formatter<'_>, frontend: Frontend) -> fmt::Result {
    match frontend {
        Frontend::Address(_, ip, port) => write!(f, "{ip} . {port}"),
        Frontend::NodePort(_, _, port) => write!(f, "{port}"),
    }
}

struct ValueWords(Value);

impl Display for ValueWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Balance(balancer) => write!(f, " : goto {balancer}"),
            Value::Slot(slot) => write!(f, " : goto {slot}"),
            Value::Drop => f.write_str(" : drop"),
            Value::To(ip, port) => write!(f, " : {ip} . {port}"),
            Value::Member => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
