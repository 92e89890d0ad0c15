//! The authorities as a row of the store: the one that signs first, then those that are trusted besides while
//! certificates of theirs are replaced.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_store::{Guard, Index, Key, Operation, Revision, Store, Table, Transaction};
use gantry_tls::{Credential, Lifetime};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pki::{AUTHORITY_LIFE, Authority, Subject};

/// Sealed: see `keys.rs`.
pub(crate) const TABLE: &str = "-/authority";

fn row() -> Key {
    Key {
        table: Table(TABLE.into()),
        namespace: "".into(),
        name: "authorities".into(),
    }
}

/// One authority, PEM throughout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    certificate: String,
    key: String,
    /// The same authority's certificate, signed by the one before it: for those who have not heard of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vouched: Option<String>,
}

/// What the store holds.
pub(super) struct Authorities {
    stored: Vec<Stored>,
    /// The first of them.
    signs: Authority,
    /// When the row was written.
    revision: Option<Revision>,
}

impl Authorities {
    fn from_stored(stored: Vec<Stored>, revision: Option<Revision>) -> Result<Self> {
        let first = stored.first().context("there is no authority")?;
        Ok(Self {
            signs: Authority::from_pem(&first.certificate, &first.key)?,
            stored,
            revision,
        })
    }

    /// The first authority of a cluster.
    pub(super) fn found() -> Result<Self> {
        let authority = Authority::create(AUTHORITY_LIFE)?;
        Self::given(authority.certificate(), &authority.key())
    }

    /// The first authority of a cluster, from its certificate and key, PEM.
    pub(super) fn given(certificate: &str, key: &str) -> Result<Self> {
        let stored = Stored {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            vouched: None,
        };
        Self::from_stored(vec![stored], None)
    }

    /// As this server knows them; `None` before there are any.
    pub(super) fn read(store: &Store) -> Result<Option<Self>> {
        let Some(entry) = store.get(&row()) else {
            return Ok(None);
        };
        let stored = serde_json::from_slice(&entry.value).context("reading the authorities")?;
        Self::from_stored(stored, Some(entry.modify_revision)).map(Some)
    }

    /// Whether the store still has these.
    pub(super) fn is_current(&self, store: &Store) -> bool {
        let entry = store.get(&row());
        entry.map(|entry| entry.modify_revision) == self.revision
    }

    /// Writes them, if they are still what `instead_of` says; there must be none when that is `None`.
    pub(super) async fn write(&self, store: &Store, instead_of: Option<&Self>) -> Result<()> {
        let guard = match instead_of.and_then(|known| known.revision) {
            Some(revision) => Guard::ModifiedAt(row(), revision),
            None => Guard::Absent(row()),
        };
        let put = Operation::Put {
            key: row(),
            value: serde_json::to_vec(&self.stored)?.into(),
            index: Index::default(),
        };
        let transaction = Transaction {
            guards: vec![guard],
            operations: vec![put],
        };
        let written = store.propose(transaction).await;
        written.map(drop).context("writing the authorities")
    }

    /// The certificates of all of them, PEM, that of the one that signs first.
    pub(super) fn trusted(&self) -> String {
        let certificates = self.stored.iter().map(|one| lines(&one.certificate));
        certificates.collect()
    }

    /// What is shown behind a certificate: what vouches for the authority that signed it, and the authorities, by which
    /// who joins recognises the cluster.
    fn behind(&self) -> String {
        let vouched = self.stored[0].vouched.as_deref().map(lines);
        vouched.unwrap_or_default() + &self.trusted()
    }

    /// The fingerprint of the one that signs.
    pub(super) fn signing(&self) -> Result<String> {
        Ok(self.signs.fingerprint()?)
    }

    /// The fingerprints of all of them and how long they last, the one that signs first.
    pub(super) fn listed(&self) -> Result<Vec<(String, Lifetime)>> {
        let listed = self.stored.iter().map(|one| {
            let authority = Authority::from_pem(&one.certificate, &one.key)?;
            Ok((authority.fingerprint()?, authority.lifetime()))
        });
        listed.collect()
    }

    /// Until when the one that signs is valid.
    pub(super) fn expires(&self) -> Timestamp {
        self.signs.lifetime().expires
    }

    /// A credential as it is shown.
    pub(super) fn issue(&self, subject: &Subject, life: Duration) -> Result<Credential> {
        let mut credential = self.signs.issue(subject, life)?;
        credential.certificate = lines(&credential.certificate) + &self.behind();
        Ok(credential)
    }

    /// A certificate as it is shown, for the key of a request.
    pub(super) fn sign(
        &self,
        request: &str,
        subject: &Subject,
        life: Duration,
    ) -> Result<(String, Lifetime)> {
        let (certificate, lifetime) = self.signs.sign(request, subject, life)?;
        Ok((lines(&certificate) + &self.behind(), lifetime))
    }

    /// With a new authority that signs from now on, and for which the one before vouches.
    pub(super) fn succeeded(&self) -> Result<Self> {
        ensure!(
            self.stored.len() == 1,
            "the authority is being replaced already: finish that with 'gantry certs rotate-ca --finish' first"
        );
        let next = Authority::create(AUTHORITY_LIFE)?;
        let mut stored = vec![Stored {
            certificate: next.certificate().to_owned(),
            key: next.key(),
            vouched: Some(self.signs.vouch_for(&next)?),
        }];
        stored.extend(self.stored.iter().cloned());
        Self::from_stored(stored, None)
    }

    /// Without those that do not sign any more.
    pub(super) fn alone(&self) -> Result<Self> {
        ensure!(
            self.stored.len() > 1,
            "the authority is not being replaced: begin with 'gantry certs rotate-ca'"
        );
        let mut first = self.stored[0].clone();
        first.vouched = None;
        Self::from_stored(vec![first], None)
    }
}

/// PEM texts can be strung together when each ends its last line.
fn lines(pem: &str) -> String {
    format!("{}\n", pem.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_replaced_in_two_steps() {
        let first = Authorities::found().expect("an authority");
        assert!(first.alone().is_err());
        let both = first.succeeded().expect("two");
        assert!(both.succeeded().is_err());
        assert_ne!(both.signing().expect("one"), first.signing().expect("one"));
        let certificates = |text: &str| text.matches("BEGIN CERTIFICATE").count();
        assert_eq!(certificates(&both.trusted()), 2);
        // The two, and what the first says of the second.
        assert_eq!(certificates(&both.behind()), 3);
        assert!(both.trusted().ends_with(&first.trusted()));
        let second = both.alone().expect("one");
        assert_eq!(certificates(&second.behind()), 1);
        assert_eq!(second.signing().expect("one"), both.signing().expect("one"));
        let listed = both.listed().expect("two");
        assert_eq!(listed[1].0, first.signing().expect("one"));
    }

    #[tokio::test]
    async fn the_store_keeps_one_change_of_several() {
        let store = Store::ephemeral();
        assert!(Authorities::read(&store).expect("no error").is_none());
        let first = Authorities::found().expect("an authority");
        first.write(&store, None).await.expect("it is written");
        let other = Authorities::found().expect("an authority");
        other.write(&store, None).await.expect_err("there is one");
        let known = Authorities::read(&store).expect("no error").expect("one");
        assert_eq!(known.stored, first.stored);
        assert!(known.is_current(&store));
        let next = known.succeeded().expect("two");
        next.write(&store, Some(&known)).await.expect("written");
        assert!(!known.is_current(&store));
        let late = known.succeeded().expect("two");
        late.write(&store, Some(&known))
            .await
            .expect_err("it has changed");
    }
}
