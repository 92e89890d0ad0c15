//! Watching: events of a collection as they happen, one JSON document a line.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Event, Revision, Watch, WatchError};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval};

use super::list::options::check_watch;
use super::scan::{Scan, Step};
use super::selection::Selection;
use crate::codec;
use crate::connections::PIECE;
use crate::context::{Asked, Context};
use crate::encoder::{check_object_policy, column_definitions, partial, row};
use crate::media::{Form, Format, Media, Shape};
use crate::response::Answer;

/// How often a client that asked for bookmarks gets one.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Watches without a time-out end by themselves after this long, and up to twice as long.
const LONGEST: Duration = Duration::from_secs(1800);
/// A time-out longer than this is none that a clock could add.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Everything a watch needs after its request is gone. Nothing is written before the client has read what was: what
/// waits meanwhile is in the store's queue, which is bounded.
struct Session {
    asked: Asked,
    selection: Selection,
    shape: Option<Shape>,
    /// Table columns are sent with the first event only.
    columns_sent: bool,
    bookmarks: Option<Interval>,
    ends: Instant,
    /// What is sent before the first change.
    initial: Option<Objects>,
    events: Watch,
    /// Written, and not sent yet.
    buffer: BytesMut,
    ready: VecDeque<Bytes>,
    ended: bool,
}

/// Every object, as ADDED.
struct Objects {
    scan: Scan,
    /// Of the bookmark that says that those were all.
    then: Option<Revision>,
}

enum Initial {
    Nothing,
    Objects,
    ObjectsAndBookmark,
}

pub(crate) async fn watch(context: &Context<'_>) -> Result<Answer, StatusError> {
    let media = Media::of_watch(context.headers)?;
    let seconds = context.query.number("timeoutSeconds")?;
    context.query.number("limit")?;
    let selection = Selection::parse(context)?;
    check_watch(context.query)?;
    let selection = selection.of(context)?;
    check_object_policy(context, media)?;
    let bookmarks = context.query.flag("allowWatchBookmarks");
    let (initial, from) = start(context, bookmarks)?;
    let timeout = match seconds.unwrap_or(0) {
        seconds if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()).min(FOR_EVER),
        _ => LONGEST.mul_f64(1.0 + rand::rng().random::<f64>()),
    };
    let store = &context.api.store;
    let snapshot = store.snapshot(&context.resource.table);
    let since = match initial {
        Initial::Nothing => from,
        _ => snapshot.revision(),
    };
    let table = std::slice::from_ref(&context.resource.table);
    let opened = match &context.budget {
        Some(budget) => store.watch_within(table, since, budget.clone()),
        None => store.watch(table, since),
    };
    let json = Format::Json.content_type();
    let events = match opened {
        Ok(events) => events,
        Err(error) => {
            let last = line("ERROR", &expired(error, since).to_value());
            return Ok(Answer::written(json, last));
        }
    };
    let namespace = context.namespace().map(str::to_owned);
    let initial = match initial {
        Initial::Nothing => None,
        kind => Some(Objects {
            then: matches!(kind, Initial::ObjectsAndBookmark).then(|| snapshot.revision()),
            scan: Scan::new(snapshot, namespace, selection.clone(), None, 0),
        }),
    };
    let now = Instant::now();
    let session = Session {
        asked: Asked::of(context),
        selection,
        shape: media.shape,
        columns_sent: false,
        bookmarks: bookmarks.then(|| tokio::time::interval_at(now + BOOKMARKS, BOOKMARKS)),
        ends: now + timeout,
        initial,
        events,
        buffer: BytesMut::new(),
        ready: VecDeque::new(),
        ended: false,
    };
    let pieces = futures::stream::unfold(session, async |mut session| {
        let piece = session.next().await?;
        Some((Ok::<_, Infallible>(piece), session))
    });
    Ok(Answer::written(json, Body::from_stream(pieces)))
}

/// Where a watch starts. Who wants bookmarks is told by one that all there was has been sent, whether that was asked for or
/// is what a watch without a revision does.
fn start(context: &Context<'_>, bookmarks: bool) -> Result<(Initial, Revision), StatusError> {
    let query = context.query;
    let send_initial = query
        .first("sendInitialEvents")
        .map(|_| query.flag("sendInitialEvents"));
    let initial = match bookmarks {
        true => Initial::ObjectsAndBookmark,
        false => Initial::Objects,
    };
    let revision = Revision(query.resource_version()?.unwrap_or(0));
    if revision > context.api.store.revision() {
        return Err(StatusError::too_large_resource_version(
            revision.0,
            context.api.store.revision().0,
        ));
    }
    Ok(match send_initial {
        Some(true) => (initial, revision),
        Some(false) => (
            Initial::Nothing,
            if revision.0 == 0 {
                context.api.store.revision()
            } else {
                revision
            },
        ),
        None if revision.0 == 0 => (initial, revision),
        None => (Initial::Nothing, revision),
    })
}

impl Session {
    /// The next lines, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            if self.ended || Instant::now() >= self.ends {
                return None;
            }
            if self.initial.is_some() {
                self.objects();
                if self.ready.is_empty() {
                    // Nothing was selected yet; others have their turn.
                    tokio::task::yield_now().await;
                }
            } else {
                self.follow().await?;
            }
        }
    }

    /// Writes some of the objects there are.
    fn objects(&mut self) {
        let Some(objects) = &mut self.initial else {
            return;
        };
        let (entries, last) = match objects.scan.step(PIECE) {
            Step::Some(entries) => (entries, false),
            Step::Last(entries) => (entries, true),
            Step::Expired => return self.end(expired(WatchError::Lagged, Revision(0))),
        };
        let complete = objects.then;
        for entry in entries {
            self.send("ADDED", &entry);
        }
        if last {
            self.initial = None;
            if let Some(revision) = complete {
                self.bookmark(revision, true);
            }
        }
        self.flush();
    }

    /// Waits for an event, and writes it with those that have gathered; none at the end.
    async fn follow(&mut self) -> Option<()> {
        let mut event = tokio::select! {
            event = self.events.next() => event?,
            () = due(&mut self.bookmarks) => {
                self.bookmark(self.events.progress_revision(), false);
                self.flush();
                return Some(());
            }
            () = tokio::time::sleep_until(self.ends) => return None,
        };
        loop {
            match event {
                Ok(event) => self.event(&event),
                Err(error) => {
                    self.end(expired(error, self.events.progress_revision()));
                    return Some(());
                }
            }
            if self.buffer.len() >= PIECE || !self.ready.is_empty() {
                break;
            }
            match self.events.try_next() {
                Some(next) => event = next,
                None => break,
            }
        }
        self.flush();
        Some(())
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            // Without what is left of its memory, which an idle watch would keep.
            self.ready
                .push_back(std::mem::take(&mut self.buffer).freeze());
        }
    }

    /// The last line.
    fn end(&mut self, status: StatusError) {
        self.buffer.put_slice(&line("ERROR", &status.to_value()));
        self.flush();
        self.ended = true;
    }

    /// An object enters, changes within, or leaves what is watched.
    fn event(&mut self, event: &Event) {
        let (namespace, name) = (&event.key.namespace, &event.key.name);
        let asked = self.asked.path.namespace.as_deref();
        if asked.is_some_and(|wanted| wanted != &**namespace) {
            return;
        }
        let matched = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches(namespace, name, previous));
        let matches = !event.deleted && self.selection.matches(namespace, name, &event.entry);
        match (matched, matches) {
            (false, false) => {}
            (false, true) => self.send("ADDED", &event.entry),
            (true, true) => self.send("MODIFIED", &event.entry),
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
                self.send("DELETED", &last);
            }
        }
    }

    fn send(&mut self, kind: &str, entry: &Entry) {
        if let Some(shape) = self.shape {
            let line = match self.shaped(shape, entry) {
                Ok(object) => line(kind, &object),
                Err(error) => line("ERROR", &error.to_value()),
            };
            self.buffer.put_slice(&line);
            return;
        }
        let resource = &self.asked.resource;
        let (value, revision) = (&entry.value, entry.modify_revision);
        let begun = self.buffer.len();
        self.buffer
            .put_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        match codec::begin_object(&mut self.buffer, resource, value, revision) {
            Ok(rest) if rest.len() <= PIECE => self.buffer.put_slice(&rest),
            Ok(rest) => {
                self.flush();
                self.ready.push_back(rest);
            }
            Err(error) => {
                self.buffer.truncate(begun);
                self.buffer.put_slice(&line("ERROR", &error.to_value()));
                return;
            }
        }
        self.buffer.put_slice(b"}\n");
    }

    fn shaped(&mut self, shape: Shape, entry: &Entry) -> Result<Value, StatusError> {
        let object = codec::decode_for_client(&self.asked.resource, entry)?;
        if shape.form != Form::Table {
            return Ok(partial(&object, shape));
        }
        let context = self.asked.context();
        let row = row(&context, shape, object);
        let columns = match self.columns_sent {
            true => json!([]),
            false => column_definitions(&context),
        };
        self.columns_sent = true;
        Ok(json!({
            "kind": "Table",
            "apiVersion": shape.api_version,
            "metadata": {"resourceVersion": entry.modify_revision.to_string()},
            "columnDefinitions": columns,
            "rows": [row],
        }))
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) {
        let info = self.asked.resource.info();
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            *metadata.member(&["annotations"]) = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({
            "kind": info.kind,
            "apiVersion": info.api_version(),
            "metadata": metadata,
        });
        // It is an object of the kind, of which nothing is set.
        self.asked.resource.kind.schema().complete(&mut object);
        self.buffer.put_slice(&line("BOOKMARK", &object));
    }
}

/// Until the next bookmark, if any is wanted.
async fn due(bookmarks: &mut Option<Interval>) {
    match bookmarks {
        Some(bookmarks) => {
            bookmarks.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Tells the client to list again.
fn expired(error: WatchError, from: Revision) -> StatusError {
    StatusError::gone_expired(match error {
        WatchError::Compacted(oldest) => format!("too old resource version: {from} ({oldest})"),
        WatchError::Lagged => error.to_string(),
    })
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}

#[cfg(test)]
mod tests;
