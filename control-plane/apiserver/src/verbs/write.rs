//! The one way into the store.
//!
//! Every write takes the same stages, whichever verb or subresource it came by: a new object is drafted, defaulted, completed
//! by admission, defaulted again, prepared, validated, judged by admission, given what is unique in the cluster, and committed.
//! A change goes through them in a compare-and-swap loop ([`swap`]) until nobody else has changed the object in between; a
//! deletion, a binding and the like have rules of their own in place of their kind's, and share everything else.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use gantry_api::field::{ErrorList, Path};
use gantry_api::kind::{Draft, ResourceInfo, WriteScope};
use gantry_api::status::{Details, StatusError};
use gantry_store::{Demand, Entry, Guard, Index, Operation as Change, Revision, Transaction};
use http::StatusCode;
use serde_json::{Value, json};

use crate::codec;
use crate::context::{Attributes, Committed, Context, Operation, attempts, meta};
use crate::heavy::Turn;
use crate::lines::Place;
use crate::response::Answer;

/// By whose rules an object changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Its kind's.
    Kind(WriteScope),
    /// The verb's own: what it makes of the object is what is stored.
    Verb,
}

/// How an object is changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) rules: Rules,
    pub(crate) operation: Operation,
    pub(crate) dry_run: bool,
}

impl Write {
    /// A change by the kind's rules.
    pub(crate) fn update(scope: WriteScope, dry_run: bool) -> Self {
        Self {
            rules: Rules::Kind(scope),
            operation: Operation::Update,
            dry_run,
        }
    }

    /// A change by the verb's own rules.
    pub(crate) fn own(operation: Operation, dry_run: bool) -> Self {
        Self {
            rules: Rules::Verb,
            operation,
            dry_run,
        }
    }
}

/// What became of an object.
pub(crate) struct Written {
    /// What was there.
    pub(crate) before: Arc<Entry>,
    /// What is there now; what would be, of a dry run.
    pub(crate) object: Value,
    /// The same, as it is stored.
    pub(crate) value: Bytes,
    /// The revision of the write, or of what was there when nothing was written.
    pub(crate) revision: Revision,
    /// Whether the object went with this write, or would.
    pub(crate) gone: bool,
    pub(crate) warnings: Vec<String>,
}

impl Written {
    /// The object as an answer.
    pub(crate) fn answer(self) -> Answer {
        Answer::object(&self.value, self.revision).with_warnings(self.warnings)
    }
}

/// A success without an object.
pub(crate) fn success(status: StatusCode) -> Answer {
    Answer::value_with(
        status,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": status.as_u16()}),
    )
}

/// Completes or refuses a draft: defaults, admission, defaults. Admission that waits for another
/// object gives up its turn.
pub(super) async fn complete(
    attributes: &Attributes<'_>,
    turn: &mut Option<Turn>,
    draft: &mut dyn Draft,
) -> Result<(), StatusError> {
    if let Some(turn) = turn {
        turn.work(|| draft.default());
    }
    let asked = {
        let mut admission = pin!(attributes.context.api.admission.admit(attributes, draft));
        let at_once = poll_fn(|cx| {
            let step = |turn: &Turn| turn.work(|| admission.as_mut().poll(cx));
            Poll::Ready(turn.as_ref().map_or(Poll::Pending, step))
        });
        match at_once.await {
            Poll::Ready(admitted) => admitted?,
            Poll::Pending => {
                *turn = None;
                admission.await?
            }
        }
    };
    if asked {
        draft.default();
    }
    Ok(())
}

/// Waits in the line that a write has, if it has one. Who waits keeps nobody from heavy work, and whoever is first may need
/// a turn itself.
pub(super) async fn in_line(attributes: &Attributes<'_>, turn: &mut Option<Turn>) -> Option<Place> {
    let mut place = attributes.context.api.admission.line(attributes)?;
    *turn = None;
    place.wait().await;
    Some(place)
}

/// Checks an object that is complete, by its kind's rules and admission's; returns the warnings about it.
pub(super) fn check(
    attributes: &Attributes<'_>,
    draft: &dyn Draft,
) -> Result<Vec<String>, StatusError> {
    let mut warnings = draft.validate()?;
    let admission = &attributes.context.api.admission;
    warnings.extend(admission.validate(attributes, draft)?);
    Ok(warnings)
}

/// What is to be stored of a valid object, with what it needs of the cluster.
pub(super) struct Staged {
    pub(super) object: Value,
    pub(super) value: Bytes,
    pub(super) index: Index,
    pub(super) transaction: Transaction,
    pub(super) warnings: Vec<String>,
}

/// Gives a valid object what is unique in the cluster, and encodes it. `before` is what it replaces: as it is read, and its
/// bytes as it is stored.
pub(super) fn reserve(
    attributes: &Attributes<'_>,
    draft: &dyn Draft,
    before: Option<(&Value, usize)>,
    warnings: Vec<String>,
) -> Result<Staged, StatusError> {
    let mut object = draft.value()?;
    let mut transaction = Transaction::default();
    let context = attributes.context;
    let admission = &context.api.admission;
    let current = before.map(|(current, _)| current);
    let changed = admission.reserve(attributes, &mut object, current, &mut transaction)?;
    let index = match changed || !context.resource.is_hub() {
        true => codec::index(context.resource, &object),
        false => codec::index_of(&object, draft.selectable_fields()),
    };
    Ok(Staged {
        value: codec::encode_bounded(
            context.resource,
            &object,
            before.map_or(0, |(_, size)| size),
        )?,
        object,
        index,
        transaction,
        warnings,
    })
}

/// Makes a new object of the current one, until nobody else has changed it in between. `change` is given what a client would
/// read, and may be asked several times. The turn is that in which a body was read, if it was.
pub(crate) async fn swap(
    context: &Context<'_>,
    write: Write,
    mut turn: Option<Turn>,
    mut change: impl FnMut(&Value) -> Result<Value, StatusError> + Send,
) -> Result<Written, StatusError> {
    let info = context.resource.stored_info();
    let attributes = Attributes {
        context,
        operation: write.operation,
    };
    let place = match write.rules {
        Rules::Kind(_) if !write.dry_run => in_line(&attributes, &mut turn).await,
        _ => None,
    };
    for _ in 0..attempts(place.as_ref()) {
        let entry = context.current()?;
        let held = match turn.take().filter(Turn::is_heavy) {
            Some(turn) => turn,
            None => Turn::wait(context.body.len() + entry.value.len()).await,
        };
        let staged = {
            let (current, object) = held.work(|| {
                let current = codec::decode_for_client(context.resource, &entry)?;
                let object = change(&current)?;
                check_identity(context, write, &object, &current)?;
                Ok::<_, StatusError>((current, object))
            })?;
            stage(context, write, held, object, (&current, &entry)).await?
        };
        if let Some(written) = commit(context, write, entry, staged).await? {
            return Ok(written);
        }
    }
    Err(StatusError::conflict(
        info,
        context.name(),
        "the object keeps being modified; please apply your changes to the latest version and try again",
    ))
}

/// Takes a changed object through the stages before its commit.
async fn stage(
    context: &Context<'_>,
    write: Write,
    turn: Turn,
    object: Value,
    (current, entry): (&Value, &Entry),
) -> Result<Staged, StatusError> {
    let kind = context.resource.kind.as_ref();
    let Rules::Kind(scope) = write.rules else {
        return turn.work(|| {
            let value = match write.operation {
                // It gets the marks of its deletion however large it is.
                Operation::Delete => codec::encode(context.resource, &object)?,
                _ => codec::encode_bounded(context.resource, &object, entry.value.len())?,
            };
            Ok(Staged {
                index: codec::index(context.resource, &object),
                object,
                value,
                transaction: Transaction::default(),
                warnings: Vec::new(),
            })
        });
    };
    let attributes = Attributes {
        context,
        operation: write.operation,
    };
    let mut draft = turn.work(|| kind.draft_update(object, current, scope))?;
    let mut turn = Some(turn);
    complete(&attributes, &mut turn, draft.as_mut()).await?;
    let turn = match turn {
        Some(turn) => turn,
        None => Turn::wait(context.body.len()).await,
    };
    turn.work(|| {
        draft.prepare();
        let warnings = check(&attributes, draft.as_ref())?;
        let before = Some((current, entry.value.len()));
        reserve(&attributes, draft.as_ref(), before, warnings)
    })
}

/// Writes a changed object, or removes one that nothing holds any more. `None` when it was changed in between.
async fn commit(
    context: &Context<'_>,
    write: Write,
    entry: Arc<Entry>,
    staged: Staged,
) -> Result<Option<Written>, StatusError> {
    let Staged {
        object,
        value,
        index,
        mut transaction,
        warnings,
    } = staged;
    let goes = is_released(&object);
    let mut written = Written {
        revision: entry.modify_revision,
        before: entry,
        object,
        value,
        gone: false,
        warnings,
    };
    let entry = &written.before;
    if write.dry_run {
        written.gone = goes;
        return Ok(Some(written));
    }
    if written.value == entry.value && !goes {
        return Ok(Some(written));
    }
    let key = context.key();
    let guard = Guard::ModifiedAt(key.clone(), entry.modify_revision);
    transaction.guards.insert(0, guard);
    if goes {
        let attributes = Attributes {
            context,
            operation: write.operation,
        };
        let admission = &context.api.admission;
        admission.release(&attributes, &written.object, &mut transaction);
        let last = last_seen(context.resource.info(), entry, &written);
        let last = Some(last);
        transaction.operations.push(Change::Delete { key, last });
    } else {
        let value = written.value.clone();
        let operation = Change::Put { key, value, index };
        transaction.operations.push(operation);
    }
    let demand = demand(write.rules, &written.object, entry, &written.value);
    match context.api.commit(transaction, demand).await? {
        Committed::At(revision) => {
            written.revision = revision;
            written.gone = goes;
            Ok(Some(written))
        }
        Committed::Conflict(_) => Ok(None),
    }
}

/// Whether objects of a kind are told to end before they go.
pub(crate) fn is_graceful(info: &ResourceInfo) -> bool {
    (&*info.group, &*info.kind) == ("", "Pod")
}

/// What watchers see last of an object that goes. What is not told to end first is seen as it was, unless it had been
/// marked before.
fn last_seen(info: &ResourceInfo, entry: &Entry, written: &Written) -> Bytes {
    match is_graceful(info) || is_marked(&entry.value) {
        true => written.value.clone(),
        false => entry.value.clone(),
    }
}

/// Whether a stored object has been told to go.
pub(crate) fn is_marked(value: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Marked {
        metadata: Marks,
    }
    #[derive(serde::Deserialize)]
    struct Marks {
        #[serde(rename = "deletionTimestamp")]
        deleted: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Marked>(value).is_ok_and(|object| object.metadata.deleted.is_some())
}

/// Refuses a change of another object of the same name, or of another version than the client says.
pub(super) fn check_identity(
    context: &Context<'_>,
    write: Write,
    object: &Value,
    current: &Value,
) -> Result<(), StatusError> {
    must_be(context, current, "uid", meta(object, "uid"))?;
    check_version(context, write, object, current)
}

/// Refuses a change of another version than the client says.
pub(super) fn check_version(
    context: &Context<'_>,
    write: Write,
    object: &Value,
    current: &Value,
) -> Result<(), StatusError> {
    let asked = meta(object, "resourceVersion");
    if asked.is_empty() || asked == "0" {
        let must = matches!(write.rules, Rules::Kind(_))
            && !context.resource.kind.allows_unconditional_update();
        return match must {
            true => Err(unconditional(context)),
            false => Ok(()),
        };
    }
    match meta(current, "resourceVersion") == asked {
        true => Ok(()),
        false => Err(StatusError::stale(
            context.resource.stored_info(),
            context.name(),
        )),
    }
}

/// 422: an update must say which revision it is made from. Kubernetes names the resource where the kind should be.
fn unconditional(context: &Context<'_>) -> StatusError {
    let info = context.resource.info();
    let mut errors = ErrorList::default();
    let path = Path::new("metadata").child("resourceVersion");
    errors.invalid(&path, 0, "must be specified for an update");
    StatusError::invalid_kind(&info.group, &info.plural, context.name(), errors)
}

/// Refuses to change an object whose `uid` or `resourceVersion` is another than the client means, if it means any; in the words
/// of Kubernetes' storage, which clients know.
pub(super) fn must_be(
    context: &Context<'_>,
    current: &Value,
    field: &str,
    meant: &str,
) -> Result<(), StatusError> {
    let found = meta(current, field);
    if meant.is_empty() || meant == found {
        return Ok(());
    }
    let info = context.resource.stored_info();
    let place = match context.namespace() {
        Some(namespace) => format!("{}/{namespace}", info.plural),
        None => info.plural.to_string(),
    };
    let name = context.name();
    let what = match field {
        "uid" => "UID",
        _ => "ResourceVersion",
    };
    Err(StatusError::conflict(
        info,
        name,
        &format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{place}/{name}, ResourceVersion: 0, AdditionalErrorMsg: {}",
            failed_precondition(what, meant, found)
        ),
    ))
}

/// How Kubernetes tells that an object is another than is meant: by its `UID`, or its `ResourceVersion`.
pub(super) fn failed_precondition(what: &str, meant: &str, found: &str) -> String {
    format!("Precondition failed: {what} in precondition: {meant}, {what} in object meta: {found}")
}

/// 409 about what is below the path's object.
pub(super) fn conflict_below(context: &Context<'_>, why: &str) -> StatusError {
    let (info, name) = (context.resource.info(), context.name());
    let below = context.path.subresource.as_deref().unwrap_or_default();
    let kind = format!("{}/{below}", info.plural);
    let qualified = match &*info.group {
        "" => kind.clone(),
        group => format!("{kind}.{group}"),
    };
    let details = Details {
        name: name.to_owned(),
        group: info.group.to_string(),
        kind,
        ..Details::default()
    };
    let message = format!("Operation cannot be fulfilled on {qualified} \"{name}\": {why}");
    StatusError::new(409, "Conflict", message, Some(details))
}

/// Whether the last finalizer of a deleted object is gone, and nothing else holds it.
pub(crate) fn is_released(object: &Value) -> bool {
    let deleted = !object["metadata"]["deletionTimestamp"].is_null();
    let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
        // A namespace is held by its spec, a pod by its grace period.
        || object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
        || object["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0);
    deleted && !held
}

/// By how many bytes an object may grow, and how large it may be then, for its change not to count as something new: a
/// taint, another number of replicas.
const LITTLE_MORE: usize = 1024;
const LARGEST_LITTLE: usize = 64 << 10;
/// How large the status of an object may make it for the same.
const LARGEST_STATUS: usize = 256 << 10;

/// What the change of an object asks of the servers' disks. It frees something when the object goes, is told to, or loses
/// what holds it; statuses, and what makes an object little larger, are how others learn that they must make room.
fn demand(rules: Rules, object: &Value, before: &Entry, value: &Bytes) -> Demand {
    let goes = !object["metadata"]["deletionTimestamp"].is_null();
    let little = value.len() <= before.value.len() + LITTLE_MORE && value.len() <= LARGEST_LITTLE;
    let is_status = rules == Rules::Kind(WriteScope::Status);
    if goes
        && (is_released(object) || value.len() < before.value.len() || !is_marked(&before.value))
    {
        Demand::Frees
    } else if little || is_status && value.len() <= LARGEST_STATUS {
        Demand::Changes
    } else {
        Demand::Adds
    }
}
