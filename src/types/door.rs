//! What an admin asked for of the front door, for one model.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a client whose stream waits for its model gets meanwhile.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Feedback {
    /// Comments, which clients of server-sent events leave out.
    #[default]
    Comment,
    /// Empty chunks, for clients that stumble over comments.
    Chunk,
    /// Nothing, and no status either before the model is there.
    Off,
}

/// One model as the front door sees it: none of this changes the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoorSpec {
    /// Signs of life for streams that wait.
    pub feedback: Feedback,
    /// Requests that the engine is given at once; `None`: as many as come.
    pub max_concurrent: Option<u32>,
    /// Parameters for requests that do not have them.
    pub defaults: Map<String, Value>,
    /// Parameters that requests have in any case.
    pub force: Map<String, Value>,
    /// What the engine is told in `model` instead of what the client wrote; `None`: the client's word, but for the alias of a model that
    /// runs elsewhere.
    pub served_name: Option<String>,
}

impl DoorSpec {
    /// Whether the body of a request has to be changed.
    #[must_use]
    pub fn rewrites(&self) -> bool {
        !self.defaults.is_empty() || !self.force.is_empty() || self.served_name.is_some()
    }
}
