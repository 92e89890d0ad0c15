use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

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
fn scalars_mean_what_the_core_schema_says() {
    let text = "[a, 'b', \"c\\n\", 1, -2, 0x1F, -0o17, 0b11, 007, 1.5, 1e3, ~, null, '', true, yes, 1_000, 99999999999999999999, .5, inf, +1, 1.2.3, !!str 5, !!int '5']";
    assert_eq!(
        value(text),
        json!([
            "a", "b", "c\n", 1, -2, 31, -15, 3, "007", 1.5, 1000.0, null, null, "", true, "yes",
            "1_000", 1e20, 0.5, "inf", 1, "1.2.3", "5", 5
        ])
    );
    assert_eq!(
        value("a: |\n  x\n  y\nb: >\n  x\n  y\n5: 6\n"),
        json!({"a": "x\ny\n", "b": "x y\n", "5": 6})
    );
    assert_eq!(value(""), Value::Null);
    assert_eq!(value("# nothing\n"), Value::Null);
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
    let text = "base: &base {a: 1, b: 2}\nother: &base2 {b: 3, c: 4}\nx: {<<: [*base, *base2], a: 9}\ny: *base\n";
    assert_eq!(
        value(text),
        json!({
            "base": {"a": 1, "b": 2}, "other": {"b": 3, "c": 4},
            "x": {"a": 9, "b": 2, "c": 4}, "y": {"a": 1, "b": 2},
        })
    );
    // An anchor may be given again; an alias means the last one before it.
    assert_eq!(value("[&a 1, *a, &a 2, *a]"), json!([1, 1, 2, 2]));
    assert_eq!(value("{'<<': 1}"), json!({"<<": 1}));
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
        let started = Instant::now();
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
        let started = Instant::now();
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
            let started = Instant::now();
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

proptest::proptest! {
    #[test]
    fn never_panics(text in "[-?:,\\[\\]{}#&*!|>'\"%@ `a1.~<\n\r\t]{0,60}") {
        if let Ok(documents) = documents(text.as_bytes()) {
            for document in documents {
                // Only keys can be refused by then.
                drop(document.to_value());
            }
        }
    }
}
