//! Lets the consensus library's log lines appear among ours.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record};

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        // What it finds worth telling at info is detail to us: leadership is logged where it is published.
        match record.level() {
            Level::Critical | Level::Error => tracing::error!("{}", record.msg()),
            Level::Warning => tracing::warn!("{}", record.msg()),
            Level::Info | Level::Debug => tracing::debug!("{}", record.msg()),
            Level::Trace => tracing::trace!("{}", record.msg()),
        }
        Ok(())
    }
}

pub(crate) fn bridge() -> Logger {
    Logger::root(Bridge.fuse(), slog::o!())
}
