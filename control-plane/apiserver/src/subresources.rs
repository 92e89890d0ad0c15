//! The one table of what resources have beside their objects: subresources, and resources that are answered and never
//! stored. Routing, discovery, limits and the difference between 404 and 405 follow from it.
//!
//! To add a subresource is to add a [`Row`] to [`TABLE`]; to add a virtual resource is to add a line to [`VIRTUAL`]. Both say
//! what answers a request: `async fn(&Context<'_>) -> Result<Answer, StatusError>`.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::Request;
use futures::future::BoxFuture;
use gantry_api::decode::request;
use gantry_api::kind::{ResourceInfo, ResourceKind, StaticInfo, WriteScope};
use gantry_api::kinds::reviews::Question;
use gantry_api::schema::TypeSchema;
use gantry_api::status::StatusError;
use gantry_api::unstored::Unstored;
use http::{Method, Response};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::api::policy::v1::Eviction;

use crate::context::Context;
use crate::request::{Query, ResourcePath};
use crate::response::Answer;
use crate::verbs::reviews;
use crate::{service_accounts, streams, verbs};

/// What answers a request whose body is here.
type Answers = for<'a, 'b> fn(&'a Context<'b>) -> BoxFuture<'a, Result<Answer, StatusError>>;
/// What takes a request itself, whose body is passed on as it arrives.
type Passes =
    for<'a, 'b> fn(&'a Context<'b>, Request) -> BoxFuture<'a, Result<Response<Body>, StatusError>>;

#[derive(Clone, Copy)]
pub(crate) enum Handler {
    Answers(Answers),
    Passes(Passes),
}

/// A [`Handler::Answers`] of an expression that makes a future of a context.
macro_rules! answers {
    ($context:ident => $future:expr) => {{
        fn handle<'a>($context: &'a Context<'_>) -> BoxFuture<'a, Result<Answer, StatusError>> {
            Box::pin($future)
        }
        Handler::Answers(handle)
    }};
}

/// A [`Handler::Passes`] of an expression that makes a future of a context and a request.
macro_rules! passes {
    ($context:ident, $request:ident => $future:expr) => {{
        fn handle<'a>(
            $context: &'a Context<'_>,
            $request: Request,
        ) -> BoxFuture<'a, Result<Response<Body>, StatusError>> {
            Box::pin($future)
        }
        Handler::Passes(handle)
    }};
}

/// Verbs with what answers each, sorted by verb.
type Methods = &'static [(&'static str, Handler)];

/// Group, version and kind of what a subresource is about; group and version only where they are not its resource's.
type GroupVersionKind = (&'static str, &'static str, &'static str);

/// Finds a type's schema.
type Schema = fn() -> &'static TypeSchema;

/// A line of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    of: GroupVersionKind,
    methods: Methods,
    body: Option<Schema>,
    lasts: fn(&Query) -> bool,
    any_path: bool,
    is_text: bool,
    over_websocket: Option<Handler>,
}

impl Row {
    const fn new(name: &'static str, of: GroupVersionKind, methods: Methods) -> Self {
        Self {
            name,
            of,
            methods,
            body: None,
            lasts: |_| false,
            any_path: false,
            is_text: false,
            over_websocket: None,
        }
    }

    /// Whose bodies are of a type of their own.
    const fn taking(self, body: Schema) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }

    /// Whose requests may last.
    const fn lasting(self, lasts: fn(&Query) -> bool) -> Self {
        Self { lasts, ..self }
    }

    /// Which is text, whatever else a client accepts.
    const fn written_as_text(self) -> Self {
        Self {
            is_text: true,
            ..self
        }
    }

    /// Which clients may read over WebSocket too.
    const fn over_websocket(self, handler: Handler) -> Self {
        Self {
            over_websocket: Some(handler),
            ..self
        }
    }

    /// Which has paths of its own behind its name.
    const fn with_any_path(self) -> Self {
        Self {
            any_path: true,
            ..self
        }
    }
}

const PROXY: Handler = passes!(context, request => streams::proxy(context, request));
const PROXIED: Methods = &[
    ("create", PROXY),
    ("delete", PROXY),
    ("get", PROXY),
    ("patch", PROXY),
    ("update", PROXY),
];

const ATTACH: Handler =
    passes!(context, request => streams::remote_command(context, "attach", request));
const ATTACHED: Methods = &[("create", ATTACH), ("get", ATTACH)];

const EXEC: Handler =
    passes!(context, request => streams::remote_command(context, "exec", request));
const EXECUTED: Methods = &[("create", EXEC), ("get", EXEC)];

const PORT_FORWARD: Handler = passes!(context, request => streams::port_forward(context, request));
const FORWARDED: Methods = &[("create", PORT_FORWARD), ("get", PORT_FORWARD)];

const LOG: Methods = &[("get", answers!(context => streams::logs(context)))];
const LOG_OVER_WEBSOCKET: Handler =
    passes!(context, request => streams::logs_over_websocket(context, request));

const BINDING: Methods = &[("create", answers!(context => verbs::binding::bind(context)))];

const EVICTION: Methods = &[(
    "create",
    answers!(context => verbs::eviction::evict(context)),
)];

const TOKEN: Methods = &[(
    "create",
    answers!(context => service_accounts::token_request(context)),
)];

const FINALIZE: Methods = &[(
    "update",
    answers!(context => verbs::finalize::finalize(context)),
)];

const STATUS: Methods = &[
    ("get", answers!(context => verbs::get::get(context))),
    (
        "patch",
        answers!(context => verbs::update::patch(context, WriteScope::Status)),
    ),
    (
        "update",
        answers!(context => verbs::update::update(context, WriteScope::Status)),
    ),
];

const SCALE: Methods = &[
    ("get", answers!(context => verbs::scale::get(context))),
    (
        "patch",
        answers!(context => async move { verbs::scale::scale(context, &Method::PATCH).await }),
    ),
    (
        "update",
        answers!(context => async move { verbs::scale::scale(context, &Method::PUT).await }),
    ),
];

const fn proxy(kind: &'static str) -> Row {
    Row::new("proxy", ("", "", kind), PROXIED)
        .lasting(|_| true)
        .with_any_path()
}

/// Group, plural name, and what it has beside `status` and `scale`.
const TABLE: &[(&str, &str, &[Row])] = &[
    (
        "",
        "namespaces",
        &[Row::new("finalize", ("", "", "Namespace"), FINALIZE)],
    ),
    ("", "nodes", &[proxy("NodeProxyOptions")]),
    (
        "",
        "pods",
        &[
            Row::new("attach", ("", "", "PodAttachOptions"), ATTACHED).lasting(|_| true),
            Row::new("binding", ("", "", "Binding"), BINDING).taking(TypeSchema::of::<Binding>),
            Row::new("eviction", ("policy", "v1", "Eviction"), EVICTION)
                .taking(TypeSchema::of::<Eviction>),
            Row::new("exec", ("", "", "PodExecOptions"), EXECUTED).lasting(|_| true),
            Row::new("log", ("", "", "Pod"), LOG)
                .lasting(|query| query.flag("follow"))
                .written_as_text()
                .over_websocket(LOG_OVER_WEBSOCKET),
            Row::new("portforward", ("", "", "PodPortForwardOptions"), FORWARDED).lasting(|_| true),
            proxy("PodProxyOptions"),
        ],
    ),
    (
        "",
        "serviceaccounts",
        &[Row::new(
            "token",
            ("authentication.k8s.io", "v1", "TokenRequest"),
            TOKEN,
        )
        .taking(TypeSchema::of::<TokenRequest>)],
    ),
    ("", "services", &[proxy("ServiceProxyOptions")]),
];

/// A resource that is answered and never stored.
struct Virtual {
    kind: fn() -> Box<dyn ResourceKind>,
    create: Handler,
}

/// All of them.
const VIRTUAL: &[Virtual] = &[
    Virtual {
        kind: || {
            let names = ["bindings", "binding"];
            Unstored::<Binding>::boxed(virtual_info("", "v1", "Binding", names, true))
        },
        create: answers!(context => bind(context)),
    },
    Virtual {
        kind: || {
            let (group, names) = ("authentication.k8s.io", ["tokenreviews", "tokenreview"]);
            Unstored::<TokenReview>::boxed(virtual_info(group, "v1", "TokenReview", names, false))
        },
        create: answers!(context => service_accounts::token_review(context)),
    },
    Virtual {
        kind: question::<SelfSubjectReview>,
        create: answers!(context => reviews::self_subject_review(context)),
    },
    Virtual {
        kind: question::<SubjectAccessReview>,
        create: answers!(context => reviews::subject_access_review(context)),
    },
    Virtual {
        kind: question::<LocalSubjectAccessReview>,
        create: answers!(context => reviews::local_subject_access_review(context)),
    },
    Virtual {
        kind: question::<SelfSubjectAccessReview>,
        create: answers!(context => reviews::self_subject_access_review(context)),
    },
    Virtual {
        kind: question::<SelfSubjectRulesReview>,
        create: answers!(context => reviews::self_subject_rules_review(context)),
    },
];

/// The type of a question about users and their rights.
fn question<Q: Question>() -> Box<dyn ResourceKind> {
    Unstored::<Q>::boxed(Q::INFO)
}

/// Names of a virtual resource, plural and singular.
const fn virtual_info(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    [plural, singular]: [&'static str; 2],
    namespaced: bool,
) -> StaticInfo {
    StaticInfo {
        group,
        version,
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    }
}

/// The types of all virtual resources, and what answers a POST of each.
pub(crate) fn virtuals() -> impl Iterator<Item = (Box<dyn ResourceKind>, Handler)> {
    VIRTUAL.iter().map(|one| ((one.kind)(), one.create))
}

/// A subresource of one resource.
pub(crate) struct Subresource {
    pub(crate) name: &'static str,
    /// Group and version of its type, where they are not its resource's; else empty.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: Cow<'static, str>,
    methods: Methods,
    /// The type of its bodies, where that is not its resource's.
    body: Option<Schema>,
    /// Whether a request for it lasts as its client likes, by its query.
    pub(crate) lasts: fn(&Query) -> bool,
    /// Whether it has paths of its own behind its name.
    pub(crate) any_path: bool,
    /// Whether it is text, whatever else a client accepts.
    pub(crate) is_text: bool,
    /// What answers who reads it over WebSocket.
    pub(crate) over_websocket: Option<Handler>,
}

impl Subresource {
    fn of(row: &Row) -> Self {
        let (group, version, kind) = row.of;
        Self {
            name: row.name,
            group,
            version,
            kind: Cow::Borrowed(kind),
            methods: row.methods,
            body: row.body,
            lasts: row.lasts,
            any_path: row.any_path,
            is_text: row.is_text,
            over_websocket: row.over_websocket,
        }
    }

    /// What clients may do with it, sorted.
    pub(crate) fn verbs(&self) -> impl Iterator<Item = &'static str> {
        self.methods.iter().map(|(verb, _)| *verb)
    }

    /// What answers a verb; what has paths of its own judges methods by itself.
    pub(crate) fn handler(&self, verb: &str) -> Option<Handler> {
        let of = |(known, _): &&(&str, Handler)| *known == verb || self.any_path;
        self.methods.iter().find(of).map(|(_, handler)| *handler)
    }

    /// The type of its bodies, where that is not its resource's.
    pub(crate) fn schema(&self) -> Option<&'static TypeSchema> {
        self.body.map(|schema| schema())
    }

    /// Whether the bodies of its requests are passed on as they arrive.
    pub(crate) fn passes(&self) -> bool {
        let passes = |(_, handler): &(&str, Handler)| matches!(handler, Handler::Passes(_));
        self.methods.iter().any(passes)
    }
}

/// The subresources of a kind, sorted by name.
pub(crate) fn of(info: &ResourceInfo) -> Vec<Subresource> {
    let rows = TABLE
        .iter()
        .filter(|(group, plural, _)| info.group == *group && info.plural == *plural)
        .flat_map(|(_, _, rows)| rows.iter());
    let mut list: Vec<Subresource> = rows.map(Subresource::of).collect();
    if info.has_scale {
        let of = ("autoscaling", "v1", "Scale");
        let row = Row::new("scale", of, SCALE).taking(TypeSchema::of::<Scale>);
        list.push(Subresource::of(&row));
    }
    if info.has_status {
        list.push(Subresource {
            kind: info.kind.clone(),
            ..Subresource::of(&Row::new("status", ("", "", ""), STATUS))
        });
    }
    list.sort_by_key(|subresource| subresource.name);
    list
}

/// POST to `bindings`: the pod's own subresource by another name.
async fn bind(context: &Context<'_>) -> Result<Answer, StatusError> {
    let binding: Binding = request(&context.body, "Binding")?;
    let pods = context.registry.get("", "v1", "pods");
    let pods = pods.ok_or_else(StatusError::unknown_resource)?;
    let path = ResourcePath {
        resource: pods.info().plural.to_string(),
        name: binding.metadata.name,
        subresource: Some("binding".to_owned()),
        ..context.path.clone()
    };
    if path.name.as_deref().unwrap_or_default().is_empty() {
        return Err(StatusError::bad_request("name must be provided"));
    }
    let context = Context {
        resource: pods,
        path: &path,
        body: context.body.clone(),
        budget: context.budget.clone(),
        ..*context
    };
    verbs::binding::bind(&context).await
}

#[cfg(test)]
mod tests {
    use crate::registry::Registry;

    #[test]
    fn the_table_says_which_methods_there_are() {
        let registry = Registry::built_in();
        let pods = registry.get("", "v1", "pods").expect("is served");
        let names: Vec<&str> = pods.subresources().iter().map(|sub| sub.name).collect();
        assert_eq!(
            names,
            [
                "attach",
                "binding",
                "eviction",
                "exec",
                "log",
                "portforward",
                "proxy",
                "status"
            ]
        );
        let handled = |path: &str, verb: &str| {
            let subresource = pods.subresource(path);
            subresource.map(|subresource| subresource.handler(verb).is_some())
        };
        assert_eq!(handled("status", "patch"), Some(true));
        assert_eq!(handled("status", "create"), Some(false));
        assert_eq!(handled("status/x", "get"), None);
        assert_eq!(handled("exec", "delete"), Some(false));
        assert_eq!(handled("proxy/any/path", "delete"), Some(true));
        assert_eq!(handled("scale", "get"), None);
    }

    #[test]
    fn what_is_virtual_is_created_only() {
        let registry = Registry::built_in();
        let bindings = registry.get("", "v1", "bindings").expect("is served");
        assert_eq!(bindings.verbs(), ["create"]);
        assert!(bindings.virtual_create().is_some());
        let pods = registry.get("", "v1", "pods").expect("is served");
        assert!(pods.virtual_create().is_none());
    }
}
