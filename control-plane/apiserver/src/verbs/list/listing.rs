//! A list on its way: written a piece at a time, as fast as its client reads.

use std::collections::VecDeque;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use gantry_api::status::StatusError;
use gantry_api::yaml;
use gantry_store::Entry;

use crate::codec;
use crate::connections::PIECE;
use crate::context::{Asked, Context};
use crate::encoder::{partial, pretty, pretty_body, row};
use crate::media::{Form, Format, Media};
use crate::response::Answer;
use crate::verbs::scan::{Scan, Step};

/// See the module.
pub(super) struct Listing {
    asked: Asked,
    media: Media,
    items: Scan,
    /// Written, and not sent yet.
    buffer: BytesMut,
    ready: VecDeque<Bytes>,
    /// Whether an item was written.
    begun: bool,
    ended: bool,
}

/// Why a list broke off after its beginning was sent.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("the list was not read in time: read faster, or page by page with 'limit'")]
    Expired,
    #[error(transparent)]
    Object(#[from] StatusError),
}

impl Listing {
    pub(super) fn new(context: &Context<'_>, media: Media, head: String, items: Scan) -> Self {
        Self {
            asked: Asked::of(context),
            media,
            items,
            buffer: BytesMut::from(head.as_bytes()),
            ready: VecDeque::new(),
            begun: false,
            ended: false,
        }
    }

    /// The answer. A small list is made whole, and what is wrong with the first objects is said instead.
    pub(super) fn answer(mut self) -> Result<Answer, StatusError> {
        let format = self.media.format;
        match self.fill() {
            Err(BrokenOff::Object(error)) => return Err(error),
            // The next look at it says so again.
            Err(BrokenOff::Expired) | Ok(()) => {}
        }
        let pretty_wanted = self.media.pretty && format != Format::Yaml;
        let body = match (self.ended, self.ready.len(), pretty_wanted) {
            (true, 1, pretty_wanted) => {
                let whole = self.ready.pop_front().unwrap_or_default();
                Body::from(if pretty_wanted { pretty(&whole) } else { whole })
            }
            (_, _, false) => Body::from_stream(self.pieces()),
            (_, _, true) => pretty_body(Body::from_stream(self.pieces())),
        };
        Ok(Answer::written(format.content_type(), body))
    }

    fn pieces(self) -> impl Stream<Item = Result<Bytes, BrokenOff>> {
        futures::stream::unfold(Some(self), async |listing| {
            let mut listing = listing?;
            match listing.next().await {
                Ok(piece) => piece.map(|piece| (Ok(piece), Some(listing))),
                Err(error) => {
                    tracing::debug!(%error, "a list broke off");
                    Some((Err(error), None))
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BrokenOff> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.ended {
                return Ok(None);
            }
            self.fill()?;
            if self.ready.is_empty() {
                // Nothing was selected yet; others have their turn.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Writes what one look at the table finds.
    fn fill(&mut self) -> Result<(), BrokenOff> {
        let entries = match self.items.step(PIECE) {
            Step::Some(entries) => entries,
            Step::Last(entries) => {
                self.ended = true;
                entries
            }
            Step::Expired => return Err(BrokenOff::Expired),
        };
        for entry in &entries {
            self.item(entry)?;
        }
        if self.ended {
            self.end();
        }
        if self.buffer.len() >= PIECE || self.ended {
            self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.ready
                .push_back(std::mem::take(&mut self.buffer).freeze());
        }
    }

    fn item(&mut self, entry: &Entry) -> Result<(), StatusError> {
        let begun = std::mem::replace(&mut self.begun, true);
        let resource = &self.asked.resource;
        if (self.media.format, self.media.shape) == (Format::Json, None) {
            if begun {
                self.buffer.put_u8(b',');
            }
            let (value, revision) = (&entry.value, entry.modify_revision);
            let rest = codec::begin_item(&mut self.buffer, resource, value, revision)?;
            if rest.len() <= PIECE {
                self.buffer.put_slice(&rest);
            } else {
                self.flush();
                self.ready.push_back(rest);
            }
            return Ok(());
        }
        let mut object = codec::decode_for_client(resource, entry)?;
        let context = self.asked.context();
        let value = match self.media.shape {
            Some(shape) if shape.form == Form::Table => row(&context, shape, object),
            Some(shape) => partial(&object, shape),
            // Items of typed lists carry no kind.
            None => {
                if let Some(object) = object.as_object_mut() {
                    object.remove("kind");
                    object.remove("apiVersion");
                }
                object
            }
        };
        match self.media.format {
            Format::Yaml => {
                if !begun {
                    self.buffer.put_u8(b'\n');
                }
                self.buffer
                    .put_slice(yaml::item_to_string(&value).as_bytes());
            }
            _ => {
                if begun {
                    self.buffer.put_u8(b',');
                }
                let writer = (&mut self.buffer).writer();
                serde_json::to_writer(writer, &value).map_err(damaged)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.buffer
            .put_slice(match (self.media.format, self.begun) {
                (Format::Yaml, false) => b" []\n",
                (Format::Yaml, true) => b"",
                _ => b"]}",
            });
    }
}

fn damaged(error: impl std::fmt::Display) -> StatusError {
    StatusError::internal(format!("writing an object of a list: {error}"))
}
