//! Acting as somebody else: what a user must be allowed for each part of whom it wants to be.
//!
//! There are several ways, as in Kubernetes since 1.35. The constrained ones ask for two things: to be that user
//! (`impersonate:MODE`), and to do this very request as one (`impersonate-on:MODE:VERB`). The old one, `impersonate`, is for
//! every request. The first way that is allowed counts; a refusal tells of the first that was tried.

use std::collections::BTreeMap;
use std::fmt::Write;

use gantry_api::names;
use gantry_api::status::StatusError;
use http::HeaderMap;

use crate::identity::{
    ANONYMOUS, AUTHENTICATED, Identity, MASTERS, UNAUTHENTICATED, node_of, service_account_groups,
    service_account_of,
};
use crate::node_keys::NODES_GROUP;

use super::attributes::{Attributes, Authorizer, Target, check, forbidden};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";
/// The node that a service account's token is bound to.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Groups or values of which all are asked for at once first.
const MANY: usize = 4;

/// A constrained way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A pod's service account as the pod's own node.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Everybody else.
    UserInfo,
}

impl Mode {
    const ALL: [Self; 4] = [
        Self::AssociatedNode,
        Self::ArbitraryNode,
        Self::ServiceAccount,
        Self::UserInfo,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
        }
    }

    /// Whether it is for such a user.
    fn is_for(self, wanted: &Identity, requestor: &Identity) -> bool {
        let name_alone =
            wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node_of(&wanted.user), service_account_of(&wanted.user));
        match self {
            Self::AssociatedNode => {
                let bound_to = requestor.extra.get(NODE_NAME).map(Vec::as_slice);
                let is_account = service_account_of(&requestor.user).is_some();
                name_alone
                    && is_account
                    && node.is_some_and(|node| matches!(bound_to, Some([one]) if one == node))
            }
            Self::ArbitraryNode => name_alone && node.is_some(),
            Self::ServiceAccount => name_alone && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
        }
    }
}

/// Whether a request asks to be somebody else's.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(http::HeaderName::as_str);
    names.any(|name| name.starts_with("impersonate-"))
}

/// Whom a request is to be answered for, when its headers ask for somebody else and its user may be them. `attributes` are
/// the request's own.
pub(crate) fn impersonated(
    authorizer: &dyn Authorizer,
    headers: &HeaderMap,
    attributes: &Attributes<'_>,
) -> Result<Option<Identity>, StatusError> {
    let Some(wanted) = wanted(headers)? else {
        return Ok(None);
    };
    let mut first = None;
    for mode in Mode::ALL {
        if !mode.is_for(&wanted, attributes.user) {
            continue;
        }
        match constrained(authorizer, mode, &wanted, attributes) {
            Ok(identity) => return Ok(Some(identity)),
            Err(refused) => first = first.or(Some(refused)),
        }
    }
    let way = Way {
        authorizer,
        requestor: attributes.user,
        verb: "impersonate",
        mode: None,
    };
    let old = way.take(&wanted);
    old.map(Some).map_err(|refused| first.unwrap_or(refused))
}

fn constrained(
    authorizer: &dyn Authorizer,
    mode: Mode,
    wanted: &Identity,
    attributes: &Attributes<'_>,
) -> Result<Identity, StatusError> {
    let on = format!("impersonate-on:{}:{}", mode.name(), attributes.verb);
    let asked = Attributes {
        user: attributes.user,
        verb: &on,
        target: attributes.target,
    };
    check(authorizer, &asked)?;
    let be = format!("impersonate:{}", mode.name());
    let way = Way {
        authorizer,
        requestor: attributes.user,
        verb: &be,
        mode: Some(mode),
    };
    way.take(wanted)
}

/// What is asked of the requestor for each part of whom it wants to be.
struct Way<'a> {
    authorizer: &'a dyn Authorizer,
    requestor: &'a Identity,
    verb: &'a str,
    /// None is the old way.
    mode: Option<Mode>,
}

impl Way<'_> {
    /// The user, when the requestor may be them.
    fn take(&self, wanted: &Identity) -> Result<Identity, StatusError> {
        let mut actual = wanted.clone();
        self.check_name(wanted, &mut actual)?;
        if !wanted.uid.is_empty() {
            self.check(AUTHENTICATION, "uids", "", "", &wanted.uid)?;
        }
        self.check_groups(&wanted.groups)?;
        self.check_extra(&wanted.extra)?;
        let ensured = match wanted.user.as_str() {
            ANONYMOUS => Some(UNAUTHENTICATED),
            _ => (!actual.is_in(UNAUTHENTICATED)).then_some(AUTHENTICATED),
        };
        if let Some(group) = ensured.filter(|group| !actual.is_in(group)) {
            actual.groups.push(group.to_owned());
        }
        Ok(actual)
    }

    /// The group of users, groups and accounts: the old way has them in core.
    fn group(&self) -> &'static str {
        match self.mode {
            Some(_) => AUTHENTICATION,
            None => "",
        }
    }

    fn attributes<'a>(
        &'a self,
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes {
            user: self.requestor,
            verb: self.verb,
            target: Target::Resource {
                group,
                version: "v1",
                resource,
                subresource,
                namespace,
                name,
            },
        }
    }

    fn check(
        &self,
        group: &str,
        resource: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), StatusError> {
        let attributes = self.attributes(group, resource, subresource, namespace, name);
        check(self.authorizer, &attributes)
    }

    fn check_name(&self, wanted: &Identity, actual: &mut Identity) -> Result<(), StatusError> {
        if let Some((namespace, name)) = service_account_of(&wanted.user) {
            if wanted.groups.is_empty() {
                actual.groups = service_account_groups(namespace);
            }
            return self.check(self.group(), "serviceaccounts", "", namespace, name);
        }
        match (self.mode, node_of(&wanted.user)) {
            (Some(mode), Some(node)) => {
                actual.groups = vec![NODES_GROUP.to_owned()];
                // A grant for the own node is one for every node that the account's pods run on.
                let name = if mode == Mode::AssociatedNode {
                    "*"
                } else {
                    node
                };
                self.check(self.group(), "nodes", "", "", name)
            }
            _ => self.check(self.group(), "users", "", "", &wanted.user),
        }
    }

    fn check_groups(&self, groups: &[String]) -> Result<(), StatusError> {
        let group_of = self.group();
        if self.mode.is_some() {
            let refuse = |name: &str, reason: &str| {
                Err(forbidden(
                    &self.attributes(group_of, "groups", "", "", name),
                    reason,
                ))
            };
            if groups.iter().any(String::is_empty) {
                return refuse("", "impersonating the empty string group is not allowed");
            }
            if groups.iter().any(|group| group == MASTERS) {
                let reason = "impersonating the system:masters group is not allowed";
                return refuse(MASTERS, reason);
            }
            if groups.len() >= MANY && self.check(group_of, "groups", "", "", "*").is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.check(group_of, "groups", "", "", group)?;
        }
        Ok(())
    }

    fn check_extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), StatusError> {
        let resource = "userextras";
        if self.mode.is_some() && !extra.is_empty() {
            if let Some(reason) = wrong_extra(extra) {
                let attributes = self.attributes(AUTHENTICATION, resource, "", "", "");
                return Err(forbidden(&attributes, &reason));
            }
            let values: usize = extra.values().map(Vec::len).sum();
            let is_large = extra.len() >= MANY || values >= MANY;
            if is_large && self.check(AUTHENTICATION, resource, "*", "", "*").is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.check(AUTHENTICATION, resource, key, "", value)?;
            }
        }
        Ok(())
    }
}

/// Why the constrained ways do not take something that is said of a user.
fn wrong_extra(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    extra.iter().find_map(|(key, values)| {
        if key.is_empty() {
            return Some("impersonating the empty string key in extra is not allowed".to_owned());
        }
        if let Some((value, detail)) = wrong_key(key) {
            return Some(format!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {value:?}: {detail}"
            ));
        }
        if key.chars().any(char::is_uppercase) {
            return Some(format!(
                "impersonating a non-lowercase key in extra is not allowed: {key:?}"
            ));
        }
        if values.is_empty() {
            return Some("impersonating empty values in extra is not allowed".to_owned());
        }
        let empty = values.iter().any(String::is_empty);
        empty.then(|| "impersonating the empty string value in extra is not allowed".to_owned())
    })
}

/// What of a key is wrong, and why: it is a path after a domain, `example.com/key`.
fn wrong_key(key: &str) -> Option<(&str, String)> {
    let parts = key.split_once('/');
    let Some((host, path)) = parts.filter(|(host, path)| !host.is_empty() && !path.is_empty())
    else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return Some((key, detail.to_owned()));
    };
    if let Some(detail) = names::is_dns1123_subdomain(host) {
        return Some((host, detail));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
    (!path.bytes().all(allowed)).then(|| (path, detail.to_owned()))
}

/// Whom the headers ask for, as they say it.
fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, StatusError> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let one = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    let wanted = Identity {
        user: one(USER),
        uid: one(UID),
        groups: headers.get_all(GROUP).iter().map(text).collect(),
        extra,
    };
    if !wanted.user.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted == Identity::default() {
        return Ok(None);
    }
    Err(StatusError::bad_request(format!(
        "requested {} without impersonating a user name",
        go_syntax(&wanted)
    )))
}

/// A key of what is said of a user: headers have it percent-encoded. One that is not stays as it is.
fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits
            .filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        let Some(byte) = byte else {
            return key.to_owned();
        };
        bytes.push(byte);
        rest = tail.get(2..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A user as Go writes its own.
fn go_syntax(user: &Identity) -> String {
    let list = |values: &[String]| match values {
        [] => "[]string(nil)".to_owned(),
        values => {
            let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
            format!("[]string{{{}}}", values.join(", "))
        }
    };
    let mut extra = String::new();
    for (index, (key, values)) in user.extra.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        write!(extra, "{comma}{key:?}:{}", list(values)).ok();
    }
    let extra = match user.extra.is_empty() {
        true => "map[string][]string(nil)".to_owned(),
        false => format!("map[string][]string{{{extra}}}"),
    };
    format!(
        "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{}, Extra:{extra}}}",
        user.user,
        user.uid,
        list(&user.groups)
    )
}

#[cfg(test)]
mod tests;
