//! The one table of what resources have beside their objects: subresources, and resources that are answered and never
//! stored. Routing, discovery, limits and the difference between 404 and 405 follow from it.
//!
//! To add a subresource is to add a [`Row`] to [`TABLE`]; to add a virtual resource is to add a line to [`VIRTUAL`]. Both say
//! what answers a request: `async fn(&Context<'_>) -> Result<Answer, StatusError>`.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::Request;
use futures::future::BoxFuture;
use gantry_api::kind::{ResourceInfo, ResourceKind, StaticInfo, WriteScope};
use gantry_api::kinds::reviews::Question;
use gantry_api::status::StatusError;
use gantry_api::unstored::Unstored;
use http::Response;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::core::v1::Binding;

use crate::context::Context;
use crate::registry::Registry;
use crate::registry::subresource::{BodyType, Subresource};
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

/// A line of the table.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    of: GroupVersionKind,
    methods: Methods,
    body: Option<BodyType>,
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
    const fn taking(self, body: BodyType) -> Self {
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

/// Verbs of a subresource that is a part of the object: the whole object is read, and written as the scope says.
macro_rules! part {
    ($scope:expr) => {
        &[
            ("get", answers!(context => verbs::get::get(context))),
            ("patch", answers!(context => verbs::update::patch(context, $scope))),
            ("update", answers!(context => verbs::update::update(context, $scope))),
        ]
    };
}

const STATUS: Methods = part!(WriteScope::Status);
const RESIZE: Methods = part!(WriteScope::Part("resize"));

const SCALE: Methods = &[
    ("get", answers!(context => verbs::scale::get(context))),
    ("patch", answers!(context => verbs::scale::patch(context))),
    ("update", answers!(context => verbs::scale::update(context))),
];

/// What every kind has that can be scaled.
const SCALED: Row =
    Row::new("scale", ("autoscaling", "v1", "Scale"), SCALE).taking(|| &**verbs::body::SCALE);

/// What every kind with a status has; it is about the kind itself.
const WITH_STATUS: Row = Row::new("status", ("", "", ""), STATUS);

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
            Row::new("binding", ("", "", "Binding"), BINDING).taking(|| &**verbs::body::BINDING),
            Row::new("eviction", ("policy", "v1", "Eviction"), EVICTION)
                .taking(|| &**verbs::body::EVICTION),
            Row::new("exec", ("", "", "PodExecOptions"), EXECUTED).lasting(|_| true),
            Row::new("log", ("", "", "Pod"), LOG)
                .lasting(|query| query.flag("follow"))
                .written_as_text()
                .over_websocket(LOG_OVER_WEBSOCKET),
            Row::new("portforward", ("", "", "PodPortForwardOptions"), FORWARDED).lasting(|_| true),
            proxy("PodProxyOptions"),
            Row::new("resize", ("", "", "Pod"), RESIZE),
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
        .taking(|| &**verbs::body::TOKEN_REQUEST)],
    ),
    ("", "services", &[proxy("ServiceProxyOptions")]),
];

/// A resource that is answered and never stored.
struct Virtual {
    info: StaticInfo,
    kind: fn(StaticInfo) -> Box<dyn ResourceKind>,
    create: Handler,
}

impl Virtual {
    /// A question about users and their rights.
    const fn question<Q: Question>(create: Handler) -> Self {
        Self {
            info: Q::INFO,
            kind: Unstored::<Q>::boxed,
            create,
        }
    }
}

/// All of them.
const VIRTUAL: &[Virtual] = &[
    Virtual {
        info: virtual_info("", "v1", "Binding", ["bindings", "binding"], true),
        kind: Unstored::<Binding>::boxed,
        create: answers!(context => bind(context)),
    },
    Virtual {
        info: virtual_info(
            "authentication.k8s.io",
            "v1",
            "TokenReview",
            ["tokenreviews", "tokenreview"],
            false,
        ),
        kind: Unstored::<TokenReview>::boxed,
        create: answers!(context => service_accounts::token_review(context)),
    },
    Virtual::question::<SelfSubjectReview>(
        answers!(context => reviews::self_subject_review(context)),
    ),
    Virtual::question::<SubjectAccessReview>(
        answers!(context => reviews::subject_access_review(context)),
    ),
    Virtual::question::<LocalSubjectAccessReview>(
        answers!(context => reviews::local_subject_access_review(context)),
    ),
    Virtual::question::<SelfSubjectAccessReview>(
        answers!(context => reviews::self_subject_access_review(context)),
    ),
    Virtual::question::<SelfSubjectRulesReview>(
        answers!(context => reviews::self_subject_rules_review(context)),
    ),
];

/// What reads a resource that is measured.
const MEASURED: Methods = &[
    ("get", answers!(context => verbs::measured::get(context))),
    ("list", answers!(context => verbs::measured::list(context))),
];

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

impl Row {
    fn describe(&self, info: &ResourceInfo) -> Subresource {
        let (group, version, kind) = self.of;
        let passes = |(_, handler): &(&str, Handler)| matches!(handler, Handler::Passes(_));
        Subresource {
            name: self.name,
            group,
            version,
            kind: match kind {
                "" => info.kind.clone(),
                kind => Cow::Borrowed(kind),
            },
            verbs: self.methods.iter().map(|(verb, _)| *verb).collect(),
            body: self.body,
            lasts: self.lasts,
            any_path: self.any_path,
            is_text: self.is_text,
            passes: self.methods.iter().any(passes),
        }
    }
}

/// The lines about a resource.
fn own(info: &ResourceInfo) -> impl Iterator<Item = &'static Row> {
    let about = TABLE
        .iter()
        .filter(move |(group, plural, _)| info.group == *group && info.plural == *plural);
    about.flat_map(|(_, _, rows)| rows.iter())
}

/// The subresources of a kind, sorted by name.
fn describe(info: &ResourceInfo) -> Vec<Subresource> {
    let has = [(SCALED, info.has_scale), (WITH_STATUS, info.has_status)];
    let has = has.into_iter().filter(|(_, has)| *has);
    let rows = own(info).copied().chain(has.map(|(row, _)| row));
    let mut list: Vec<Subresource> = rows.map(|row| row.describe(info)).collect();
    list.sort_by_key(|subresource| subresource.name);
    list
}

/// The line about a subresource.
fn row(info: &ResourceInfo, subresource: &Subresource) -> Option<Row> {
    match subresource.name {
        "scale" if info.has_scale => Some(SCALED),
        "status" if info.has_status => Some(WITH_STATUS),
        name => own(info).find(|row| row.name == name).copied(),
    }
}

/// What answers a verb of a subresource; what has paths of its own judges methods by itself.
pub(crate) fn handler(
    info: &ResourceInfo,
    subresource: &Subresource,
    verb: &str,
) -> Option<Handler> {
    let methods = row(info, subresource)?.methods;
    let of = |(known, _): &&(&str, Handler)| *known == verb || subresource.any_path;
    methods.iter().find(of).map(|(_, handler)| *handler)
}

/// What answers who reads a subresource over WebSocket.
pub(crate) fn over_websocket(info: &ResourceInfo, subresource: &Subresource) -> Option<Handler> {
    row(info, subresource)?.over_websocket
}

/// What answers a POST of a resource that is never stored.
pub(crate) fn virtual_handler(info: &ResourceInfo) -> Option<Handler> {
    let is = |one: &&Virtual| {
        let (group, version, plural) = (one.info.group, one.info.version, one.info.plural);
        info.group == group && info.version == version && info.plural == plural
    };
    VIRTUAL.iter().find(is).map(|one| one.create)
}

/// What answers a verb of a resource that is measured.
pub(crate) fn measured_handler(verb: &str) -> Option<Handler> {
    let mut methods = MEASURED.iter();
    let method = methods.find(|(known, _)| *known == verb);
    method.map(|(_, handler)| *handler)
}

impl Registry {
    /// The built-in kinds and virtual resources.
    pub(crate) fn built_in() -> Self {
        let virtuals = VIRTUAL.iter().map(|one| (one.kind)(one.info));
        Self::new(gantry_api::kinds::all(), virtuals.collect(), describe)
    }
}

/// POST to `bindings`: the pod's own subresource by another name.
async fn bind(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("CreateOptions")?;
    let kind = context.resource.kind.as_ref();
    let (binding, _): (Binding, _) = verbs::body::typed(context, kind, options.validation).await?;
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
    use super::*;

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
                "resize",
                "status"
            ]
        );
        let handled = |path: &str, verb: &str| {
            let subresource = pods.subresource(path);
            subresource.map(|subresource| handler(pods.info(), subresource, verb).is_some())
        };
        assert_eq!(handled("status", "patch"), Some(true));
        assert_eq!(handled("status", "create"), Some(false));
        assert_eq!(handled("resize", "update"), Some(true));
        assert_eq!(handled("status/x", "get"), None);
        assert_eq!(handled("exec", "delete"), Some(false));
        assert_eq!(handled("proxy/any/path", "delete"), Some(true));
        assert_eq!(handled("scale", "get"), None);
    }

    #[test]
    fn bodies_are_of_the_kinds_that_the_table_names() {
        let registry = Registry::built_in();
        let all = registry.all().iter();
        let mut bodies = 0;
        for subresource in all.flat_map(|resource| resource.subresources().iter()) {
            let Some(body) = subresource.body else {
                continue;
            };
            let info = body().info();
            assert_eq!(info.kind, subresource.kind);
            assert!(subresource.group.is_empty() || info.group == subresource.group);
            bodies += 1;
        }
        assert!(bodies > 3, "{bodies}");
    }

    #[test]
    fn what_is_virtual_is_created_only() {
        let registry = Registry::built_in();
        let bindings = registry.get("", "v1", "bindings").expect("is served");
        assert_eq!(bindings.verbs(), ["create"]);
        assert!(bindings.is_virtual() && virtual_handler(bindings.info()).is_some());
        let pods = registry.get("", "v1", "pods").expect("is served");
        assert!(!pods.is_virtual() && virtual_handler(pods.info()).is_none());
    }
}
