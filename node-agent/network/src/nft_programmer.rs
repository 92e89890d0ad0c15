//! Transactions of any size on one table: small ones through a session that stays for a while, large ones by a program
//! of their own.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::NetworkError;
use crate::nft::{Nft, shortened};
use crate::nft_session::{LONGEST_SCRIPT, Refusal, Session};

/// How long a session waits for the next change before its memory is given back.
const IDLE: Duration = Duration::from_secs(10);

/// Programs one table.
pub(crate) struct Programmer {
    nft: Nft,
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    session: Option<Session>,
    last_change: Instant,
    /// A task waits for the session to become idle.
    retiring: bool,
}

impl Programmer {
    pub(crate) fn new(nft: Nft) -> Self {
        let kept = Kept {
            session: None,
            last_change: Instant::now(),
            retiring: false,
        };
        Self {
            nft,
            kept: Arc::new(Mutex::new(kept)),
        }
    }

    /// Applies the script that sets up a table. Blocks.
    pub(crate) fn set_up(&self, script: &str) -> Result<(), NetworkError> {
        self.nft.set_up(script)
    }

    /// Applies a script in one transaction. Blocks. After [`NetworkError::Nft`], the table is not known to be what it
    /// was: somebody else changed it, or nobody can say how far the transaction got.
    pub(crate) fn apply(&self, script: &str) -> Result<(), NetworkError> {
        if script.len() > LONGEST_SCRIPT {
            return self.nft.apply(script);
        }
        let kept = self.kept.lock().session.take();
        let mut session = match kept.filter(|session| !session.is_worn()) {
            Some(session) => session,
            None => self.nft.session()?,
        };
        let applied = session.apply(script);
        let mut kept = self.kept.lock();
        kept.last_change = Instant::now();
        match applied {
            Ok(()) => {
                kept.session = Some(session);
                Ok(())
            }
            Err(Refusal::Refused(words)) => {
                kept.session = Some(session);
                Err(NetworkError::Nft(shortened(&words)))
            }
            Err(Refusal::Broken(error)) => {
                Err(NetworkError::Nft(format!("the nft session broke: {error}")))
            }
        }
    }

    /// A listing of a table without the elements of its sets; `None` when there is no such table.
    pub(crate) fn names(&self, family: &str, table: &str) -> Option<String> {
        self.nft.list(&["-t", "list", "table", family, table])
    }

    /// Whether a chain is there.
    pub(crate) fn has_chain(&self, family: &str, table: &str, chain: &str) -> bool {
        self.nft
            .list(&["list", "chain", family, table, chain])
            .is_some()
    }

    /// Sees to it that a session which is kept ends when nothing has changed for a while.
    pub(crate) fn retire_when_idle(&self) {
        let mut kept = self.kept.lock();
        if kept.session.is_some() && !kept.retiring {
            kept.retiring = true;
            tokio::spawn(retire(Arc::clone(&self.kept)));
        }
    }
}

async fn retire(kept: Arc<Mutex<Kept>>) {
    loop {
        let idle_at = kept.lock().last_change + IDLE;
        tokio::time::sleep_until(idle_at).await;
        let session = {
            let mut kept = kept.lock();
            if kept.last_change + IDLE > Instant::now() {
                continue;
            }
            kept.retiring = false;
            kept.session.take()
        };
        // Its end waits for the kernel to clean up.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(session)).await {
            tracing::warn!(%error, "ending an idle nft session");
        }
        return;
    }
}
