//! Operations: what was asked for and takes its time.
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/operations` | → [`OperationList`] | any member |
//! | `GET /v1/operations/{id}?wait=S` | → [`Operation`] when it has ended, or after that time | any member |
//! | `POST /v1/operations/{id}/cancel?wait=S` | → [`Operation`] likewise | who asked for it; admin; operator |

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::ErrorBody;

/// How long an answer may wait for news.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wait {
    /// Seconds; 60 at most.
    #[serde(default)]
    pub wait: u32,
}

impl From<Wait> for Duration {
    fn from(asked: Wait) -> Self {
        Self::from_secs(asked.wait.into())
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Nobody does it yet.
    Queued,
    /// It is being done.
    Running,
    /// It is done.
    Done,
    /// It ended with an error.
    Failed,
    /// It was ended on request.
    Cancelled,
}

impl OperationState {
    /// Whether nothing more will happen to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Something that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Operation {
    /// 32 hexadecimal digits, drawn by whoever asked: the same again is the same operation.
    pub id: String,
    /// What kind of thing: `claim`.
    pub kind: String,
    /// What it is done to: `pools/NAME`.
    pub object: String,
    /// Who asked: the name in the certificate.
    pub owner: String,
    /// Where it stands.
    pub state: OperationState,
    /// What it does now, for people.
    #[serde(default)]
    pub step: String,
    /// What has come of it; see the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub error: Option<ErrorBody>,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
}

/// What was asked for lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// The newest first.
    pub operations: Vec<Operation>,
}
