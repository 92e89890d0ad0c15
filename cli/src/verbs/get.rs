//! `gantry get`: tables, YAML, JSON, names, and watching.

use anyhow::Result;
use futures::{AsyncBufReadExt, StreamExt};
use gantry_api::json::Members;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, Mapping, Target};
use crate::output::{self, Format, TableLayout};

/// List or show objects
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// TYPE[,TYPE...] [NAME...] or TYPE/NAME...; `all` for what people usually mean
    #[arg(required = true)]
    target: Vec<String>,
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
    name: Option<String>,
    parameters: Vec<(&'static str, String)>,
}

impl Get {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let format = Format::parse(self.output.as_deref())?;
        let queries = self.queries(cluster).await?;
        let several = queries.len() > 1;
        match format {
            Format::Table { wide } if self.watch => self.watch(cluster, &queries, wide).await,
            Format::Table { wide } => self.tables(cluster, &queries, wide, several).await,
            _ => self.documents(cluster, &queries, format).await,
        }
    }

    async fn queries(&self, cluster: &Cluster) -> Result<Vec<Query>> {
        let mut queries = Vec::new();
        for target in Target::parse(&self.target)? {
            let mappings: Vec<Mapping> = match target.resource.as_str() {
                "all" => cluster
                    .mappings()
                    .await?
                    .iter()
                    .filter(|mapping| mapping.categories.iter().any(|category| category == "all"))
                    .cloned()
                    .collect(),
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

    async fn tables(
        &self,
        cluster: &Cluster,
        queries: &[Query],
        wide: bool,
        several: bool,
    ) -> Result<()> {
        let mut sections = Vec::new();
        // Consecutive names of one resource share a table.
        let mut open: Option<(String, Value, TableLayout)> = None;
        for query in queries {
            let table = fetch(cluster, query, Format::Table { wide }).await?;
            match &mut open {
                Some((resource, rows, _)) if *resource == query.mapping.qualified() => {
                    let more = table["rows"].as_array().cloned().unwrap_or_default();
                    if let Some(rows) = rows.get_mut("rows").and_then(Value::as_array_mut) {
                        rows.extend(more);
                    }
                }
                _ => {
                    sections.extend(open.take());
                    let prefixed =
                        several && queries.iter().any(|other| other.mapping != query.mapping);
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
        if texts.is_empty() {
            let scoped =
                !self.all_namespaces && queries.iter().all(|query| query.mapping.namespaced);
            match scoped {
                true => eprintln!("No resources found in {} namespace.", cluster.namespace),
                false => eprintln!("No resources found"),
            }
        }
        output::print(&texts.join("\n"))
    }

    async fn documents(&self, cluster: &Cluster, queries: &[Query], format: Format) -> Result<()> {
        let mut objects = Vec::new();
        for query in queries {
            let answer = fetch(cluster, query, format).await?;
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
        let single = matches!(queries, [Query { name: Some(_), .. }]);
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
        let path = match query.name {
            Some(_) => query.mapping.path(
                (!self.all_namespaces).then_some(cluster.namespace.as_str()),
                None,
            ),
            None => query.path.clone(),
        };
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

async fn fetch(cluster: &Cluster, query: &Query, format: Format) -> Result<Value> {
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
    Ok(cluster.call(call).await?)
}
