use proptest::prelude::*;

use super::*;

fn wanted(names: &[(&str, &[&str])]) -> Wanted {
    let mut wanted = Wanted::default();
    for (name, labels) in names {
        let labels = labels.iter().map(|label| (*label).to_owned());
        wanted.add((*name).to_owned(), labels);
    }
    wanted
}

fn read(wanted: &Wanted, text: &str) -> Result<Vec<Series>, Rubbish> {
    let mut reader = Reader::new(wanted);
    reader.take(text.as_bytes())?;
    reader.finish()
}

/// Values by name, with the values of the labels behind it.
fn values(wanted: &Wanted, text: &str) -> Vec<(String, f64)> {
    let series = read(wanted, text).expect("it can be read");
    let names = series.into_iter().map(|series| {
        let labels = series.labels.into_values();
        let name: Vec<String> = std::iter::once(series.name).chain(labels).collect();
        (name.join(" "), series.value)
    });
    names.collect()
}

#[test]
fn wanted_series_are_kept_and_added_up_by_wanted_labels() {
    let text = "# HELP hits_total All of them: {not a sample}\n\
        # TYPE hits_total counter\n\
        hits_total{method=\"get\",code=\"200\"} 1027 1395066363000\n\
        hits_total{method=\"post\",code=\"200\",} 3\n\
        hits_total { method = \"get\" , code = \"500\" }\t4e0\n\
        \n\
        hits_total_other 7\n\
        depth 1.5\n\
        other{a=\"b} broken where nobody looks\n";
    let all = wanted(&[("hits_total", &[]), ("depth", &["method"])]);
    let expected = [("depth".to_owned(), 1.5), ("hits_total".to_owned(), 1034.0)];
    assert_eq!(values(&all, text), expected);
    let by_method = wanted(&[("hits_total", &["method", "missing"])]);
    let expected = [
        ("hits_total get".to_owned(), 1031.0),
        ("hits_total post".to_owned(), 3.0),
    ];
    assert_eq!(values(&by_method, text), expected);
    assert_eq!(read(&Wanted::default(), text), Ok(Vec::new()));
}

#[test]
fn labels_are_told_as_they_are_meant() {
    let by_path = wanted(&[("a", &["path"])]);
    let text = r#"a{path="C:\\DIR\\\"x\"\n{},=#",other="}"} 1"#;
    let expected = [("a C:\\DIR\\\"x\"\n{},=#".to_owned(), 1.0)];
    assert_eq!(values(&by_path, text), expected);
    assert_eq!(values(&by_path, "a{} 2"), [("a".to_owned(), 2.0)]);
    // OpenMetrics: an exemplar, and nothing behind the end.
    let text = "a{path=\"/\"} 3 # {trace=\"x\"} 0.6\n# EOF\na 4\n<html>\n";
    assert_eq!(values(&by_path, text), [("a /".to_owned(), 3.0)]);
}

#[test]
fn what_is_no_number_or_has_no_end_is_no_value() {
    let all = wanted(&[("a", &[])]);
    for text in ["a NaN", "a +Inf", "a -Inf", "a 1e400", "a 1e308\na 1e308"] {
        assert_eq!(read(&all, text), Ok(Vec::new()), "{text}");
    }
    assert_eq!(values(&all, "a NaN\na -2.5"), [("a".to_owned(), -2.5)]);
}

#[test]
fn counters_are_known_by_their_type_or_their_name() {
    let names: [(&str, &[&str]); 1] = [("x", &[])];
    let is_counter = |name: &str, text: &str| {
        let mut names = names;
        names[0].0 = name;
        let wanted = wanted(&names);
        let text = format!("{text}\n{name} 1\n");
        read(&wanted, &text).expect("it can be read")[0].is_counter
    };
    for (name, text, expected) in [
        ("a", "", false),
        ("a", "# TYPE a counter", true),
        ("a", "# TYPE a gauge", false),
        ("a_total", "", true),
        ("a_total", "# TYPE a_total gauge", false),
        ("a_total", "# TYPE a counter", true),
        ("a_total", "# TYPE a unknown", true),
        ("a_total", "# TYPE a gauge", false),
        ("a_count", "", false),
        ("a_count", "# TYPE a histogram", true),
        ("a_sum", "# TYPE a summary", true),
        ("a_bucket", "# TYPE a histogram", true),
        ("a_bucket", "# TYPE a summary", false),
        ("a_count", "# TYPE a gauge", false),
    ] {
        assert_eq!(is_counter(name, text), expected, "{name} {text}");
    }
}

#[test]
fn rubbish_is_told_of_with_its_line() {
    let all = wanted(&[("a", &["b"])]);
    for text in [
        "<html><body>",
        "{\"a\": 1}",
        "1a 2",
        "a",
        "a{",
        "a{b} 1",
        "a{b=} 1",
        "a{b=\"} 1",
        "a{b=\"c\"d=\"e\"} 1",
        "a{=\"c\"} 1",
        "a{b=\"c\"}",
        "a one",
        "a\u{e9} 1",
        "-",
        "\u{0}",
    ] {
        let text = format!("a 1\n{text}");
        let refused = read(&all, &text).expect_err(&text);
        assert!(
            matches!(refused, Rubbish::Unreadable { line: 2, .. }),
            "{text}: {refused}"
        );
        assert!(!refused.to_string().contains('\u{0}') && refused.to_string().len() < 300);
    }
}

#[test]
fn nothing_is_without_end() {
    let all = wanted(&[("a", &["b"])]);
    let endless = |piece: &str| {
        let mut reader = Reader::new(&all);
        for taken in 1.. {
            if let Err(why) = reader.take(piece.as_bytes()) {
                return (taken * piece.len(), why);
            }
        }
        unreachable!("it ends")
    };
    let (taken, why) = endless("x");
    assert_eq!((taken, why), (LINE_BYTES + 1, Rubbish::LongLine(1)));
    let (taken, why) = endless("\n");
    assert_eq!((taken, why), (LINES + 1, Rubbish::TooManyLines));
    let line = format!("# {}\n", "x".repeat(10_000));
    let (taken, why) = endless(&line);
    assert_eq!(why, Rubbish::TooLarge);
    assert!(taken <= BYTES + line.len());
    let long = format!("a 1\n#{}\n", "x".repeat(LINE_BYTES));
    assert_eq!(read(&all, &long), Err(Rubbish::LongLine(2)));
    let series = |count: usize, size: usize| {
        let lines = (0..count).map(|number| format!("a{{b=\"{number:0size$}\"}} 1\n"));
        read(&all, &lines.collect::<String>())
    };
    assert_eq!(series(SERIES, 8).map(|all| all.len()), Ok(SERIES));
    assert_eq!(series(SERIES + 1, 8), Err(Rubbish::TooManySeries));
    assert_eq!(series(SERIES, 300), Err(Rubbish::TooManySeries));
}

proptest! {
    #[test]
    fn it_does_not_matter_in_which_pieces_an_answer_comes(
        values in proptest::collection::vec((0..3_usize, 0..4_u8, -1e6..1e6_f64), 0..20),
        cuts in proptest::collection::vec(1..9_usize, 1..20),
    ) {
        let names = ["a", "a_total", "other"];
        let lines = values.iter().map(|(name, label, value)| {
            format!("{}{{b=\"{label}\",z=\"\\\"\"}} {value}\r\n", names[*name])
        });
        let text = lines.collect::<String>();
        let wanted = wanted(&[("a", &["b"]), ("a_total", &[])]);
        let whole = read(&wanted, &text).expect("it can be read");
        let mut reader = Reader::new(&wanted);
        let (mut rest, mut cuts) = (text.as_bytes(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().expect("endless")));
            reader.take(piece).expect("it can be read");
            rest = after;
        }
        prop_assert_eq!(reader.finish(), Ok(whole.clone()));
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for (name, label, value) in &values {
            let key = match name {
                0 => format!("a {label}"),
                1 => "a_total".to_owned(),
                _ => continue,
            };
            *sums.entry(key).or_default() += value;
        }
        let kept: BTreeMap<String, f64> = whole
            .into_iter()
            .map(|series| {
                let labels = series.labels.into_values();
                let name: Vec<String> = std::iter::once(series.name).chain(labels).collect();
                (name.join(" "), series.value)
            })
            .collect();
        prop_assert_eq!(kept, sums);
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz(&bytes);
    }

    #[test]
    fn no_line_is_too_strange(text in "[ab_:\\{\\}=\",\\\\ #0-9eEn.+\\-\\t\u{e9}\n]{0,200}") {
        fuzz(text.as_bytes());
    }
}
