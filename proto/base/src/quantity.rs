//! Amounts of resources: `100m`, `1.5Gi`, `1e3`. Parsing, comparing, adding and the canonical form as in Kubernetes.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Which family of suffixes an amount was written with; kept through arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`
    BinarySi,
    /// `e3`
    DecimalExponent,
}

/// An exact amount in billionths. Parsed amounts do not exceed 2^63-1 units in magnitude.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not number and suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// A suffix nobody knows.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// Whole units.
    pub fn from_units(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            format: Format::DecimalSi,
        }
    }

    /// Thousandths, as CPU is counted.
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * 1_000_000,
            format: Format::DecimalSi,
        }
    }

    /// Billionths, as the use of CPU is counted.
    pub fn from_nanos(nanos: i64) -> Self {
        Self {
            nanos: i128::from(nanos),
            format: Format::DecimalSi,
        }
    }

    /// Whole units written with binary suffixes, as memory is counted.
    pub fn from_bytes(bytes: i64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            format: Format::BinarySi,
        }
    }

    /// Units, rounded up, saturating.
    pub fn units(&self) -> i64 {
        clamp(round_up(self.nanos, NANO))
    }

    /// Thousandths, rounded up, saturating.
    pub fn millis(&self) -> i64 {
        clamp(round_up(self.nanos, 1_000_000))
    }

    /// The exact amount in billionths.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// The family of suffixes.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The sum, in this amount's format (the other's when this is zero).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }

    /// So many times this amount.
    #[must_use]
    pub fn times(self, number: usize) -> Self {
        let number = i128::try_from(number).unwrap_or(i128::MAX);
        Self {
            nanos: self.nanos.saturating_mul(number),
            ..self
        }
    }

    /// The difference, in this amount's format (the other's when this is zero).
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self {
            nanos: other.nanos.saturating_neg(),
            ..other
        })
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Division away from zero.
fn round_up(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 {
        quotient
    } else {
        quotient + value.signum()
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let negative = text.starts_with('-');
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty())
            || fraction.contains('.')
            || !suffix_shape(suffix)
        {
            return Err(QuantityError::Format);
        }
        let (multiplier, exponent, format) = suffix_of(suffix).ok_or(QuantityError::Suffix)?;
        let nanos = scaled(whole, fraction, multiplier, exponent);
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// Letters of known suffixes, then perhaps a signed number.
fn suffix_shape(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    rest.bytes().all(|byte| byte.is_ascii_digit())
}

fn suffix_of(suffix: &str) -> Option<(i128, i32, Format)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((1, *exponent, Format::DecimalSi));
    }
    if let Some(power) = BINARY.iter().position(|name| *name == suffix) {
        return Some((1 << (10 * power), 0, Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
    Some((1, exponent, Format::DecimalExponent))
}

/// `whole.fraction * multiplier * 10^exponent` in billionths: rounded up, at most [`MAX`].
fn scaled(whole: &str, fraction: &str, multiplier: i128, exponent: i32) -> i128 {
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let mut power = i64::from(exponent) + 9 - fraction.len() as i64;
    let mut inexact = false;
    // Thirty digits are more than the largest amount has; beyond it only the magnitude counts.
    let kept = &digits[..digits.len().min(20)];
    if kept.len() < digits.len() {
        inexact = digits[kept.len()..].bytes().any(|byte| byte != b'0');
        power += (digits.len() - kept.len()) as i64;
    }
    let Ok(mut value) = kept.parse::<i128>() else {
        return MAX;
    };
    // Below 10^20 * 2^60 < 2^127: this product cannot overflow.
    value = value.saturating_mul(multiplier);
    while power > 0 && value <= MAX {
        value = value.saturating_mul(10);
        power -= 1;
    }
    while power < 0 && value > 0 {
        inexact |= value % 10 != 0;
        value /= 10;
        power += 1;
    }
    (value + i128::from(inexact)).min(MAX)
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return formatter.write_str("0");
        }
        let kibi = 1024 * NANO;
        if self.format == Format::BinarySi && (self.nanos >= kibi || self.nanos <= -kibi) {
            let mut units = round_up(self.nanos, NANO);
            let mut power = 0;
            while units % 1024 == 0 && power < BINARY.len() - 1 {
                units /= 1024;
                power += 1;
            }
            return write!(formatter, "{units}{}", BINARY[power]);
        }
        let (mut mantissa, mut at) = (self.nanos, 0);
        while mantissa % 1000 == 0 && at < DECIMAL.len() - 1 {
            mantissa /= 1000;
            at += 1;
        }
        let (suffix, exponent) = DECIMAL[at];
        match (self.format, exponent) {
            (Format::DecimalExponent, 0) => write!(formatter, "{mantissa}"),
            (Format::DecimalExponent, _) => write!(formatter, "{mantissa}e{exponent}"),
            _ => write!(formatter, "{mantissa}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0", "0"),
            ("0.0", "0"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e4", "120e3"),
            ("100000", "100k"),
            (".5", "500m"),
            ("5.", "5"),
            ("+1", "1"),
            ("-1.5", "-1500m"),
            ("0.1n", "1n"),
            ("1E", "1E"),
            ("123456789", "123456789"),
            ("100Ei", "9223372036854775807"),
            ("1e100", "9223372036854775807"),
        ] {
            assert_eq!(
                text.parse::<Quantity>().unwrap().to_string(),
                canonical,
                "{text}"
            );
        }
    }

    #[test]
    fn refusals() {
        for text in ["", "abc", "1KI", "1 ", "1.2.3", "--1", "1x", "."] {
            assert_eq!(
                text.parse::<Quantity>().unwrap_err(),
                QuantityError::Format,
                "{text}"
            );
        }
        for text in ["1mm", "1MK", "1ee3", "1K"] {
            assert_eq!(
                text.parse::<Quantity>().unwrap_err(),
                QuantityError::Suffix,
                "{text}"
            );
        }
    }

    #[test]
    fn arithmetic_keeps_the_format() {
        let sum = "1Gi"
            .parse::<Quantity>()
            .unwrap()
            .plus("512M".parse().unwrap());
        assert_eq!(sum.units(), 1_073_741_824 + 512_000_000);
        assert_eq!(sum.format(), Format::BinarySi);
        assert_eq!(sum.minus(sum).sign(), 0);
        assert_eq!(Quantity::from_millis(300).times(4).to_string(), "1200m");
        assert_eq!(Quantity::default().minus(sum).to_string(), "-1548576Ki");
        assert_eq!(Quantity::from_millis(1500).units(), 2);
        assert!(Quantity::from_units(1) < Quantity::from_millis(1001));
    }

    proptest::proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(number in -1_000_000_000i64..1_000_000_000, suffix in "(n|u|m|k|M|G|Ki|Mi|Gi|e3)?") {
            let quantity: Quantity = format!("{number}{suffix}").parse().unwrap();
            let text = quantity.to_string();
            let again: Quantity = text.parse().unwrap();
            proptest::prop_assert_eq!(again, quantity);
            proptest::prop_assert_eq!(again.to_string(), text);
        }

        #[test]
        fn never_panics(text in "[+-]?[0-9.eEinumkKMGTP+-]{0,30}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                proptest::prop_assert!(quantity.nanos().abs() <= MAX);
            }
        }
    }
}
