//! The tag of an image's reference, which decides how often the image is pulled.

/// The longest name of a repository with its registry.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// Whether it is letters and digits, with single dots, one or two underscores, or dashes between them.
fn is_component(text: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let mut separators = text.split(inner);
    let (first, last) = (text.starts_with(inner), text.ends_with(inner));
    first
        && last
        && separators.all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn is_registry(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte);
    text.starts_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '[')
        && text.bytes().all(allowed)
}

fn is_name(name: &str) -> bool {
    let repository = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            if !is_registry(first) {
                return false;
            }
            rest
        }
        _ => name,
    };
    // Sixty-four such digits alone are an image's own hash.
    let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.len() <= MAX_NAME && !is_hash && repository.split('/').all(is_component)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    let hash = digest.split_once(':').map(|(_, hash)| hash);
    hash.is_some_and(|hash| hash.len() >= 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The tag that a reference names: `latest` without tag and digest, none where only a digest is named or the reference is
/// none at all.
pub(super) fn tag(reference: &str) -> Option<&str> {
    let (named, digest) = match reference.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (reference, None),
    };
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    };
    if !is_name(name) || !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
        return None;
    }
    match digest {
        Some(_) => tag,
        None => tag.or(Some("latest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_behind_the_name() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (reference, expected) in [
            ("nginx", Some("latest")),
            ("nginx:1.25", Some("1.25")),
            ("reg.example:5000/a/b__c", Some("latest")),
            ("localhost:5000", Some("5000")),
            ("Reg/x:y", Some("y")),
            ("a@b", None),
            ("nginx:", None),
            ("UPPER:latest", None),
            (" x ", None),
            ("", None),
            ("a//b", None),
            ("a..b", None),
        ] {
            assert_eq!(tag(reference), expected, "{reference}");
        }
        assert_eq!(tag(&format!("a@{digest}")), None);
        assert_eq!(tag(&format!("a:latest@{digest}")), Some("latest"));
    }
}
