//! People: their tokens, what they have done, and what they watch.

use api::audit::AuditPage;
use api::people::{NewPerson, PersonInfo, PersonList, PersonToken, Whoami};
use api::watch::WatchEvent;
use hyper::Method;
use image::{Error, Kind, Result};

use super::{Client, segment};

impl Client {
    /// Who asks, as placement sees it.
    pub async fn whoami(&self) -> Result<Whoami> {
        self.get("/v1/whoami").await
    }

    /// Makes a token for a person.
    pub async fn new_person(&self, asked: &NewPerson) -> Result<PersonToken> {
        self.send(Method::POST, "/v1/people", Some(asked)).await
    }

    /// The people who have tokens.
    pub async fn people(&self) -> Result<PersonList> {
        self.all("/v1/people").await
    }

    /// Refuses a person's token from now on; returns the person as it was.
    pub async fn revoke(&self, name: &str) -> Result<PersonInfo> {
        self.send(Method::DELETE, &format!("/v1/people/{}", segment(name)?), None::<&()>).await
    }

    /// Some of the audit log: what follows an entry.
    pub async fn audit(&self, after: u64) -> Result<AuditPage> {
        self.get(&format!("/v1/audit?after={after}")).await
    }

    /// Watches what is named, or all, until `told` says that it is enough, or placement that nothing more comes; the
    /// last event is returned. Whoever goes on afterwards may be told of the last revision again.
    pub async fn watch(
        &self,
        of: &str,
        after: Option<u64>,
        mut told: impl FnMut(&WatchEvent) -> Result<bool>,
    ) -> Result<WatchEvent> {
        let of = of
            .split(',')
            .map(|kind| if kind.is_empty() { Ok(String::new()) } else { segment(kind) });
        let of = of.collect::<Result<Vec<_>>>()?.join(",");
        let after = after.map_or_else(String::new, |revision| format!("&after={revision}"));
        let mut last = None;
        let line = |line: &[u8]| {
            let unknown =
                |e| Error::new(Kind::Unsupported, format!("an event not known here: {e}"));
            let event: WatchEvent = serde_json::from_slice(line).map_err(unknown)?;
            let goes_on = told(&event)? && !matches!(event, WatchEvent::End { .. });
            last = Some(event);
            Ok(goes_on)
        };
        self.wire.lines(&format!("/v1/watch?of={of}{after}"), line).await?;
        last.ok_or_else(|| Error::new(Kind::Retry, "placement told nothing"))
    }
}
