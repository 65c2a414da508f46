//! People: tokens with roles, which need no certificate.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/whoami` | → [`Whoami`] | any member, any person |
//! | `POST /v1/people` | [`NewPerson`] → [`PersonToken`] | admin with a certificate |
//! | `GET /v1/people` | → [`PersonList`] | admin; any person |
//! | `DELETE /v1/people/{name}` | → [`PersonInfo`] as it was | admin |
//!
//! A person shows its token as `Authorization: Bearer TOKEN`, over a connection on which only the server has a
//! certificate.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a person may do: see the table in `docs/operations.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PersonRole {
    /// Everything but giving rights to others, and what needs a certificate.
    Admin,
    /// The daily work: what can be undone.
    Operator,
    /// Look.
    ReadOnly,
}

impl PersonRole {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::ReadOnly => "read-only",
        }
    }
}

/// Asks for a person's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPerson {
    /// What the person is called; like a member's name.
    pub name: String,
    /// What it may do.
    pub role: PersonRole,
    /// Seconds until it is refused.
    pub lifetime_secs: u64,
}

/// A person's token: all that a program needs to use the grid, shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PersonToken {
    /// `<address of placement>/<digest of the CA's certificate>/<name>.<secret>`. What follows the last `/` is what is
    /// shown to placement.
    pub token: String,
    /// Until when it is good, in seconds since 1970.
    pub expires: u64,
}

/// A person who has a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PersonInfo {
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub role: PersonRole,
    /// Since when, in seconds since 1970.
    pub created: u64,
    /// Until when, likewise.
    pub expires: u64,
    /// Who made its token.
    pub by: String,
}

/// The people who have tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PersonList {
    /// In the order of their names.
    pub people: Vec<PersonInfo>,
}

/// Who asks, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// As it stands in the audit log.
    pub name: String,
    /// The role of a certificate or of a token.
    pub role: String,
    /// The grid's id.
    pub grid: String,
}
