//! The credentials that pull secrets hold, and for which repositories: a kubelet's keyring, with its rules for registries that
//! are written with a scheme, a path, or letters that stand for others.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use gantry_cri::image::Credentials;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

/// What Docker Hub is called where there is nothing else for it.
const DEFAULT_REGISTRIES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// With or without what fills the last letters.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Credentials with where they are for: a host, which may be a pattern, and the beginning of a path.
pub(super) struct Entry<Of = ()> {
    location: String,
    pub(super) credentials: Credentials,
    /// What they are from.
    pub(super) of: Of,
}

impl Entry {
    pub(super) fn with<Of>(self, of: Of) -> Entry<Of> {
        Entry {
            location: self.location,
            credentials: self.credentials,
            of,
        }
    }
}

/// Those of a Secret of one of the two types that are for it; of others none.
pub(super) fn of_secret(secret: &Secret) -> Vec<Entry> {
    let value = |key| secret.data.as_ref().and_then(|data| data.get(key));
    let (key, is_legacy) = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => (".dockerconfigjson", false),
        Some("kubernetes.io/dockercfg") => (".dockercfg", true),
        _ => return Vec::new(),
    };
    let parsed = value(key).and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
    let parsed: Value = parsed.unwrap_or_default();
    let auths = if is_legacy {
        Some(&parsed)
    } else {
        parsed.get("auths")
    };
    let auths = auths.and_then(Value::as_object).into_iter().flatten();
    auths
        .filter_map(|(written, entry)| {
            Some(Entry {
                location: location(written),
                credentials: credentials(entry)?,
                of: (),
            })
        })
        .collect()
}

/// Those that are for a repository, the most specific first; when there are none, those for Docker Hub if it is there.
pub(super) fn fitting<Of>(entries: Vec<Entry<Of>>, repository: &str) -> Vec<Entry<Of>> {
    let fits = |entry: &Entry<Of>| matches(&entry.location, repository);
    let (mut fitting, mut others): (Vec<_>, Vec<_>) = entries.into_iter().partition(fits);
    if fitting.is_empty() && repository.starts_with("docker.io/") {
        others.retain(|entry| DEFAULT_REGISTRIES.contains(&entry.location.as_str()));
        return others;
    }
    fitting.sort_by(|one, other| other.location.cmp(&one.location));
    fitting
}

/// Host and path, as a registry is written in a Secret: the versions of its API are no path.
fn location(written: &str) -> String {
    let bare = written.strip_prefix("https://");
    let bare = bare.or_else(|| written.strip_prefix("http://"));
    let bare = bare.unwrap_or(written);
    let (host, path) = bare.find('/').map_or((bare, ""), |at| bare.split_at(at));
    let of_version = ["/v1", "/v2"].iter().find_map(|version| {
        let rest = path.strip_prefix(version)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    });
    match of_version.unwrap_or(path) {
        "" | "/" => host.to_owned(),
        path => format!("{host}{path}"),
    }
}

/// Whether credentials for a location are for a repository: the host has as many parts, each as the pattern says, and the
/// path begins so.
fn matches(location: &str, repository: &str) -> bool {
    fn parts(name: &str) -> (&str, &str, &str) {
        let (host, path) = name.find('/').map_or((name, ""), |at| name.split_at(at));
        match host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port, path),
            _ => (host, "", path),
        }
    }
    let (pattern, pattern_port, begin) = parts(location);
    let (host, port, path) = parts(repository);
    port == pattern_port
        && path.starts_with(begin)
        && host.split('.').count() == pattern.split('.').count()
        && pattern
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, part)| is_like(pattern, part))
}

/// Whether a name is as a pattern says, with Go's `path.Match`.
fn is_like(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut place) = (0, 0);
    // Behind the last star, and where what it stands for ends so far.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let ahead = pattern.get(at..).unwrap_or_default();
        if ahead.first() == Some(&'*') {
            at += 1;
            star = Some((at, place));
            continue;
        }
        let letter = name.get(place);
        if ahead.is_empty() && letter.is_none() {
            return true;
        }
        if let Some(taken) = letter.and_then(|letter| first_is_like(ahead, *letter)) {
            at += taken;
            place += 1;
            continue;
        }
        match star {
            Some((after, end)) if end < name.len() => {
                star = Some((after, end + 1));
                (at, place) = (after, end + 1);
            }
            _ => return false,
        }
    }
}

/// How much of a pattern stands for this letter; `None` when it begins with something else.
fn first_is_like(pattern: &[char], letter: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == letter).then_some(2),
        ['[', class @ ..] => {
            let is_other = class.first() == Some(&'^');
            let mut at = usize::from(is_other);
            let mut is_in = false;
            let mut is_first = true;
            while is_first || class.get(at) != Some(&']') {
                is_first = false;
                let (low, next) = class_letter(class, at)?;
                let (high, next) = match class.get(next) {
                    Some('-') => class_letter(class, next + 1)?,
                    _ => (low, next),
                };
                is_in |= (low..=high).contains(&letter);
                at = next;
            }
            (is_in != is_other).then_some(at + 2)
        }
        [other, ..] => (*other == letter).then_some(1),
        [] => None,
    }
}

/// A letter of a class, and where the next one is.
fn class_letter(class: &[char], at: usize) -> Option<(char, usize)> {
    match class.get(at)? {
        '-' | ']' => None,
        '\\' => Some((*class.get(at + 1)?, at + 2)),
        letter => Some((*letter, at + 1)),
    }
}

fn credentials(entry: &Value) -> Option<Credentials> {
    let text = |key| entry.get(key).and_then(Value::as_str);
    if let Some(encoded) = text("auth").filter(|auth| !auth.is_empty()) {
        // Long ones may be in several lines.
        let encoded: String = encoded
            .chars()
            .filter(|letter| !"\r\n".contains(*letter))
            .collect();
        let decoded = BASE64.decode(encoded).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, password) = decoded.split_once(':')?;
        return Some(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        });
    }
    Some(Credentials {
        username: text("username")?.to_owned(),
        password: text("password")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, key: &str, content: &[u8]) -> Secret {
        Secret {
            type_: Some(kind.to_owned()),
            data: Some([(key.to_owned(), ByteString(content.to_vec()))].into()),
            ..Secret::default()
        }
    }

    fn config(auths: Value) -> Secret {
        let content = json!({ "auths": auths }).to_string();
        let kind = "kubernetes.io/dockerconfigjson";
        secret(kind, ".dockerconfigjson", content.as_bytes())
    }

    /// The users that are tried for a repository.
    fn users(secrets: &[Secret], repository: &str) -> Vec<String> {
        let entries = secrets.iter().flat_map(of_secret).collect();
        let fitting = fitting(entries, repository).into_iter();
        fitting.map(|entry| entry.credentials.username).collect()
    }

    fn of(user: &str) -> Value {
        json!({"username": user, "password": "p"})
    }

    #[test]
    fn the_most_specific_credentials_come_first_whichever_secret_has_them() {
        let first = config(json!({"registry.example": of("a"), "*.example": of("any")}));
        let second = config(json!({"https://registry.example/team": of("b"),
            "http://registry.example/v2/": of("c")}));
        let secrets = [first, second];
        let found = users(&secrets, "registry.example/team/app");
        assert_eq!(found, ["b", "a", "c", "any"]);
        assert_eq!(users(&secrets, "registry.example/other"), ["a", "c", "any"]);
        assert_eq!(users(&secrets, "mirror.example/other"), ["any"]);
        assert!(users(&secrets, "a.mirror.example/x").is_empty());
        assert!(users(&secrets, "registry.example:5000/x").is_empty());
        assert!(users(&secrets, "registry.example.org/x").is_empty());
    }

    #[test]
    fn docker_hub_has_many_names() {
        for name in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
        ] {
            let secrets = [config(
                json!({name: of("hub"), "registry.example": of("a")}),
            )];
            assert_eq!(
                users(&secrets, "docker.io/library/nginx"),
                ["hub"],
                "{name}"
            );
            assert_eq!(users(&secrets, "registry.example/x"), ["a"]);
        }
        let both = [config(
            json!({"index.docker.io": of("hub"), "docker.io/team": of("team")}),
        )];
        assert_eq!(users(&both, "docker.io/team/app"), ["team"]);
        assert_eq!(users(&both, "docker.io/other/app"), ["hub"]);
    }

    #[test]
    fn letters_that_stand_for_others() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a*b*c", "aXbYbZc", true),
            ("?", "a", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            ("[]x", "]x", false),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("ab", "a", false),
            ("a", "ab", false),
        ] {
            assert_eq!(is_like(pattern, name), expected, "{pattern} {name}");
        }
        let ports = [config(json!({"*.example:5000/team": of("a")}))];
        assert_eq!(users(&ports, "r.example:5000/team/x"), ["a"]);
        assert!(users(&ports, "r.example/team/x").is_empty());
    }

    #[test]
    fn what_secrets_hold() {
        let pair = |auth: &str| {
            let entries = of_secret(&config(json!({"r": {"auth": auth, "username": "no"}})));
            let found = entries.into_iter().next()?.credentials;
            Some((found.username, found.password))
        };
        let expected = Some(("b".to_owned(), "2:34".to_owned()));
        for auth in ["YjoyOjM0", "Yjoy\nOjM0"] {
            assert_eq!(pair(auth), expected, "{auth}");
        }
        let expected = Some(("b".to_owned(), "2:3".to_owned()));
        for auth in ["YjoyOjM=", "YjoyOjM"] {
            assert_eq!(pair(auth), expected, "{auth}");
        }
        assert_eq!(pair("!"), None);
        assert_eq!(pair("Yg=="), None, "no password");
        let legacy = secret(
            "kubernetes.io/dockercfg",
            ".dockercfg",
            json!({"r": of("old")}).to_string().as_bytes(),
        );
        assert_eq!(users(&[legacy], "r/image"), ["old"]);
        let content = json!({"auths": {"r": of("a")}}).to_string();
        let opaque = secret("Opaque", ".dockerconfigjson", content.as_bytes());
        assert!(users(&[opaque], "r/image").is_empty());
    }

    #[test]
    fn a_secret_that_is_no_object_gives_no_credentials() {
        for wrong in [
            "",
            "[]",
            "null",
            "1",
            "{\"auths\": []}",
            "{\"auths\": {\"r\": []}}",
        ] {
            let kind = "kubernetes.io/dockerconfigjson";
            let secret = secret(kind, ".dockerconfigjson", wrong.as_bytes());
            assert!(of_secret(&secret).is_empty(), "{wrong}");
        }
    }
}
