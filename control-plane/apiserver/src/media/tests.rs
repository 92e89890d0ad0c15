use super::*;

fn accepting(accept: &str) -> HeaderMap {
    let value = HeaderValue::from_str(accept).expect("a header");
    HeaderMap::from_iter([(ACCEPT, value)])
}

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn plain(format: Format) -> Option<Media> {
    Some(Media { format, ..PLAIN })
}

fn shaped(form: Form, api_version: &'static str) -> Option<Media> {
    let shape = Some(Shape { form, api_version });
    Some(Media { shape, ..PLAIN })
}

#[test]
fn the_preferred_representation_is_chosen() {
    for (accept, wanted) in [
        ("*/*", plain(Format::Json)),
        ("*", plain(Format::Json)),
        ("", plain(Format::Json)),
        ("application/*", plain(Format::Json)),
        ("text/*", None),
        ("application/yaml", plain(Format::Yaml)),
        ("application/yaml, application/json", plain(Format::Yaml)),
        ("*/*, application/yaml", plain(Format::Yaml)),
        (
            "application/yaml;q=0.5, application/json",
            plain(Format::Json),
        ),
        (
            "application/json;q=0, application/yaml",
            plain(Format::Yaml),
        ),
        ("application/json;q=0", plain(Format::Json)),
        (
            "application/xml;q=0.5,application/json;q=0.1",
            plain(Format::Json),
        ),
        ("text/html, application/yaml", plain(Format::Yaml)),
        ("application/json;charset=utf-8", plain(Format::Json)),
        ("application/json;stream=watch", plain(Format::Json)),
        ("application/json;stream=other", None),
        ("application/yaml;stream=watch", None),
        (
            "application/vnd.kubernetes.protobuf, */*",
            plain(Format::Protobuf),
        ),
        (
            "application/vnd.kubernetes.protobuf",
            plain(Format::Protobuf),
        ),
        ("application/cbor, application/json", plain(Format::Json)),
        ("text/html", None),
        ("json", None),
        ("application/json/x", None),
    ] {
        let chosen = Media::of_answer(&accepting(accept)).ok();
        assert_eq!(chosen, wanted, "{accept}");
    }
}

#[test]
fn shapes_are_those_of_the_meta_group() {
    let beta = TABLE.replace("v=v1", "v=v1beta1");
    let partial = TABLE.replace("Table", "PartialObjectMetadata");
    for (accept, wanted) in [
        (
            format!("{TABLE},application/json"),
            shaped(Form::Table, "meta.k8s.io/v1"),
        ),
        (beta, shaped(Form::Table, "meta.k8s.io/v1beta1")),
        (partial, shaped(Form::Metadata, "meta.k8s.io/v1")),
        (
            TABLE.replace("Table", "PartialObjectMetadataList"),
            shaped(Form::MetadataList, "meta.k8s.io/v1"),
        ),
        (TABLE.replace("Table", "Foo"), None),
        (TABLE.replace("v=v1", "v=v9"), None),
        (TABLE.replace(";g=meta.k8s.io", ""), None),
        (
            format!("{},*/*", TABLE.replace("Table", "Foo")),
            plain(Format::Json),
        ),
        (
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io".to_owned(),
            None,
        ),
    ] {
        let chosen = Media::of_answer(&accepting(&accept)).ok();
        assert_eq!(chosen, wanted, "{accept}");
    }
    let error = Media::of_document(&accepting(&format!("{TABLE},application/yaml")), FORMATS);
    assert_eq!(error, plain(Format::Yaml));
    assert_eq!(Media::of_document(&accepting(TABLE), FORMATS), None);
}

#[test]
fn refusals_say_what_is_offered() {
    let foo = TABLE.replace("Table", "Foo");
    let refused = Media::of_answer(&accepting(&foo)).expect_err("not offered");
    assert_eq!(
        refused.message(),
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let check = |accept: &str, method: Method, produces: &[&str]| {
        check_route(&accepting(accept), &method, produces)
    };
    let refused = check("text/html", Method::GET, &[]).expect_err("not offered");
    assert_eq!(
        (refused.code(), refused.message()),
        (
            406,
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        )
    );
    let refused = check("text/html", Method::POST, &[]).expect_err("not offered");
    assert_eq!(refused.code(), 415);
    assert_eq!(check(&foo, Method::GET, &[]), Ok(()));
    assert_eq!(check("a/b, */*;q=0", Method::GET, &[]), Ok(()));
    assert_eq!(check("text/plain", Method::GET, &["text/plain"]), Ok(()));
    let refused = check("application/*", Method::GET, OF_LISTS).expect_err("no wildcard");
    assert!(refused.message().ends_with(
        "application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
    ));
}

#[test]
fn what_cannot_be_streamed_is_refused_for_a_watch() {
    for accept in [
        "application/yaml",
        "application/yaml;stream=watch",
        "application/yaml, application/json",
        "application/yaml;as=Table;v=v1;g=meta.k8s.io",
        "text/event-stream",
    ] {
        let refused = Media::of_watch(&accepting(accept)).expect_err(accept);
        assert_eq!(refused.code(), 406);
        assert_eq!(
            refused.message(),
            "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
        );
    }
    for accept in ["*/*", "application/json;stream=watch", TABLE] {
        Media::of_watch(&accepting(accept)).expect(accept);
    }
}

#[test]
fn who_reads_messages_and_more_gets_lists_as_text() {
    let both = accepting("application/vnd.kubernetes.protobuf, */*");
    assert_eq!(Media::of_list(&both).ok(), plain(Format::Json));
    assert_eq!(Media::of_watch(&both).ok(), plain(Format::Json));
    let message = accepting("application/vnd.kubernetes.protobuf");
    assert_eq!(Media::of_list(&message).expect_err("text").code(), 406);
    assert_eq!(Media::of_watch(&message).expect_err("text").code(), 406);
}

#[test]
fn discovery_is_aggregated_for_who_asks_for_it_first() {
    let aggregated = |version: &str| {
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
    };
    let (v2, beta) = (aggregated("v2"), aggregated("v2beta1"));
    let wanted = |accept: &str| Media::of_aggregated(&accepting(accept));
    assert_eq!(wanted(&v2), Some(Format::Json));
    assert_eq!(
        wanted(&format!("{v2},{beta},application/json")),
        Some(Format::Json)
    );
    assert_eq!(wanted(&format!("{beta},{v2}")), Some(Format::Json));
    assert_eq!(wanted(&format!("{v2};q=0.5,application/json")), None);
    assert_eq!(wanted(&format!("{beta},application/json")), None);
    assert_eq!(wanted("application/json"), None);
    assert_eq!(wanted(""), None);
}

#[test]
fn people_get_line_breaks() {
    let pretty = |program: &'static str, query: &str| {
        let program = HeaderValue::from_static(program);
        let headers = HeaderMap::from_iter([(USER_AGENT, program)]);
        let query = Query::parse(Some(query));
        PLAIN.prettier(&headers, &query).pretty
    };
    assert!(pretty("curl/8.5.0", ""));
    assert!(!pretty("kubectl/v1.36.0", ""));
    assert!(pretty("kubectl/v1.36.0", "pretty=true"));
    assert!(!pretty("curl/8.5.0", "pretty=false"));
    assert!(!pretty("curl/8.5.0", "pretty=maybe"));
    let asked = Media::of_answer(&accepting("application/json;pretty=1"));
    assert!(asked.expect("is offered").pretty);
}
