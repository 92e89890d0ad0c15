//! What requests may have beside a body: in their paths, and after the question mark.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// `path` or `query`
    pub(super) place: &'static str,
    /// `boolean`, `integer` or `string`
    pub(super) kind: &'static str,
    pub(super) description: &'static str,
}

const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter {
        name,
        place: "query",
        kind,
        description,
    }
}

const fn path(name: &'static str, description: &'static str) -> Parameter {
    Parameter {
        name,
        place: "path",
        kind: "string",
        description,
    }
}

pub(super) const NAME: Parameter = path("name", "name of the object");
pub(super) const NAMESPACE: Parameter = path("namespace", "namespace of the object");
pub(super) const PATH: Parameter = path("path", "path of the request that is passed on");
pub(super) const PRETTY: Parameter = query(
    "pretty",
    "string",
    "Whether the answer is meant for people.",
);

const DRY_RUN: Parameter = query(
    "dryRun",
    "string",
    "`All` checks everything and changes nothing.",
);
const CONTINUE: Parameter = query(
    "continue",
    "string",
    "Where the answer before this one ended, as its metadata says.",
);
const FIELD_SELECTOR: Parameter = query(
    "fieldSelector",
    "string",
    "Which values the objects' fields must have.",
);
const LABEL_SELECTOR: Parameter = query(
    "labelSelector",
    "string",
    "Which labels the objects must have.",
);
const LIMIT: Parameter = query("limit", "integer", "How many objects one answer may have.");
const RESOURCE_VERSION: Parameter = query(
    "resourceVersion",
    "string",
    "The version that the answer is of, or that a watch begins after.",
);
const RESOURCE_VERSION_MATCH: Parameter = query(
    "resourceVersionMatch",
    "string",
    "Whether the version is meant exactly, or as the oldest.",
);
const SEND_INITIAL_EVENTS: Parameter = query(
    "sendInitialEvents",
    "boolean",
    "Whether a watch begins with what there is.",
);
const TIMEOUT_SECONDS: Parameter = query(
    "timeoutSeconds",
    "integer",
    "How long the request may take, or a watch lasts.",
);

/// Of what lists or watches.
pub(super) const LIST: &[Parameter] = &[
    query(
        "allowWatchBookmarks",
        "boolean",
        "Whether a watch also tells how far it is when nothing happens.",
    ),
    CONTINUE,
    FIELD_SELECTOR,
    LABEL_SELECTOR,
    LIMIT,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL_EVENTS,
    TIMEOUT_SECONDS,
    query(
        "watch",
        "boolean",
        "Whether changes are told as they happen.",
    ),
];

const GRACE_PERIOD_SECONDS: Parameter = query(
    "gracePeriodSeconds",
    "integer",
    "How long the object has to end; 0 is at once.",
);
const ORPHAN_DEPENDENTS: Parameter = query(
    "orphanDependents",
    "boolean",
    "Whether what the object owns stays; superseded by propagationPolicy.",
);
const PROPAGATION_POLICY: Parameter = query(
    "propagationPolicy",
    "string",
    "What becomes of what the object owns: Orphan, Background or Foreground.",
);

/// Of what deletes an object.
pub(super) const DELETE: &[Parameter] = &[
    DRY_RUN,
    GRACE_PERIOD_SECONDS,
    ORPHAN_DEPENDENTS,
    PROPAGATION_POLICY,
];

/// Of what deletes all objects of a collection.
pub(super) const DELETE_COLLECTION: &[Parameter] = &[
    CONTINUE,
    DRY_RUN,
    FIELD_SELECTOR,
    GRACE_PERIOD_SECONDS,
    LABEL_SELECTOR,
    LIMIT,
    ORPHAN_DEPENDENTS,
    PROPAGATION_POLICY,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL_EVENTS,
    TIMEOUT_SECONDS,
];

const FIELD_MANAGER: Parameter = query("fieldManager", "string", "Who makes the change.");
const FIELD_VALIDATION: Parameter = query(
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.",
);

/// Of what creates or replaces.
pub(super) const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];

/// Of what patches.
pub(super) const PATCH: &[Parameter] = &[
    DRY_RUN,
    FIELD_MANAGER,
    FIELD_VALIDATION,
    query(
        "force",
        "boolean",
        "Whether an apply takes over fields of other managers.",
    ),
];

const CONTAINER: Parameter = query("container", "string", "The container's name.");
const STANDARD_STREAMS: [Parameter; 4] = [
    query("stdin", "boolean", "Whether its input is sent."),
    query("stdout", "boolean", "Whether its output is wanted."),
    query("stderr", "boolean", "Whether its errors are wanted."),
    query("tty", "boolean", "Whether it has a terminal."),
];

/// Of a subresource that is a stream.
pub(super) fn of_stream(subresource: &str) -> Vec<Parameter> {
    let mut parameters = match subresource {
        "exec" => vec![
            query("command", "string", "What is run, argument by argument."),
            CONTAINER,
        ],
        "attach" => vec![CONTAINER],
        "portforward" => return vec![query("ports", "integer", "The ports, comma separated.")],
        "log" => {
            return vec![
                CONTAINER,
                query("follow", "boolean", "Whether the answer goes on."),
                query("limitBytes", "integer", "How long the answer may be."),
                query(
                    "previous",
                    "boolean",
                    "Whether the run before this is meant.",
                ),
                query("sinceSeconds", "integer", "How old lines may be."),
                query(
                    "sinceTime",
                    "string",
                    "When the first line may have been written.",
                ),
                query("tailLines", "integer", "How many of the last lines."),
                query("timestamps", "boolean", "Whether lines have their time."),
            ];
        }
        "proxy" => {
            return vec![query(
                "path",
                "string",
                "The path of the request that is passed on.",
            )];
        }
        _ => return Vec::new(),
    };
    parameters.extend(STANDARD_STREAMS);
    parameters
}
