//! `gantry get`: tables, YAML, JSON, names, and watching.

use anyhow::{Result, anyhow};
use futures::{AsyncBufReadExt, StreamExt};
use gantry_api::json::Members;
use serde_json::{Value, json};

use crate::client::{ApiError, Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::manifest;
use crate::output::{self, Format, TableLayout};

/// List or show objects
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// TYPE[,TYPE...] [NAME...] or TYPE/NAME...; `all` for what people usually mean
    #[arg(required_unless_present = "filename")]
    target: Vec<String>,
    /// Show what these manifests name
    #[arg(long, short = 'f', conflicts_with = "target")]
    filename: Vec<String>,
    /// Descend into directories
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Do not fail when an object does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Output format: wide, yaml, json or name
    #[arg(long, short)]
    output: Option<String>,
    /// Only objects with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// Only objects with these fields
    #[arg(long)]
    field_selector: Option<String>,
    /// Objects of every namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Keep printing changes
    #[arg(long, short)]
    watch: bool,
    /// No header line
    #[arg(long)]
    no_headers: bool,
}

/// What is asked of the server for one target.
struct Query {
    mapping: Mapping,
    path: String,
    /// None where objects of all namespaces are asked for.
    namespace: Option<String>,
    name: Option<String>,
    parameters: Vec<(&'static str, String)>,
}

impl Get {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let format = Format::parse(self.output.as_deref())?;
        let mut failures = Failures::default();
        let queries = match self.filename.is_empty() {
            true => self.queries(cluster).await?,
            false => self.named(cluster, &mut failures).await?,
        };
        if let Format::Table { wide } = format
            && self.watch
        {
            failures.finish()?;
            return self.watch(cluster, &queries, wide).await;
        }
        let mut found = Vec::new();
        for query in &queries {
            match fetch(cluster, query, format).await {
                Ok(answer) => found.push((query, answer)),
                Err(error) if error.code() == Some(404) && self.ignore_not_found => {}
                Err(error) => failures.add(error),
            }
        }
        // Of one object that could not be had there is nothing to print, not even a list of none.
        let single = matches!(queries.as_slice(), [Query { name: Some(_), .. }]);
        if !found.is_empty() || !single {
            match format {
                Format::Table { wide } => {
                    self.tables(cluster, &queries, found, wide, failures.is_empty())?;
                }
                _ => self.documents(found, single, format)?,
            }
        }
        failures.finish()
    }

    /// What manifests name.
    async fn named(&self, cluster: &Cluster, failures: &mut Failures) -> Result<Vec<Query>> {
        let mut queries = Vec::new();
        for manifest in manifest::read_all(&self.filename, self.recursive).await? {
            let (version, kind) = (manifest.api_version(), manifest.kind());
            let Some(mapping) = cluster.mapping_of(version, kind).await? else {
                failures.add(anyhow!(
                    "resource mapping not found for name: \"{}\" namespace: \"{}\" from \"{}\": no matches for kind \"{kind}\" in version \"{version}\"",
                    manifest.name(),
                    manifest.namespace().unwrap_or_default(),
                    manifest.source,
                ));
                continue;
            };
            if manifest.name().is_empty() {
                let source = &manifest.source;
                failures.add(anyhow!("{source}: resource name may not be empty"));
                continue;
            }
            let namespace = manifest.namespace().unwrap_or(&cluster.namespace);
            queries.push(Query {
                path: mapping.path(Some(namespace), Some(manifest.name())),
                mapping: mapping.clone(),
                namespace: Some(namespace.to_owned()),
                name: Some(manifest.name().to_owned()),
                parameters: Vec::new(),
            });
        }
        Ok(queries)
    }

    async fn queries(&self, cluster: &Cluster) -> Result<Vec<Query>> {
        let mut queries = Vec::new();
        for target in Target::parse(&self.target)? {
            let mappings: Vec<Mapping> = match target.resource.as_str() {
                "all" => of_all(cluster.mappings().await?),
                word => vec![cluster.mapping(word).await?.clone()],
            };
            let names: Vec<Option<String>> = match target.names.is_empty() {
                true => vec![None],
                false => target.names.into_iter().map(Some).collect(),
            };
            for mapping in mappings {
                let namespace = (!self.all_namespaces).then_some(cluster.namespace.as_str());
                for name in &names {
                    let mut parameters = Vec::new();
                    if let Some(selector) = &self.selector {
                        parameters.push(("labelSelector", selector.clone()));
                    }
                    if let Some(selector) = &self.field_selector {
                        parameters.push(("fieldSelector", selector.clone()));
                    }
                    queries.push(Query {
                        path: mapping.path(namespace, name.as_deref()),
                        mapping: mapping.clone(),
                        namespace: namespace.map(str::to_owned),
                        name: name.clone(),
                        parameters,
                    });
                }
            }
        }
        Ok(queries)
    }

    fn layout(&self, query: &Query, wide: bool, several: bool) -> TableLayout {
        TableLayout {
            wide,
            headers: !self.no_headers,
            namespaces: self.all_namespaces && query.mapping.namespaced,
            prefix: match several {
                true => query.mapping.display(""),
                false => String::new(),
            },
        }
    }

    /// `complete`: nothing has failed.
    fn tables(
        &self,
        cluster: &Cluster,
        queries: &[Query],
        found: Vec<(&Query, Value)>,
        wide: bool,
        complete: bool,
    ) -> Result<()> {
        let mut sections = Vec::new();
        // Names say their resource where several have been found.
        let prefixed = found
            .windows(2)
            .any(|pair| pair[0].0.mapping != pair[1].0.mapping);
        // Consecutive names of one resource share a table.
        let mut open: Option<(String, Value, TableLayout)> = None;
        for (query, table) in found {
            match &mut open {
                Some((resource, rows, _)) if *resource == query.mapping.qualified() => {
                    let more = table["rows"].as_array().cloned().unwrap_or_default();
                    if let Some(rows) = rows.get_mut("rows").and_then(Value::as_array_mut) {
                        rows.extend(more);
                    }
                }
                _ => {
                    sections.extend(open.take());
                    open = Some((
                        query.mapping.qualified(),
                        table,
                        self.layout(query, wide, prefixed),
                    ));
                }
            }
        }
        sections.extend(open);
        let texts: Vec<String> = sections
            .iter()
            .filter(|(_, table, _)| {
                table["rows"]
                    .as_array()
                    .is_some_and(|rows| !rows.is_empty())
            })
            .map(|(_, table, layout)| layout.render(table))
            .collect();
        if texts.is_empty() && complete && !self.ignore_not_found {
            let scoped =
                !self.all_namespaces && queries.iter().all(|query| query.mapping.namespaced);
            match scoped {
                true => eprintln!("No resources found in {} namespace.", cluster.namespace),
                false => eprintln!("No resources found"),
            }
        }
        output::print(&texts.join("\n"))
    }

    fn documents(&self, found: Vec<(&Query, Value)>, single: bool, format: Format) -> Result<()> {
        let mut objects = Vec::new();
        for (query, answer) in found {
            match query.name {
                Some(_) => objects.push((query, answer)),
                None => {
                    for mut item in answer["items"].as_array().cloned().unwrap_or_default() {
                        // Items of a typed list carry neither; a document by itself needs both.
                        *item.member(&["apiVersion"]) = json!(query.mapping.api_version());
                        *item.member(&["kind"]) = json!(query.mapping.kind);
                        objects.push((query, item));
                    }
                }
            }
        }
        if objects.is_empty() && self.ignore_not_found {
            return Ok(());
        }
        if format == Format::Name {
            let names: String = objects
                .iter()
                .map(|(query, object)| {
                    format!(
                        "{}\n",
                        query
                            .mapping
                            .display(object["metadata"]["name"].as_str().unwrap_or_default())
                    )
                })
                .collect();
            return output::print(&names);
        }
        let document = match objects.as_slice() {
            [(_, object)] if single => object.clone(),
            _ => json!({
                "apiVersion": "v1",
                "kind": "List",
                "items": objects.into_iter().map(|(_, object)| object).collect::<Vec<_>>(),
                "metadata": {"resourceVersion": ""},
            }),
        };
        output::print(&output::document(&document, format)?)
    }

    async fn watch(&self, cluster: &Cluster, queries: &[Query], wide: bool) -> Result<()> {
        let [query] = queries else {
            anyhow::bail!("you may only watch one resource or object at a time");
        };
        let mut layout = self.layout(query, wide, false);
        let path = query.mapping.path(query.namespace.as_deref(), None);
        let mut parameters: Vec<(&str, String)> = query.parameters.clone();
        if let Some(name) = &query.name {
            parameters.push(("fieldSelector", format!("metadata.name={name}")));
        }
        parameters.push(("watch", "true".to_owned()));
        let parameters: Vec<(&str, &str)> = parameters
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let call = Call {
            query: &parameters,
            accept: Format::Table { wide }.accept(),
            ..Call::get(&path)
        };
        let mut lines = Box::pin(cluster.stream(call).await?.lines());
        // Only the first event's Table carries the column definitions.
        let mut columns = Value::Null;
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line?)?;
            if event["type"] == "BOOKMARK" {
                continue;
            }
            if event["type"] == "ERROR" {
                anyhow::bail!(
                    "{}",
                    event["object"]["message"]
                        .as_str()
                        .unwrap_or("the watch failed")
                );
            }
            let mut table = event["object"].clone();
            if table["columnDefinitions"]
                .as_array()
                .is_some_and(|columns| !columns.is_empty())
            {
                columns = table["columnDefinitions"].clone();
            }
            *table.member(&["columnDefinitions"]) = columns.clone();
            output::print(&layout.render(&table))?;
            layout.headers = false;
        }
        Ok(())
    }
}

async fn fetch(cluster: &Cluster, query: &Query, format: Format) -> Result<Value, ApiError> {
    let parameters: Vec<(&str, &str)> = query
        .parameters
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let call = Call {
        query: &parameters,
        accept: format.accept(),
        ..Call::get(&query.path)
    };
    cluster.call(call).await
}
/// What `all` stands for: of each resource, the version that the server prefers, which is the first.
fn of_all(mappings: &[Mapping]) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        let names = |one: &Mapping| (one.group.clone(), one.plural.clone());
        let known = all.iter().any(|known| names(known) == names(mapping));
        if !known && mapping.categories.iter().any(|category| category == "all") {
            all.push(mapping.clone());
        }
    }
    all
}
