//! Taints of nodes, and the tolerations of pods that cover them.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// The effect that keeps pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The effect that keeps pods away, and makes those go that are there.
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether the toleration covers the taint.
pub fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    fn given(text: Option<&String>) -> Option<&str> {
        text.map(String::as_str).filter(|text| !text.is_empty())
    }
    let key = given(toleration.key.as_ref());
    let operator = given(toleration.operator.as_ref()).unwrap_or("Equal");
    if given(toleration.effect.as_ref()).is_some_and(|effect| effect != taint.effect)
        || key.is_some_and(|key| key != taint.key)
    {
        return false;
    }
    let own = toleration.value.as_deref().unwrap_or_default();
    let other = taint.value.as_deref().unwrap_or_default();
    let numbers = || other.parse::<i64>().ok().zip(own.parse::<i64>().ok());
    match operator {
        "Exists" => true,
        "Equal" => key.is_some() && own == other,
        "Gt" => key.is_some() && numbers().is_some_and(|(taint, own)| taint > own),
        "Lt" => key.is_some() && numbers().is_some_and(|(taint, own)| taint < own),
        _ => false,
    }
}

/// Whether one of the tolerations covers the taint.
pub fn is_tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations
        .iter()
        .any(|toleration| covers(toleration, taint))
}

/// Whether a taint of that effect keeps pods away that do not tolerate it.
pub fn keeps_away(taint: &Taint) -> bool {
    matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_cover_by_key_value_and_effect() {
        let taint = Taint {
            key: "dedicated".to_owned(),
            value: Some("gpu".to_owned()),
            effect: NO_SCHEDULE.to_owned(),
            time_added: None,
        };
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        for (key, operator, value, effect, expected) in [
            ("dedicated", "Equal", "gpu", "NoSchedule", true),
            ("dedicated", "", "gpu", "", true),
            ("dedicated", "Equal", "cpu", "", false),
            ("dedicated", "Exists", "", "NoExecute", false),
            ("dedicated", "Exists", "", "", true),
            ("other", "Exists", "", "", false),
            ("", "Exists", "", "", true),
            ("", "Equal", "", "", false),
        ] {
            let toleration = Toleration {
                key: text(key),
                operator: text(operator),
                value: text(value),
                effect: text(effect),
                toleration_seconds: None,
            };
            assert_eq!(covers(&toleration, &taint), expected, "{toleration:?}");
            assert_eq!(is_tolerated(&[toleration], &taint), expected);
        }
    }
}
