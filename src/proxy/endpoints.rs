//! What engines can be asked over HTTP. PURE.
//!
//! Purpose: the one table of the routes that lead to an engine, each with the path on the engine's side, the form of its body
//! and the dialect of its errors. Owner: `route`. Invariants: a path to an engine is one of these constants (or is made of
//! one and a checked identifier); what engines offer beside, above all for development, is not here and so out of reach.

/// In which shape a client expects errors and events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `{"error":{"message","type","param","code"}}`.
    #[default]
    OpenAi,
    /// `{"type":"error","error":{"type","message"}}`.
    Anthropic,
    /// `{"error":"message"}`.
    Ollama,
}

impl Dialect {
    /// The dialect of whoever asks for this path, known or not.
    pub fn of(path: &str) -> Self {
        if path == "/v1/messages" || path.starts_with("/v1/messages/") {
            Self::Anthropic
        } else if path.starts_with("/api/") && !path.starts_with("/api/v1/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }
}

/// The form of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyForm {
    /// A JSON object with `model` at its top.
    Json,
    /// `multipart/form-data` with a field `model`.
    Multipart,
}

/// What a stream of this endpoint carries, where a sign of life may have to look like it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Events {
    /// `chat.completion.chunk`.
    Chat,
    /// `text_completion`.
    Text,
    /// Typed events of `/v1/responses`.
    Responses,
    /// Anthropic's typed events.
    Messages,
    /// Events of no form that we know.
    Other,
}

/// What an engine is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// OpenAI's chat.
    Chat,
    /// OpenAI's older completions.
    Text,
    /// OpenAI's responses.
    Responses,
    /// Vectors.
    Embeddings,
    /// Cohere's and Jina's ranking; engines know it by three paths.
    Rerank,
    /// The same without a version.
    RerankBare,
    /// The same of Cohere's second version.
    RerankV2,
    /// vLLM's scores of pairs of texts.
    Score,
    /// The same without a version.
    ScoreBare,
    /// Speech to text.
    Transcriptions,
    /// Speech to English text.
    Translations,
    /// Text to speech.
    Speech,
    /// Text to images.
    Images,
    /// Anthropic's messages.
    Messages,
    /// How many tokens such a message has.
    CountTokens,
    /// Text to tokens.
    Tokenize,
    /// Tokens to text.
    Detokenize,
}

/// One row: the task, its path, its word in logs and metrics.
const TABLE: [(Task, &str, &str); 17] = [
    (Task::Chat, "/v1/chat/completions", "chat_completions"),
    (Task::Text, "/v1/completions", "completions"),
    (Task::Responses, "/v1/responses", "responses"),
    (Task::Embeddings, "/v1/embeddings", "embeddings"),
    (Task::Rerank, "/v1/rerank", "rerank"),
    (Task::RerankBare, "/rerank", "rerank"),
    (Task::RerankV2, "/v2/rerank", "rerank"),
    (Task::Score, "/v1/score", "score"),
    (Task::ScoreBare, "/score", "score"),
    (Task::Transcriptions, "/v1/audio/transcriptions", "transcriptions"),
    (Task::Translations, "/v1/audio/translations", "translations"),
    (Task::Speech, "/v1/audio/speech", "speech"),
    (Task::Images, "/v1/images/generations", "images"),
    (Task::Messages, "/v1/messages", "messages"),
    (Task::CountTokens, "/v1/messages/count_tokens", "count_tokens"),
    (Task::Tokenize, "/tokenize", "tokenize"),
    (Task::Detokenize, "/detokenize", "detokenize"),
];

impl Task {
    /// The task behind a path.
    pub fn at(path: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == path).map(|(task, _, _)| *task)
    }

    /// All of them.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|(task, _, _)| *task)
    }

    const fn row(self) -> (Self, &'static str, &'static str) {
        // The table is in the order of the enum, which a test holds it to.
        TABLE[self as usize]
    }

    /// The path on the engine's side, which is ours to write.
    pub const fn path(self) -> &'static str {
        self.row().1
    }

    /// The word for it in logs.
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// The form of its body.
    pub const fn body(self) -> BodyForm {
        match self {
            Self::Transcriptions | Self::Translations => BodyForm::Multipart,
            Self::Chat
            | Self::Text
            | Self::Responses
            | Self::Embeddings
            | Self::Rerank
            | Self::RerankBare
            | Self::RerankV2
            | Self::Score
            | Self::ScoreBare
            | Self::Speech
            | Self::Images
            | Self::Messages
            | Self::CountTokens
            | Self::Tokenize
            | Self::Detokenize => BodyForm::Json,
        }
    }

    /// What its streams carry.
    pub const fn events(self) -> Events {
        match self {
            Self::Chat => Events::Chat,
            Self::Text => Events::Text,
            Self::Responses => Events::Responses,
            Self::Messages => Events::Messages,
            Self::Embeddings
            | Self::Rerank
            | Self::RerankBare
            | Self::RerankV2
            | Self::Score
            | Self::ScoreBare
            | Self::Transcriptions
            | Self::Translations
            | Self::Speech
            | Self::Images
            | Self::CountTokens
            | Self::Tokenize
            | Self::Detokenize => Events::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_each_path_is_its_own() {
        for (at, (task, path, name)) in TABLE.iter().enumerate() {
            assert_eq!(*task as usize, at);
            assert_eq!(Task::at(path), Some(*task));
            assert_eq!((task.path(), task.name()), (*path, *name));
        }
        assert_eq!(Task::at("/v1/chat/completions/"), None);
    }

    #[test]
    fn a_path_tells_the_dialect() {
        assert_eq!(Dialect::of("/v1/messages"), Dialect::Anthropic);
        assert_eq!(Dialect::of("/v1/messages/count_tokens"), Dialect::Anthropic);
        assert_eq!(Dialect::of("/v1/messagesx"), Dialect::OpenAi);
        assert_eq!(Dialect::of("/api/tags"), Dialect::Ollama);
        assert_eq!(Dialect::of("/api/v1/status"), Dialect::OpenAi);
    }
}
