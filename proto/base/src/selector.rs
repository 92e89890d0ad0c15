//! Label and field selectors: parsed from query strings in Kubernetes' grammar, or taken from a `LabelSelector`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;

use crate::field::{ErrorList, Path, aggregate};
use crate::{meta, names};

/// How one requirement compares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Operator {
    Exists,
    DoesNotExist,
    /// `=`, `==` and `in`.
    In,
    /// `!=` and `notin`: also holds when the label is absent.
    NotIn,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    operator: Operator,
    /// Sorted: every object is compared with them.
    values: Vec<String>,
}

/// The most requirements of a selector. Each is looked at for every object that there is.
const MAX_REQUIREMENTS: usize = 1000;

fn too_many(found: usize) -> SelectorError {
    SelectorError(format!(
        "a selector may have at most {MAX_REQUIREMENTS} requirements, got {found}: use sets, as in 'key in (a,b)'"
    ))
}

impl Requirement {
    fn new(key: String, operator: Operator, mut values: Vec<String>) -> Self {
        values.sort();
        Self {
            key,
            operator,
            values,
        }
    }

    /// Whether Kubernetes has such a requirement; everything that is wrong with the values at once.
    fn check(&self) -> Result<(), String> {
        let (path, mut errors) = (Path::new("values"), ErrorList::default());
        let is_set = matches!(self.operator, Operator::In | Operator::NotIn);
        if is_set && self.values.is_empty() {
            let why = "for 'in', 'notin' operators, values set can't be empty";
            errors.invalid(&path, &self.values, why);
        }
        let is_bound = matches!(self.operator, Operator::GreaterThan | Operator::LessThan);
        for (index, value) in self.values.iter().enumerate() {
            if is_bound && value.parse::<i64>().is_err() {
                let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.invalid(&path.index(index), value, why);
            }
        }
        for (index, value) in self.values.iter().enumerate() {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                let path = path.index(index).key(&self.key);
                errors.invalid(&path, value, &wrong.join("; "));
            }
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(aggregate(&errors.told())),
        }
    }

    fn names(&self, value: &str) -> bool {
        let found = self
            .values
            .binary_search_by(|wanted| wanted.as_str().cmp(value));
        found.is_ok()
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|bound| number(bound));
        match self.operator {
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::In => value.is_some_and(|value| self.names(value)),
            Operator::NotIn => value.is_none_or(|value| !self.names(value)),
            Operator::GreaterThan => value
                .and_then(number)
                .zip(bound())
                .is_some_and(|(value, bound)| value > bound),
            Operator::LessThan => value
                .and_then(number)
                .zip(bound())
                .is_some_and(|(value, bound)| value < bound),
        }
    }
}

/// A conjunction of requirements on labels. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// From an absent `LabelSelector`, which selects no object.
    nothing: bool,
}

/// Why a selector cannot be used, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl LabelSelector {
    /// Matches no object.
    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser::new(text).parse()
    }

    /// All pairs must be present: a map selector such as a Service's.
    pub fn from_map(labels: &BTreeMap<String, String>) -> Self {
        Self {
            requirements: labels
                .iter()
                .map(|(key, value)| Requirement {
                    key: key.clone(),
                    operator: Operator::In,
                    values: vec![value.clone()],
                })
                .collect(),
            nothing: false,
        }
    }

    /// From the API type: absent selects nothing, empty everything. Unknown operators select nothing; validation
    /// refuses them before they are stored.
    pub fn from_api(selector: Option<&metav1::LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Self::nothing();
        };
        let mut result = Self::from_map(selector.match_labels.as_ref().unwrap_or(&BTreeMap::new()));
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Self::nothing(),
            };
            result.requirements.push(Requirement::new(
                expression.key.clone(),
                operator,
                expression.values.clone().unwrap_or_default(),
            ));
        }
        result
    }

    /// A label with its value that all have which match, when there is one: where things are kept by their labels, those
    /// that match are found without looking at all.
    pub fn common_label(&self) -> Option<(&str, &str)> {
        self.requirements.iter().find_map(|requirement| {
            match (&requirement.operator, requirement.values.as_slice()) {
                (Operator::In, [value]) => Some((requirement.key.as_str(), value.as_str())),
                _ => None,
            }
        })
    }

    /// Whether labels, given as a look-up, match.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self
                .requirements
                .iter()
                .all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Whether a label map matches.
    pub fn matches_map(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches(|key| {
            labels
                .and_then(|labels| labels.get(key))
                .map(String::as_str)
        })
    }

    /// Whether sorted label pairs match.
    pub fn matches_pairs(&self, labels: &[(String, String)]) -> bool {
        self.matches(|key| lookup(labels, key))
    }
}

/// Finds a value in pairs sorted by key.
fn lookup<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs
        .binary_search_by(|(name, _)| name.as_str().cmp(key))
        .ok()
        .map(|index| pairs[index].1.as_str())
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self
            .requirements
            .iter()
            .map(
                |Requirement {
                     key,
                     operator,
                     values,
                 }| {
                    match (operator, values.as_slice()) {
                        (Operator::Exists, _) => key.clone(),
                        (Operator::DoesNotExist, _) => format!("!{key}"),
                        (Operator::In, [value]) => format!("{key}={value}"),
                        (Operator::In, values) => format!("{key} in ({})", values.join(",")),
                        (Operator::NotIn, [value]) => format!("{key}!={value}"),
                        (Operator::NotIn, values) => format!("{key} notin ({})", values.join(",")),
                        (Operator::GreaterThan, values) => format!("{key}>{}", values.join(",")),
                        (Operator::LessThan, values) => format!("{key}<{}", values.join(",")),
                    }
                },
            )
            .collect();
        formatter.write_str(&texts.join(","))
    }
}

/// Checks a `LabelSelector` of an object's spec.
pub fn validate(selector: &metav1::LabelSelector, path: &Path, errors: &mut ErrorList) {
    let labels = selector.match_labels.as_ref();
    meta::validate_label_map(labels, &path.child("matchLabels"), errors);
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if expressions.len() > MAX_REQUIREMENTS {
        let path = path.child("matchExpressions");
        errors.too_many(&path, expressions.len(), MAX_REQUIREMENTS);
        return;
    }
    for (index, expression) in expressions.iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    &path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        let details = names::qualified_name(&expression.key);
        errors.invalid_each(&path.child("key"), &expression.key, details);
        for (index, value) in values.iter().enumerate() {
            let path = path.child("values").index(index);
            errors.invalid_each(&path, value, names::label_value(value));
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Symbol(&'static str),
    Word(String),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Symbol(symbol) => symbol,
            Self::Word(word) => word,
            Self::End => "",
        }
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self, Self::Symbol(known) if *known == symbol)
    }
}

/// Longest first, so that `==` is not read as two signs.
const SYMBOLS: &[&str] = &["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Parser {
    fn new(text: &str) -> Self {
        let mut tokens = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
                tokens.push(Token::Symbol(symbol));
                rest = &rest[symbol.len()..];
            } else {
                let end = rest
                    .find(|letter: char| letter.is_whitespace() || "=!(),<>".contains(letter))
                    .unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                rest = &rest[end..];
            }
            rest = rest.trim_start();
        }
        Self {
            tokens: tokens.into_iter().peekable(),
        }
    }

    fn next(&mut self) -> Token {
        self.tokens.next().unwrap_or(Token::End)
    }

    fn peek(&mut self) -> Token {
        self.tokens.peek().cloned().unwrap_or(Token::End)
    }

    fn parse(mut self) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => break,
                Token::Word(_) | Token::Symbol("!") => {
                    let requirement = self.requirement().map_err(|error| {
                        SelectorError(format!("unable to parse requirement: {error}"))
                    })?;
                    requirements.push(requirement);
                    let after = self.next();
                    match &after {
                        Token::End => break,
                        after if after.is(",") => {
                            let following = self.peek();
                            if !matches!(following, Token::Word(_)) && !following.is("!") {
                                return Err(SelectorError(format!(
                                    "found '{}', expected: identifier after ','",
                                    following.text()
                                )));
                            }
                        }
                        other => {
                            return Err(SelectorError(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            )));
                        }
                    }
                }
                other => {
                    return Err(SelectorError(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    )));
                }
            }
        }
        if requirements.len() > MAX_REQUIREMENTS {
            return Err(too_many(requirements.len()));
        }
        requirements.sort_by(|one: &Requirement, other| one.key.cmp(&other.key));
        Ok(LabelSelector {
            requirements,
            nothing: false,
        })
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.peek().is("!") {
            self.next();
            let key = self.key()?;
            return Ok(Requirement {
                key,
                operator: Operator::DoesNotExist,
                values: Vec::new(),
            });
        }
        let key = self.key()?;
        let next = self.peek();
        if next == Token::End || next.is(",") {
            return Ok(Requirement {
                key,
                operator: Operator::Exists,
                values: Vec::new(),
            });
        }
        let sign = self.next();
        let operator = match sign.text() {
            "in" | "=" | "==" => Operator::In,
            "notin" | "!=" => Operator::NotIn,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            other => {
                return Err(format!(
                    "found '{other}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        };
        let values = match sign.text() {
            "in" | "notin" => self.list()?,
            _ => vec![self.value()?],
        };
        let mut requirement = Requirement::new(key, operator, values);
        requirement.values.dedup();
        requirement.check()?;
        Ok(requirement)
    }

    fn key(&mut self) -> Result<String, String> {
        match self.next() {
            Token::Word(key) => match names::qualified_name(&key).join("; ") {
                fine if fine.is_empty() => Ok(key),
                wrong => Err(format!("<nil>: Invalid value: {key:?}: {wrong}")),
            },
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// A single value; nothing before `,` or the end is the empty value.
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::Word(value) => {
                self.next();
                Ok(value)
            }
            next if next == Token::End || next.is(",") => Ok(String::new()),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if !open.is("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        match self.peek() {
            Token::Word(_) => {}
            next if next.is(",") => {}
            next if next.is(")") => {
                self.next();
                return Ok(Vec::new());
            }
            other => {
                return Err(format!(
                    "found '{}', expected: ',', ')' or identifier",
                    other.text()
                ));
            }
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(value) => {
                    values.push(value);
                    match self.peek() {
                        next if next.is(",") => {}
                        next if next.is(")") => break,
                        other => {
                            return Err(format!("found '{}', expected: ',' or ')'", other.text()));
                        }
                    }
                }
                // Nothing between two commas, or between one and a bracket, is the empty value.
                next if next.is(",") => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    let following = self.peek();
                    if following.is(")") {
                        values.push(String::new());
                        break;
                    }
                    if following.is(",") {
                        self.next();
                        values.push(String::new());
                    }
                }
                other => {
                    return Err(format!(
                        "found '{}', expected: ',', or identifier",
                        other.text()
                    ));
                }
            }
        }
        // The bracket that was seen.
        self.next();
        Ok(values)
    }
}

/// A conjunction of `field=value` and `field!=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, value, and whether they must be equal.
    requirements: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Parses `a=b,c!=d,e==f`; `\\`, `\,` and `\=` stand for themselves in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        let mut parts = split_unescaped(text);
        // The first that is wrong is told, in this order.
        parts.sort_unstable();
        for part in parts {
            if part.is_empty() {
                continue;
            }
            let cannot = || {
                SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                ))
            };
            let (field, value, equal) = ["!=", "==", "="]
                .iter()
                .filter_map(|sign| part.find(sign).map(|at| (at, *sign)))
                .min_by_key(|(at, sign)| (*at, std::cmp::Reverse(sign.len())))
                .map(|(at, sign)| (&part[..at], &part[at + sign.len()..], sign != "!="))
                .ok_or_else(cannot)?;
            requirements.push((field.to_owned(), unescape(value)?, equal));
        }
        if requirements.len() > MAX_REQUIREMENTS {
            return Err(too_many(requirements.len()));
        }
        Ok(Self { requirements })
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The fields that are asked about.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|(field, _, _)| field.as_str())
    }

    /// The value a field must equal, when it must.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|(name, _, equal)| *equal && name == field)
            .map(|(_, value, _)| value.as_str())
    }

    /// The same requirements, of fields by other names.
    pub fn renamed<'a>(&'a self, name: impl Fn(&'a str) -> &'a str) -> Self {
        let requirements = self.requirements.iter();
        let renamed = requirements
            .map(|(field, value, equal)| (name(field).to_owned(), value.clone(), *equal));
        Self {
            requirements: renamed.collect(),
        }
    }

    /// Whether fields, given as a look-up, match; an absent field is empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|(name, value, equal)| (field(name).unwrap_or_default() == value) == *equal)
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let wrong = |what: String| SelectorError(format!("invalid field selector: {what}"));
    let mut plain = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    return Err(wrong(format!("invalid escape sequence: {sequence}")));
                }
            },
            // Go writes the character's number.
            ',' | '=' => {
                let code = u32::from(letter);
                return Err(wrong(format!("unescaped character in value: {code}")));
            }
            letter => plain.push(letter),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests;
