//! Which requests are served: paths and operations, before they are written down in a version of OpenAPI.
//!
//! All of it follows from what discovery says of a resource: its verbs, and its subresources with theirs.

use gantry_api::kind::ResourceInfo;

use super::parameters::{self, NAME, NAMESPACE, PATH, PRETTY, Parameter};
use super::schemas::{Schemas, meta};
use crate::registry::Resource;
use crate::registry::subresource::Subresource;

/// A path and what may be done there.
pub(super) struct Path {
    pub(super) path: String,
    /// Of all its operations.
    pub(super) parameters: Vec<Parameter>,
    pub(super) operations: Vec<Operation>,
}

/// A method at a path.
pub(super) struct Operation {
    /// In lower case.
    pub(super) method: &'static str,
    /// `x-kubernetes-action`, where it is about a kind.
    pub(super) action: Option<&'static str>,
    /// Group, version and kind that it is about.
    pub(super) kind: Option<[String; 3]>,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) description: String,
    /// The schema of the body.
    pub(super) body: Option<Body>,
    pub(super) parameters: Vec<Parameter>,
    /// Codes of the answers that succeed.
    pub(super) codes: &'static [u16],
    /// The schema of the answers; text where there is none.
    pub(super) answer: Option<String>,
    pub(super) consumes: &'static [&'static str],
    pub(super) produces: &'static [&'static str],
}

/// The body of a request.
pub(super) struct Body {
    pub(super) schema: String,
    pub(super) required: bool,
}

const ANY: &[&str] = &["*/*"];
const OBJECTS: &[&str] = &["application/json", "application/yaml"];
const EVENTS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/json;stream=watch",
];
const LOGS: &[&str] = &["text/plain", "application/json", "application/yaml"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// `apps` for `apps`, `rbacAuthorization` for `rbac.authorization.k8s.io`, `core` for none.
fn group_word(group: &str) -> String {
    let group = match group {
        "" => "core",
        group => group.strip_suffix(".k8s.io").unwrap_or(group),
    };
    let mut words = group.split(['.', '-']);
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &upper(word))
}

/// With a capital letter.
fn upper(word: &str) -> String {
    let mut letters = word.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// `AppsV1`
fn prefix(group: &str, version: &str) -> String {
    upper(&group_word(group)) + &upper(version)
}

/// `apps_v1`
fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", group_word(group))
}

/// A document that tells what there is.
pub(super) fn overview(path: &str, id: &str, tag: &str, schema: &str) -> Path {
    Path {
        path: path.to_owned(),
        parameters: Vec::new(),
        operations: vec![Operation {
            method: "get",
            action: None,
            kind: None,
            id: id.to_owned(),
            tag: tag.to_owned(),
            description: "tell what there is".to_owned(),
            body: None,
            parameters: Vec::new(),
            codes: &[200],
            answer: Some(schema.to_owned()),
            consumes: OBJECTS,
            produces: OBJECTS,
        }],
    }
}

/// What there is in a group.
pub(super) fn group(group: &str) -> Path {
    let id = format!("get{}APIGroup", upper(&group_word(group)));
    let path = ["/apis/", group, "/"].concat();
    overview(&path, &id, &group_word(group), &meta("APIGroup"))
}

/// What there is in a group and version, which is served at `root`.
pub(super) fn version(root: &str, group: &str, version: &str) -> Path {
    let id = format!("get{}APIResources", prefix(group, version));
    let (path, tag) = (["/", root, "/"].concat(), tag(group, version));
    overview(&path, &id, &tag, &meta("APIResourceList"))
}

/// Paths of one resource, as they are made.
struct Maker<'a> {
    info: &'a ResourceInfo,
    schema: String,
    verbs: &'static [&'static str],
    /// `/apis/GROUP/VERSION`
    root: String,
    /// `AppsV1`
    prefix: String,
    /// `Namespaced`, or nothing.
    scope: &'static str,
}

impl Maker<'_> {
    fn has(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// An operation about the kind itself, without a body or parameters.
    fn operation(&self, method: &'static str, action: &'static str, id: String) -> Operation {
        let info = self.info;
        Operation {
            method,
            action: Some(action),
            kind: Some([&*info.group, &*info.version, &*info.kind].map(str::to_owned)),
            id,
            tag: tag(&info.group, &info.version),
            description: format!("{action} {}", info.plural),
            body: None,
            parameters: Vec::new(),
            codes: &[200],
            answer: Some(self.schema.clone()),
            consumes: ANY,
            produces: OBJECTS,
        }
    }

    /// `createAppsV1NamespacedDeployment`
    fn id(&self, verb: &str, suffix: &str) -> String {
        let (prefix, scope, kind) = (&self.prefix, self.scope, &self.info.kind);
        format!("{verb}{prefix}{scope}{kind}{suffix}")
    }

    fn body(schema: &str) -> Option<Body> {
        Some(Body {
            schema: schema.to_owned(),
            required: true,
        })
    }

    fn options() -> Option<Body> {
        Some(Body {
            schema: meta("DeleteOptions"),
            required: false,
        })
    }

    fn list(&self, id: String) -> Operation {
        Operation {
            answer: Some(format!("{}List", self.schema)),
            produces: EVENTS,
            ..self.operation("get", "list", id)
        }
    }

    fn watch(&self, action: &'static str, id: String) -> Operation {
        Operation {
            answer: Some(meta("WatchEvent")),
            produces: EVENTS,
            description: format!(
                "{action} {}; superseded by the parameter watch",
                self.info.plural
            ),
            ..self.operation("get", action, id)
        }
    }

    fn create(&self, id: String, schema: &str) -> Operation {
        Operation {
            body: Self::body(schema),
            parameters: parameters::WRITE.to_vec(),
            codes: &[200, 201, 202],
            answer: Some(schema.to_owned()),
            ..self.operation("post", "post", id)
        }
    }

    fn replace(&self, id: String, schema: &str) -> Operation {
        Operation {
            body: Self::body(schema),
            parameters: parameters::WRITE.to_vec(),
            codes: &[200, 201],
            answer: Some(schema.to_owned()),
            ..self.operation("put", "put", id)
        }
    }

    fn patch(&self, id: String, schema: &str) -> Operation {
        Operation {
            body: Self::body(&meta("Patch")),
            parameters: parameters::PATCH.to_vec(),
            codes: &[200, 201],
            answer: Some(schema.to_owned()),
            consumes: PATCHES,
            ..self.operation("patch", "patch", id)
        }
    }

    /// The collection, in one namespace where the resource has any.
    fn collection(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        if self.has("list") {
            let parameters = parameters::LIST.to_vec();
            operations.push(Operation {
                parameters,
                ..self.list(self.id("list", ""))
            });
        }
        if self.has("create") {
            operations.push(self.create(self.id("create", ""), &self.schema));
        }
        if self.has("deletecollection") {
            let (prefix, scope, kind) = (&self.prefix, self.scope, &self.info.kind);
            let id = format!("delete{prefix}Collection{scope}{kind}");
            operations.push(Operation {
                body: Self::options(),
                parameters: parameters::DELETE_COLLECTION.to_vec(),
                answer: Some(meta("Status")),
                ..self.operation("delete", "deletecollection", id)
            });
        }
        operations
    }

    fn object(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        if self.has("get") {
            operations.push(self.operation("get", "get", self.id("read", "")));
        }
        if self.has("update") {
            operations.push(self.replace(self.id("replace", ""), &self.schema));
        }
        if self.has("patch") {
            operations.push(self.patch(self.id("patch", ""), &self.schema));
        }
        if self.has("delete") {
            operations.push(Operation {
                body: Self::options(),
                parameters: parameters::DELETE.to_vec(),
                codes: &[200, 202],
                answer: Some(meta("Status")),
                ..self.operation("delete", "delete", self.id("delete", ""))
            });
        }
        operations
    }

    /// Operations that read and write a document.
    fn document(&self, sub: &Subresource, schema: &str) -> Vec<Operation> {
        let suffix = upper(sub.name);
        let operation = |verb: &str| match verb {
            "get" => Some(Operation {
                answer: Some(schema.to_owned()),
                ..self.operation("get", "get", self.id("read", &suffix))
            }),
            "create" => Some(self.create(self.id("create", &suffix), schema)),
            "update" => Some(self.replace(self.id("replace", &suffix), schema)),
            "patch" => Some(self.patch(self.id("patch", &suffix), schema)),
            _ => None,
        };
        let kind = match sub.version {
            "" => [&*self.info.group, &*self.info.version, &*sub.kind],
            version => [sub.group, version, &*sub.kind],
        };
        let operations = sub.verbs().filter_map(operation);
        operations
            .map(|made| Operation {
                kind: Some(kind.map(str::to_owned)),
                ..made
            })
            .collect()
    }

    /// Operations that hand over a stream; `suffix` ends their names.
    fn stream(&self, sub: &Subresource, suffix: &str) -> Vec<Operation> {
        let kind = [&*self.info.group, &*self.info.version, &*sub.kind];
        let methods = sub.verbs().filter_map(|verb| match verb {
            "get" => Some("get"),
            "create" => Some("post"),
            "update" => Some("put"),
            "patch" => Some("patch"),
            "delete" => Some("delete"),
            _ => None,
        });
        let (prefix, scope, name) = (&self.prefix, self.scope, &self.info.kind);
        methods
            .map(|method| {
                let verb = upper(method);
                let id = format!(
                    "connect{prefix}{verb}{scope}{name}{}{suffix}",
                    upper(sub.name)
                );
                Operation {
                    kind: Some(kind.map(str::to_owned)),
                    answer: None,
                    produces: ANY,
                    ..self.operation(method, "connect", id)
                }
            })
            .collect()
    }

    fn subresource(
        &self,
        sub: &Subresource,
        object: &str,
        schemas: &Schemas,
        paths: &mut Vec<Path>,
    ) {
        let path = [object, "/", sub.name].concat();
        let own = self.of_object();
        if sub.name == "log" {
            let parameters = [own, vec![PRETTY], parameters::of_stream(sub.name)].concat();
            let operations = vec![Operation {
                answer: None,
                produces: LOGS,
                ..self.operation("get", "get", self.id("read", "Log"))
            }];
            paths.push(Path {
                path,
                parameters,
                operations,
            });
        } else if let Some(schema) =
            schemas.of_subresource(&sub.kind, &self.info.kind, &self.schema)
        {
            paths.push(Path {
                path,
                parameters: [own, vec![PRETTY]].concat(),
                operations: self.document(sub, &schema),
            });
        } else {
            let parameters = [own, parameters::of_stream(sub.name)].concat();
            if sub.name == "proxy" {
                paths.push(Path {
                    path: [path.as_str(), "/{path}"].concat(),
                    parameters: [&parameters[..], &[PATH]].concat(),
                    operations: self.stream(sub, "WithPath"),
                });
            }
            paths.push(Path {
                path,
                parameters,
                operations: self.stream(sub, ""),
            });
        }
    }

    /// What the path of an object holds.
    fn of_object(&self) -> Vec<Parameter> {
        match self.info.namespaced {
            true => vec![NAME, NAMESPACE],
            false => vec![NAME],
        }
    }

    /// `/apis/apps/v1/namespaces/{namespace}/deployments`, below the root or below `watch`.
    fn below(&self, parts: &[&str]) -> String {
        let mut path = self.root.clone();
        for part in parts {
            path.push('/');
            path.push_str(part);
        }
        path
    }
}

/// The paths of a resource that is served at `root`.
pub(super) fn of(resource: &Resource, root: &str, schemas: &Schemas) -> Vec<Path> {
    let info = resource.info();
    let make = Maker {
        info,
        schema: schemas.of_kind(resource),
        verbs: resource.verbs(),
        root: ["/", root].concat(),
        prefix: prefix(&info.group, &info.version),
        scope: if info.namespaced { "Namespaced" } else { "" },
    };
    let scope = match info.namespaced {
        true => vec!["namespaces", "{namespace}", &*info.plural],
        false => vec![&*info.plural],
    };
    let collection = make.below(&scope);
    let object = make.below(&[&scope[..], &["{name}"]].concat());
    let namespace = match info.namespaced {
        true => vec![NAMESPACE, PRETTY],
        false => vec![PRETTY],
    };
    let of_object = [make.of_object(), vec![PRETTY]].concat();
    let all = [parameters::LIST, &[PRETTY]].concat();
    let mut paths = vec![
        Path {
            path: collection,
            parameters: namespace.clone(),
            operations: make.collection(),
        },
        Path {
            path: object.clone(),
            parameters: of_object.clone(),
            operations: make.object(),
        },
    ];
    let everywhere = |verb: &str, suffix: &str| {
        let (prefix, kind) = (&make.prefix, &info.kind);
        format!("{verb}{prefix}{kind}{suffix}ForAllNamespaces")
    };
    if info.namespaced && make.has("list") {
        paths.push(Path {
            path: make.below(&[&info.plural]),
            parameters: all.clone(),
            operations: vec![make.list(everywhere("list", ""))],
        });
    }
    if make.has("watch") {
        if info.namespaced {
            paths.push(Path {
                path: make.below(&["watch", &info.plural]),
                parameters: all.clone(),
                operations: vec![make.watch("watchlist", everywhere("watch", "List"))],
            });
        }
        let watched = [&["watch"][..], &scope[..]].concat();
        paths.push(Path {
            path: make.below(&watched),
            parameters: [parameters::LIST, &namespace[..]].concat(),
            operations: vec![make.watch("watchlist", make.id("watch", "List"))],
        });
        paths.push(Path {
            path: make.below(&[&watched[..], &["{name}"]].concat()),
            parameters: [parameters::LIST, &of_object[..]].concat(),
            operations: vec![make.watch("watch", make.id("watch", ""))],
        });
    }
    for sub in resource.subresources() {
        make.subresource(sub, &object, schemas, &mut paths);
    }
    paths.retain(|path| !path.operations.is_empty());
    paths
}
