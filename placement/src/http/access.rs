//! Who may use which routes: one word for each set of those who may.

use api::grid::Role;
use api::people::PersonRole;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Who shows neither certificate nor token.
    Nobody,
    /// Certificates.
    Admin,
    Node,
    Server,
    /// Tokens.
    AdminToken,
    Operator,
    ReadOnly,
}

impl From<Role> for Who {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Node => Self::Node,
            Role::Server => Self::Server,
        }
    }
}

impl From<PersonRole> for Who {
    fn from(role: PersonRole) -> Self {
        match role {
            PersonRole::Admin => Self::AdminToken,
            PersonRole::Operator => Self::Operator,
            PersonRole::ReadOnly => Self::ReadOnly,
        }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Who shows nothing, too.
    Anybody,
    /// Any member of the grid, and any person.
    Member,
    /// Those, but for people who may only look: it costs others something.
    Checker,
    /// Any member, by its certificate: what is given is bound to that.
    Machine,
    /// Nodes, of themselves; admins by their certificates.
    Writer,
    /// Nodes, and admins: what others see is changed.
    Author,
    /// Nodes, and people who do the daily work.
    Worker,
    /// Admins, and people who do the daily work: it can be undone.
    Operator,
    /// Servers, and admins.
    Server,
    /// Admins, and any person.
    Overseer,
    /// Admins.
    Admin,
    /// Admins by their certificates: what is given outlives a token, and its being revoked.
    Grantor,
}

impl Access {
    /// Who they are.
    pub(super) const fn lets(self) -> &'static [Who] {
        use Who::{Admin, AdminToken, Nobody, Node, Operator, ReadOnly, Server};
        match self {
            Self::Anybody => &[Nobody, Admin, Node, Server, AdminToken, Operator, ReadOnly],
            Self::Member => &[Admin, Node, Server, AdminToken, Operator, ReadOnly],
            Self::Checker => &[Admin, Node, Server, AdminToken, Operator],
            Self::Machine => &[Admin, Node, Server],
            Self::Writer => &[Admin, Node],
            Self::Author => &[Admin, Node, AdminToken],
            Self::Worker => &[Admin, Node, AdminToken, Operator],
            Self::Operator => &[Admin, AdminToken, Operator],
            Self::Server => &[Admin, Server, AdminToken],
            Self::Overseer => &[Admin, AdminToken, Operator, ReadOnly],
            Self::Admin => &[Admin, AdminToken],
            Self::Grantor => &[Admin],
        }
    }

    /// They in words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Anybody | Self::Member => "a member or a person of the grid",
            Self::Checker => "a member, or a person who may do more than look,",
            Self::Machine => "a member, by its certificate,",
            Self::Writer => "an admin or a node, by its certificate,",
            Self::Author => "an admin or a node",
            Self::Worker => "an admin, a node or an operator",
            Self::Operator => "an admin or an operator",
            Self::Server => "a server or an admin",
            Self::Overseer => "an admin, or a person with a token,",
            Self::Admin => "an admin",
            Self::Grantor => "an admin, by its certificate,",
        }
    }
}
