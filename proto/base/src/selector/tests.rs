//! Selectors and what is said of those that cannot be read.

use super::*;

fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    LabelSelector::parse(selector)
        .expect(selector)
        .matches_map(Some(&labels))
}

#[test]
fn a_label_that_all_have_is_told() {
    for (selector, label) in [
        ("app=web", Some(("app", "web"))),
        ("tier,app in (web),x=y", Some(("app", "web"))),
        ("app in (web,db),!tier,x!=y", None),
        ("", None),
    ] {
        let selector = LabelSelector::parse(selector).expect(selector);
        assert_eq!(selector.common_label(), label, "{selector}");
    }
    assert_eq!(LabelSelector::nothing().common_label(), None);
}

#[test]
fn every_operator_selects() {
    let labels = [("app", "web"), ("tier", "front"), ("size", "7")];
    for (selector, expected) in [
        ("", true),
        ("app=web,tier!=back", true),
        ("app == web", true),
        ("app in (web, db)", true),
        ("app notin (web)", false),
        ("nope notin (web)", true),
        ("nope!=x", true),
        ("app", true),
        ("!app", false),
        ("!nope", true),
        ("size>6,size<8", true),
        ("size>7", false),
        ("app=", false),
    ] {
        assert_eq!(matches(selector, &labels), expected, "{selector}");
    }
}

#[test]
fn what_cannot_be_parsed_is_told_as_kubernetes_does() {
    for (selector, message) in [
        ("par=ev en", "found 'en', expected: ',' or 'end of string'"),
        (
            "a in",
            "unable to parse requirement: found '' expected: '('",
        ),
        (
            "in (a)",
            "unable to parse requirement: found '(', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "=x",
            "found '=', expected: !, identifier, or 'end of string'",
        ),
        ("par=a=b", "found '=', expected: ',' or 'end of string'"),
        (
            "i>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
        (
            "i gt 5",
            "unable to parse requirement: found 'gt', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "a in ()",
            "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
        ),
        (
            "a in (",
            "unable to parse requirement: found '', expected: ',', ')' or identifier",
        ),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "a in (b,",
            "unable to parse requirement: found '', expected: ',', or identifier",
        ),
        (
            "a in (b c)",
            "unable to parse requirement: found 'c', expected: ',' or ')'",
        ),
        ("a,", "found '', expected: identifier after ','"),
        ("!a=b", "found '=', expected: ',' or 'end of string'"),
    ] {
        let error = LabelSelector::parse(selector).expect_err(selector);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn long_selectors_cost_little_and_endless_ones_are_refused() {
    let values: Vec<String> = (0..100_000).map(|at| format!("v{at}")).collect();
    let text = format!("a in ({0}),b notin ({0})", values.join(","));
    let selector = LabelSelector::parse(&text).expect("parses");
    let started = crate::stopwatch::Stopwatch::start();
    let labels = BTreeMap::from([("a", "v99999"), ("b", "w")]);
    for _ in 0..10_000 {
        assert!(selector.matches(|key| labels.get(key).copied()));
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(2));
    for text in [
        (0..1001).map(|at| format!("a{at}!=b")).collect::<Vec<_>>(),
        vec!["!a".to_owned(); 1001],
        vec!["a".to_owned(); 100_000],
    ] {
        let error = LabelSelector::parse(&text.join(",")).expect_err("endless");
        assert!(error.to_string().contains("at most 1000 requirements"));
    }
    assert!(FieldSelector::parse(&"a!=b,".repeat(1001)).is_err());
    assert!(LabelSelector::parse(&"(".repeat(100_000)).is_err());
    assert!(LabelSelector::parse(&"!".repeat(100_000)).is_err());
}

#[test]
fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
    assert!(!LabelSelector::from_api(None).matches_map(None));
    assert!(LabelSelector::from_api(Some(&metav1::LabelSelector::default())).matches_map(None));
}

#[test]
fn fields_are_compared_and_unescaped() {
    let selector =
        FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running,x==y").expect("valid");
    let fields = |field: &str| match field {
        "metadata.name" => Some("a,b"),
        "x" => Some("y"),
        _ => None,
    };
    assert!(selector.matches(fields));
    assert_eq!(selector.exact("metadata.name"), Some("a,b"));
    for (selector, message) in [
        (
            "metadata.name",
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'",
        ),
        ("z,a", "invalid selector: 'z,a'; can't understand 'a'"),
        (
            "metadata.name=a=b",
            "invalid field selector: unescaped character in value: 61",
        ),
        (
            r"metadata.name=a\b",
            r"invalid field selector: invalid escape sequence: \b",
        ),
        (
            r"metadata.name=a\",
            r"invalid field selector: invalid escape sequence: \",
        ),
    ] {
        let error = FieldSelector::parse(selector).expect_err(selector);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn values_are_sets_and_all_wrong_ones_are_told() {
    let selector = LabelSelector::parse("a in (c,b,c,),d in (,)").expect("valid");
    assert_eq!(selector.to_string(), "a in (,b,c),d=");
    let error = LabelSelector::parse("a in (b$,c$)").expect_err("two wrong values");
    let told = error.to_string();
    let start =
        "unable to parse requirement: [values[0][a]: Invalid value: \"b$\": a valid label must";
    assert!(told.starts_with(start), "{told}");
    assert!(
        told.contains(", values[1][a]: Invalid value: \"c$\": "),
        "{told}"
    );
}
