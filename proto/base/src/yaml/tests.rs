use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::stopwatch::Stopwatch;

fn value(text: &str) -> Value {
    document(text.as_bytes())
        .and_then(|document| document.to_value())
        .unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn refusal(text: &str) -> String {
    document(text.as_bytes())
        .and_then(|document| document.to_value())
        .expect_err("refused")
        .to_string()
}

#[test]
fn scalars_mean_what_they_mean_to_kubectl() {
    // As kubectl reads them.
    let recorded = [
        ("+1", json!(1)),
        ("-0x1F", json!(-31)),
        ("0x_1f", json!(31)),
        ("0b_1", json!(1)),
        ("0o17", json!(15)),
        ("-0o17", json!(-15)),
        ("08", json!(8)),
        ("09.5", json!(9.5)),
        ("010", json!(8)),
        ("0x", json!("0x")),
        ("1_000.5", json!(1000.5)),
        (".", json!(".")),
        (".5", json!(0.5)),
        ("5.", json!(5)),
        ("1e", json!("1e")),
        ("1e+3", json!(1000)),
        ("+.5", json!(0.5)),
        ("-.5", json!(-0.5)),
        ("0o", json!("0o")),
        ("1__0", json!(10)),
        ("_1", json!("_1")),
        ("0777_7", json!(4095)),
        ("9223372036854775807", json!(i64::MAX)),
        ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("0b111", json!(7)),
        ("-0b111", json!(-7)),
        ("+0b11", json!(3)),
        ("1e400", json!("1e400")),
        ("+0644", json!(420)),
        ("-0644", json!(-420)),
        ("1.0", json!(1)),
        ("1e30", json!(1e+30)),
        ("~", json!(null)),
        ("Null", json!(null)),
        ("NULL", json!(null)),
        ("null", json!(null)),
        ("nULL", json!("nULL")),
        ("n", json!(false)),
        ("N", json!(false)),
        ("No", json!(false)),
        ("no", json!(false)),
        ("off", json!(false)),
        ("OFF", json!(false)),
        ("oN", json!("oN")),
        ("On", json!(true)),
        ("on", json!(true)),
        ("ON", json!(true)),
        ("tRue", json!("tRue")),
        ("y", json!(true)),
        ("Y", json!(true)),
        ("yes", json!(true)),
        ("Yes", json!(true)),
        ("YES", json!(true)),
        ("true", json!(true)),
        (
            "2001-12-14t21:59:43.10-05:00",
            json!("2001-12-14t21:59:43.10-05:00"),
        ),
        ("2001-01-01", json!("2001-01-01")),
        ("1:20:30", json!("1:20:30")),
        ("-0", json!(0)),
        ("-0.0", json!(0)),
        ("123456789.5", json!(123456789.5)),
        ("0X1F", json!(31)),
        ("0B11", json!(3)),
        ("0O17", json!(15)),
        ("0644", json!(420)),
        ("0_", json!(0)),
        ("1_", json!(1)),
        ("1.5.2", json!("1.5.2")),
        ("1e5", json!(100000)),
        ("1E5", json!(100000)),
        ("0.5e-3", json!(0.0005)),
        ("00", json!(0)),
        ("007", json!(7)),
        ("0b2", json!("0b2")),
        ("0o8", json!("0o8")),
        ("0xG", json!("0xG")),
        ("+-1", json!("+-1")),
        ("<<x", json!("<<x")),
        ("inf", json!("inf")),
        ("nan", json!("nan")),
        (".infx", json!(".infx")),
        ("+inf", json!("+inf")),
        ("Infinity", json!("Infinity")),
        ("1,000", json!("1,000")),
        ("5m", json!("5m")),
        ("1Gi", json!("1Gi")),
        ("12e03", json!(12000)),
        ("-1e-5", json!(-1e-05)),
        ("1.e3", json!(1000)),
        ("!!str 5", json!("5")),
    ];
    for (text, expected) in recorded {
        assert_eq!(value(&format!("- {text}\n")), json!([expected]), "{text}");
        if !text.contains(',') {
            let flow = value(&format!("{{a: [{text}]}}"));
            assert_eq!(flow, json!({"a": [expected]}), "{text}");
        }
    }
    assert_eq!(
        value(
            "[a, 'b', \"c\\n\", '', 'yes', \"0644\", !!int '5', !!binary aGVsbG8=, !foo 5, !!bool yes]"
        ),
        json!(["a", "b", "c\n", "", "yes", "0644", 5, "hello", "5", true])
    );
    assert_eq!(
        value("a: |\n  x\n  y\nb: >\n  x\n  y\n"),
        json!({"a": "x\ny\n", "b": "x y\n"})
    );
    assert_eq!(value(""), Value::Null);
    assert_eq!(value("# nothing\n"), Value::Null);
    for (text, why) in [
        ("a: .inf", "json: unsupported value: +Inf"),
        ("[-.Inf]", "json: unsupported value: -Inf"),
        (".nan", "json: unsupported value: NaN"),
        (
            "a: !!int 5.0",
            "yaml: cannot decode !!float `5.0` as a !!int",
        ),
    ] {
        assert_eq!(refusal(text), why, "{text}");
    }
}

#[test]
fn keys_become_text() {
    assert_eq!(
        value("{1: a, true: b, 1.5: c, 1e6: d, '2': e, 010: f, .inf: g, 2001-01-01: h}"),
        json!({"1": "a", "true": "b", "1.5": "c", "1e+06": "d", "2": "e", "8": "f", ".inf": "g", "2001-01-01": "h"})
    );
    assert_eq!(
        value("{1.5e300: a, -1e39: b}"),
        json!({".inf": "a", "-.inf": "b"})
    );
    assert_eq!(
        refusal("{~: a}"),
        "unsupported map key of type: %!s(<nil>), key: <nil>"
    );
}

#[test]
fn a_key_that_is_given_twice_is_told() {
    let read = |text: &str| document(text.as_bytes()).expect("reads");
    let twice = read("a: 1\nb: {x: 1}\na: 2\ntrue: 1\nyes: 2\nb:\n  z: 1\n");
    assert_eq!(
        twice.to_value(),
        Ok(json!({"a": 2, "b": {"z": 1}, "true": 2}))
    );
    assert_eq!(
        twice.strict_error().as_deref(),
        Some(
            "yaml: unmarshal errors:\n  line 3: key \"a\" already set in map\n  line 5: key true already set in map\n  line 7: key \"b\" already set in map"
        )
    );
    // What is merged in is there to be overridden.
    let merged = read("a: &a {x: 1}\nb: {<<: *a, x: 2}\n");
    assert_eq!(merged.strict_error(), None);
    let many = read(&"a: 1\n".repeat(100_000));
    assert!(
        many.strict_error()
            .is_some_and(|error| error.len() < 100_000)
    );
}

#[test]
fn byte_order_marks_line_ends_and_encodings_are_read() {
    let expected = json!({"a": "ä", "b": [1]});
    assert_eq!(value("\u{feff}a: ä\r\nb:\r\n- 1\r\n"), expected);
    let wide: Vec<u16> = "\u{feff}a: ä\nb: [1]\n".encode_utf16().collect();
    for bytes in [
        wide.iter()
            .flat_map(|unit| unit.to_le_bytes())
            .collect::<Vec<u8>>(),
        wide.iter().flat_map(|unit| unit.to_be_bytes()).collect(),
    ] {
        let document = document(&bytes).expect("UTF-16");
        assert_eq!(document.to_value(), Ok(expected.clone()));
    }
    assert!(document(b"a: \xff\xff").is_err());
    assert!(refusal("a: \u{0}").contains("control characters"));
}

#[test]
fn aliases_and_merge_keys_stand_for_what_they_name() {
    let text = "base: &base {a: 1, b: 2}\nother: &base2 {b: 3, c: 4}\nx: {<<: [*base, *base2], a: 9}\nz: *base\n";
    assert_eq!(
        value(text),
        json!({
            "base": {"a": 1, "b": 2}, "other": {"b": 3, "c": 4},
            "x": {"a": 9, "b": 2, "c": 4}, "z": {"a": 1, "b": 2},
        })
    );
    // As for go-yaml, a merge key wins over what stands before it.
    assert_eq!(value("{a: 9, b: 8, <<: {a: 1}}"), json!({"a": 1, "b": 8}));
    // An anchor may be given again; an alias means the last one before it.
    assert_eq!(value("[&a 1, *a, &a 2, *a]"), json!([1, 1, 2, 2]));
    assert_eq!(value("{'<<': 1}"), json!({"<<": 1}));
    assert_eq!(
        value("{!!merge <<: {a: 1}, !!str <<: 2}"),
        json!({"a": 1, "<<": 2})
    );
    for (text, why) in [
        ("&a [*a]", "contains itself"),
        ("[*nobody]", "anchor"),
        ("a: {<<: 5}", "map merge requires"),
        ("{[1]: 2}", "invalid map key"),
    ] {
        assert!(refusal(text).contains(why), "{text}: {}", refusal(text));
    }
}

#[test]
fn errors_have_gos_words_and_place() {
    assert_eq!(
        refusal("a: b: c"),
        "yaml: mapping values are not allowed in this context"
    );
    assert!(
        refusal("a: 1\nb: [\n").starts_with("yaml: line "),
        "{}",
        refusal("a: 1\nb: [\n")
    );
    assert!(refusal("a: 1\n---\nb: 2\n").contains("one document"));
    let many = documents(b"a: 1\n---\n---\nb: 2\n...\n").expect("reads");
    let values: Result<Vec<Value>, _> = many.iter().map(Document::to_value).collect();
    assert_eq!(
        values,
        Ok(vec![json!({"a": 1}), Value::Null, json!({"b": 2})])
    );
}

#[test]
fn nesting_is_bounded_however_it_is_written() {
    let depth = 100_000;
    let chain: String = (1..200)
        .map(|at| format!("- &x{at} [[[*x{}]]]\n", at - 1))
        .collect();
    for text in [
        "[".repeat(depth),
        "{a: ".repeat(depth),
        "[{a: ".repeat(depth),
        "- ".repeat(depth),
        "? ".repeat(depth),
        "[\n".repeat(depth),
        (0..2_000)
            .map(|at| format!("{}a:\n", " ".repeat(at)))
            .collect(),
        "a: ".repeat(depth),
        "!!seq [".repeat(depth),
        (0..depth).map(|at| format!("&a{at} [")).collect(),
        format!("- &x0 1\n{chain}"),
    ] {
        let started = Stopwatch::start();
        assert!(document(text.as_bytes()).is_err(), "{}", &text[..20]);
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{}",
            &text[..20]
        );
    }
    let deepest = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert!(document(deepest.as_bytes()).is_ok());
    assert_eq!(
        refusal(&format!("[{deepest}]")),
        format!("yaml: exceeded max depth of {MAX_DEPTH}")
    );
}

#[test]
fn what_aliases_add_is_bounded() {
    let large = "x".repeat(100_000);
    let laughs: String = (1..30)
        .map(|at| {
            format!(
                "a{at}: &a{at} [{}]\n",
                vec![format!("*a{}", at - 1); 10].join(",")
            )
        })
        .collect();
    let merged = format!(
        "a: &a {{{}}}\nb: [{}]\n",
        keys(1000),
        "{<<: *a},".repeat(2000)
    );
    for text in [
        format!("a: &a {large}\nb: [{}]\n", "*a,".repeat(3000)),
        format!("a0: &a0 lol\n{laughs}"),
        merged,
        format!(
            "a: &a {large}\n{}",
            (0..3000)
                .map(|at| format!("b{at}: *a\n"))
                .collect::<String>()
        ),
    ] {
        let started = Stopwatch::start();
        assert!(refusal(&text).ends_with("document contains excessive aliasing"));
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    // Many small ones are nothing to mind.
    let small = format!("a: &a 1\nb: [{}]\n", vec!["*a"; 3000].join(","));
    assert_eq!(value(&small)["b"].as_array().map(Vec::len), Some(3000));
}

fn keys(count: usize) -> String {
    (0..count).map(|at| format!("k{at}: 1,")).collect()
}

#[test]
fn reading_takes_linear_time() {
    type Shape = (&'static str, fn(usize) -> String);
    let shapes: [Shape; 14] = [
        ("items", |size| "- a\n".repeat(size / 4)),
        ("flow items", |size| format!("[{}]", "1,".repeat(size / 2))),
        ("keys", |size| {
            (0..size / 8).map(|at| format!("k{at}: 1\n")).collect()
        }),
        ("the same key", |size| "a: 1\n".repeat(size / 5)),
        ("anchors", |size| format!("[{}]", "&a 1,".repeat(size / 5))),
        ("aliases", |size| {
            format!("[&a 1,{}]", "*a,".repeat((size / 3).min(80_000)))
        }),
        ("tags", |size| format!("[{}]", "!!str a,".repeat(size / 8))),
        ("documents", |size| "---\n".repeat(size / 4)),
        ("a plain scalar", |size| format!("a: {}", "x".repeat(size))),
        ("words over lines", |size| {
            format!("a:\n{}", "  x\n".repeat(size / 4))
        }),
        ("a quoted scalar", |size| {
            format!("a: \"{}\"", "\\n".repeat(size / 2))
        }),
        ("a block scalar", |size| {
            format!("a: |\n{}", "  x\n".repeat(size / 4))
        }),
        ("comments", |size| "#\n".repeat(size / 2)),
        ("blank lines", |size| "\n".repeat(size)),
    ];
    for (name, shape) in shapes {
        let time = |size| {
            let text = shape(size);
            let started = Stopwatch::start();
            drop(documents(text.as_bytes()));
            started.elapsed()
        };
        time(1 << 16);
        let (small, large) = (time(1 << 16), time(1 << 20));
        // Sixteen times as much; quadratic would be 256 times as long.
        assert!(
            large < small * 80 + Duration::from_millis(200),
            "{name}: {small:?} for 64 KiB, {large:?} for 1 MiB"
        );
    }
}

#[test]
fn objects_of_a_file_are_read_as_kubectl_reads_them() {
    let values = |text: &[u8]| objects(text).map(|objects| objects.values);
    let one_and_two = Ok(vec![json!({"a": 1}), json!({"a": 2})]);
    for text in [
        "a: 1\n---\na: 2\n",
        "--- # one\na: 1\n---\n--- \t\r\na: 2\n...\n",
        "---\r\na: 1\r\n---\r\n# nothing\r\n---\r\na: 2\r\n",
        "%YAML 1.1\n---\na: 1\n---\na: 2",
        "{\"a\":1}{\"a\":2}",
        "\u{feff}{\"a\":1}\n\n{\n  \"a\": 2\n}\n",
        "{\"a\":1}\n---\na: 2\n",
        "a: 1\n---\n{\"a\": 2}\n",
        "{a: 1}\n---\n{'a': 2} # two\n",
        "---\nnull\n---\na: 1\n---\na: 2",
    ] {
        assert_eq!(values(text.as_bytes()), one_and_two, "{text:?}");
    }
    assert_eq!(
        values(br#"{"a": "\ud83d\ude00\/"}"#),
        Ok(vec![json!({"a": "\u{1f600}/"})])
    );
    for (text, why) in [
        (
            "a: 1\n--- text\na: 2\n",
            "invalid Yaml document separator: text",
        ),
        (
            "a: 1\n---\na: b: c\n",
            "error converting YAML to JSON: yaml: line 3: mapping values are not allowed in this context",
        ),
        ("{\"a\": 1}{\"a\": 2,}{", "json: "),
        ("{\"a\": ", "json: "),
    ] {
        let told = objects(text.as_bytes()).expect_err(text).to_string();
        assert!(told.starts_with(why), "{told}");
    }
    let twice = objects(b"a: 1\n---\nb: 1\na: 2\na: 3\n").expect("the last one counts");
    assert_eq!(twice.values, [json!({"a": 1}), json!({"a": 3, "b": 1})]);
    assert_eq!(twice.duplicates, ["line 5: key \"a\" already set in map"]);
    assert_eq!(values(b"{\"a\": 1, \"a\": 2}"), Ok(vec![json!({"a": 2})]));
    // Bytes that are no text may stand where they mean nothing.
    assert_eq!(values(b"a: 1 # \xe4\n"), Ok(vec![json!({"a": 1})]));
    for text in [&b"a: \xe4\n"[..], b"[{b\xe4: 1}]", b"a: \0 # \xe4\n"] {
        assert!(objects(text).is_err(), "{text:?}");
    }
}

#[test]
fn what_is_written_is_what_kubectl_writes() {
    let recorded: Value =
        serde_json::from_str(include_str!("recorded/written.json")).expect("JSON");
    let written = to_string(&recorded);
    for (ours, theirs) in written
        .lines()
        .zip(include_str!("recorded/written.yaml").lines())
    {
        assert_eq!(ours, theirs);
    }
    assert_eq!(written, include_str!("recorded/written.yaml"));
    assert_eq!(value(&written), shortened(&recorded));
    let items = recorded["nested"].as_array().expect("a list");
    let parts: String = items.iter().map(item_to_string).collect();
    assert_eq!(
        to_string(&json!({"nested": items})),
        format!("nested:\n{parts}")
    );
    assert_eq!(
        to_string(&json!({"<<": "a\u{2028}b", "\u{85}": "\u{7f}"})),
        "\"<<\": \"a\\Lb\"\n\"\\N\": \"\\x7F\"\n"
    );
    assert_eq!(to_string(&json!([])), "[]\n");
    assert_eq!(to_string(&json!("yes")), "\"yes\"\n");
}

#[test]
fn any_keys_have_some_order() {
    // go-yaml's comparison goes round in circles here.
    let keys = [
        "a10", "a1b", "a01", "a2", "a1", "a001", "a1c", "a20", "a010",
    ];
    for from in 0..keys.len() {
        let object: Value = keys[from..]
            .iter()
            .map(|key| ((*key).to_owned(), json!(1)))
            .collect();
        assert_eq!(value(&to_string(&object)), object);
    }
    let many: Value = (0..50_000)
        .map(|at| (format!("k{at}"), json!(at)))
        .collect();
    let text = to_string(&many);
    assert!(text.starts_with("k0: 0\nk1: 1\nk2: 2\n"));
    assert_eq!(value(&text), many);
}

/// A value in which whole floats are whole numbers, which YAML and JSON do not tell apart.
fn shortened(value: &Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64().and_then(scalar::whole_of) {
            Some(whole) if number.is_f64() => json!(whole),
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(shortened).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), shortened(value)))
            .collect(),
        other => other.clone(),
    }
}

fn values() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[-?:,\\[\\]{}#&*!|>'\"%@ `a1.~<\n\r\t=yn0xe_]{0,12}",
        "[a ]{60,200}",
        any::<String>(),
    ]
    .boxed();
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    scalar.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((text.clone(), inner), 0..6)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_was(written in values()) {
        let object = json!({ "a": written });
        prop_assert_eq!(value(&to_string(&object)), shortened(&object));
    }

    #[test]
    fn never_panics(text in "[-?:,\\[\\]{}#&*!|>'\"%@ `a1.~<\n\r\t]{0,60}") {
        drop(objects(text.as_bytes()));
        if let Ok(documents) = documents(text.as_bytes()) {
            for document in documents {
                // Only keys can be refused by then.
                drop(document.to_value());
            }
        }
    }
}
