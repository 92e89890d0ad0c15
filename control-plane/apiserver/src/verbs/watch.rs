//! Watching: events of a collection as they happen, one JSON document a line.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Event, Revision, Watch, WatchError};
use http::StatusCode;
use http::header;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::list::{Shape, column_definitions, partial, row, wants_table};
use super::selection::Selection;
use crate::codec;
use crate::context::{Api, Context};
use crate::identity::Identity;
use crate::registry::Resource;
use crate::request::{Query, ResourcePath};
use crate::response::Answer;

/// Bytes encoded ahead of the client; a single event may be larger.
const AHEAD: usize = 1 << 20;
/// What an event counts at least.
const LEAST: usize = 256;
/// A client that takes nothing for this long, although there is something, has to list again.
const STALLED: Duration = Duration::from_secs(30);
/// How often a client that asked for bookmarks gets one.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Watches without a time-out end by themselves after this long, and up to twice as long.
const LONGEST: Duration = Duration::from_secs(1800);

/// Everything a watch needs after its request is gone.
struct Session {
    api: Arc<Api>,
    resource: Arc<Resource>,
    path: ResourcePath,
    query: Query,
    headers: http::HeaderMap,
    identity: Identity,
    selection: Selection,
    shape: Option<Shape>,
    /// Table columns are sent with the first event only.
    columns_sent: bool,
    bookmarks: bool,
    events: mpsc::UnboundedSender<Line>,
    /// Of [`AHEAD`].
    room: Arc<Semaphore>,
}

/// A line on its way to the client, and the room it takes until it is there.
type Line = (Bytes, Option<OwnedSemaphorePermit>);

/// What is sent before the first change.
enum Initial {
    Nothing,
    /// Every object, as ADDED.
    Objects,
    /// Every object, then a bookmark that says so.
    ObjectsAndBookmark,
}

pub(crate) async fn watch(context: &Context<'_>) -> Result<Answer, StatusError> {
    let selection = Selection::read(context)?;
    let shape = wants_table(context.headers)?;
    let bookmarks = context.query.flag("allowWatchBookmarks");
    let (initial, from) = start(context)?;
    let timeout = match context.query.number("timeoutSeconds")?.unwrap_or(0) {
        seconds if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()),
        _ => LONGEST.mul_f64(1.0 + rand::rng().random::<f64>()),
    };
    let store = &context.api.store;
    let snapshot = store.snapshot(&context.resource.table);
    let since = match initial {
        Initial::Nothing => from,
        _ => snapshot.revision(),
    };
    let opened = store.watch(std::slice::from_ref(&context.resource.table), since);
    let (events, receiver) = mpsc::unbounded_channel::<Line>();
    let mut session = Session {
        api: context.api.clone(),
        resource: context.resource.clone(),
        path: context.path.clone(),
        query: context.query.clone(),
        headers: context.headers.clone(),
        identity: context.identity.clone(),
        selection,
        shape,
        columns_sent: false,
        bookmarks,
        events,
        room: Arc::new(Semaphore::new(AHEAD)),
    };
    tokio::spawn(async move {
        let result = async {
            let watch = match opened {
                Ok(watch) => watch,
                Err(error) => return session.expired(error, since).await,
            };
            if !matches!(initial, Initial::Nothing) {
                let entries: Vec<_> = snapshot
                    .range_after(session.path.namespace.as_deref(), None)
                    .filter(|(key, entry)| session.selection.matches(&key.0, &key.1, entry))
                    .map(|(_, entry)| entry.clone())
                    .collect();
                for entry in entries {
                    session.send("ADDED", &entry).await?;
                }
                if matches!(initial, Initial::ObjectsAndBookmark) {
                    session.bookmark(snapshot.revision(), true).await?;
                }
            }
            drop(snapshot);
            session.follow(watch).await
        };
        if let Ok(Err(Gone)) = tokio::time::timeout(timeout, result).await {
            tracing::debug!("a watcher went away, or stopped reading");
        }
    });
    let mut answer = Answer::text(StatusCode::OK, "");
    answer.headers.remove(header::X_CONTENT_TYPE_OPTIONS);
    let lines = UnboundedReceiverStream::new(receiver);
    answer.body = Body::from_stream(lines.map(|(line, _)| Ok::<_, Infallible>(line)));
    Ok(answer.with_content_type("application/json"))
}

/// Where a watch starts.
fn start(context: &Context<'_>) -> Result<(Initial, Revision), StatusError> {
    let query = context.query;
    let how = query.get("resourceVersionMatch");
    let invalid = |detail: &str| {
        let mut errors = ErrorList::default();
        errors.forbidden(&Path::new("resourceVersionMatch"), detail);
        StatusError::invalid_kind("meta.k8s.io", "ListOptions", "", errors)
    };
    let send_initial = query
        .get("sendInitialEvents")
        .map(|_| query.flag("sendInitialEvents"));
    match (send_initial, how) {
        (Some(_), Some("NotOlderThan")) => {}
        (Some(_), _) => {
            return Err(invalid(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        (None, Some(_)) => {
            return Err(invalid(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        (None, None) => {}
    }
    let revision = Revision(query.resource_version()?.unwrap_or(0));
    if revision > context.api.store.revision() {
        return Err(StatusError::too_large_resource_version(
            revision.0,
            context.api.store.revision().0,
        ));
    }
    Ok(match send_initial {
        Some(true) => (Initial::ObjectsAndBookmark, revision),
        Some(false) => (
            Initial::Nothing,
            if revision.0 == 0 {
                context.api.store.revision()
            } else {
                revision
            },
        ),
        None if revision.0 == 0 => (Initial::Objects, revision),
        None => (Initial::Nothing, revision),
    })
}

/// The client closed the connection, or does not read from it.
struct Gone;

impl Session {
    fn context(&self) -> Context<'_> {
        Context {
            api: &self.api,
            resource: &self.resource,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            identity: &self.identity,
            body: Bytes::new(),
            transcoded: false,
        }
    }

    async fn follow(&mut self, mut watch: Watch) -> Result<(), Gone> {
        let mut ticks = tokio::time::interval(BOOKMARKS);
        ticks.tick().await;
        loop {
            tokio::select! {
                event = watch.next() => match event {
                    None => return Ok(()),
                    Some(Err(error)) => return self.expired(error, watch.progress_revision()).await,
                    Some(Ok(event)) => self.event(&event).await?,
                },
                _ = ticks.tick(), if self.bookmarks => self.bookmark(watch.progress_revision(), false).await?,
                () = self.events.closed() => return Err(Gone),
            }
        }
    }

    /// An object enters, changes within, or leaves what is watched.
    async fn event(&mut self, event: &Event) -> Result<(), Gone> {
        let (namespace, name) = (&event.key.namespace, &event.key.name);
        if self
            .path
            .namespace
            .as_deref()
            .is_some_and(|wanted| wanted != &**namespace)
        {
            return Ok(());
        }
        let matched = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches(namespace, name, previous));
        let matches = !event.deleted && self.selection.matches(namespace, name, &event.entry);
        match (matched, matches) {
            (false, false) => Ok(()),
            (false, true) => self.send("ADDED", &event.entry).await,
            (true, true) => self.send("MODIFIED", &event.entry).await,
            (true, false) => {
                // The state that was watched, at the revision at which it ceased to be.
                let last = match (event.deleted, &event.previous) {
                    (false, Some(previous)) => Entry {
                        modify_revision: event.revision,
                        ..Entry::clone(previous)
                    },
                    _ => Entry {
                        modify_revision: event.revision,
                        ..Entry::clone(&event.entry)
                    },
                };
                self.send("DELETED", &last).await
            }
        }
    }

    async fn send(&mut self, kind: &str, entry: &Entry) -> Result<(), Gone> {
        let line = match self.shape {
            None => {
                let mut bytes = BytesMut::with_capacity(entry.value.len() + 160);
                bytes.put_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
                codec::write_object(
                    &mut bytes,
                    self.resource.info(),
                    &entry.value,
                    entry.modify_revision,
                );
                bytes.put_slice(b"}\n");
                bytes.freeze()
            }
            Some(shape) => match self.shaped(shape, entry) {
                Ok(object) => line(kind, &object),
                Err(error) => line("ERROR", &error.to_value()),
            },
        };
        self.write(line).await
    }

    fn shaped(&mut self, shape: Shape, entry: &Entry) -> Result<Value, StatusError> {
        if shape == Shape::Metadata {
            return partial(&self.context(), entry);
        }
        let row = row(&self.context(), entry)?;
        let columns = match self.columns_sent {
            true => json!([]),
            false => column_definitions(&self.context()),
        };
        self.columns_sent = true;
        Ok(json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {"resourceVersion": entry.modify_revision.to_string()},
            "columnDefinitions": columns,
            "rows": [row],
        }))
    }

    async fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Result<(), Gone> {
        let info = self.resource.info();
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        *metadata.member(&["creationTimestamp"]) = Value::Null;
        if initial_end {
            *metadata.member(&["annotations"]) = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({
            "kind": info.kind,
            "apiVersion": codec::api_version(info),
            "metadata": metadata,
        });
        self.write(line("BOOKMARK", &object)).await
    }

    /// Tells the client to list again.
    async fn expired(&mut self, error: WatchError, from: Revision) -> Result<(), Gone> {
        let status = match error {
            WatchError::Compacted(oldest) => {
                StatusError::gone_expired(format!("too old resource version: {from} ({oldest})"))
            }
            WatchError::Lagged => StatusError::gone_expired(error.to_string()),
        };
        self.write(expiry(&status)).await
    }

    async fn write(&self, line: Bytes) -> Result<(), Gone> {
        let weight = line.len().clamp(LEAST, AHEAD);
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(weight);
        let Ok(Ok(room)) = tokio::time::timeout(STALLED, room).await else {
            let seconds = STALLED.as_secs();
            let status = StatusError::gone_expired(format!(
                "the watch was closed: nothing was read from it for {seconds} s"
            ));
            // The last line, for when the client reads again.
            self.events.send((expiry(&status), None)).ok();
            return Err(Gone);
        };
        self.events.send((line, Some(room))).map_err(|_| Gone)
    }
}

fn expiry(status: &StatusError) -> Bytes {
    line("ERROR", &status.to_value())
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}

#[cfg(test)]
mod tests;
