//! The hash that names a pod template.

use k8s_openapi::api::core::v1::PodTemplateSpec;

const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template; `collisions` sets apart templates whose hashes are the same.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash = 0x811c_9dc5_u32;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(
        serde_json::to_string(template)
            .unwrap_or_default()
            .as_bytes(),
    );
    if let Some(collisions) = collisions {
        feed(&u64::from(collisions.cast_unsigned()).to_le_bytes());
    }
    safe(&hash.to_string())
}

/// Digits as letters that make no words and cannot be mistaken for one another.
fn safe(digits: &str) -> String {
    digits
        .bytes()
        .map(|byte| char::from(SAFE[usize::from(byte) % SAFE.len()]))
        .collect()
}
