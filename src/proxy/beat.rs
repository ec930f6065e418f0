//! Signs of life for streams that wait. PURE.
//!
//! Purpose: bytes that tell a client and every proxy between that something happens, in a form that its stream may hold. Owner:
//! `wait`. Invariants: a comment is one line with one line end (a blank line after it would be an empty event, over which some
//! clients crash); no event has an `id:`; nothing here ends a stream. A chunk says nothing that has to be put together with what the
//! engine says: its ID is empty and it has no role, for clients add roles up, and refuse the chunks of an ID after those of another.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::endpoints::Events;
use crate::types::{Feedback, ModelName, Moment, Phase, Status};

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The model is not there yet.
    Model {
        /// Where it is.
        phase: Phase,
        /// What is left of its load or wake, as far as earlier ones tell.
        left: Option<Duration>,
    },
    /// The model is there, and others go first.
    Turn,
    /// The engine was asked and has not answered yet.
    Engine,
}

impl Stage {
    /// Where a model is. What is left is counted from when its load began, which is seldom when its client came.
    pub fn of(status: &Status, model: &ModelName, now: Moment) -> Self {
        let found = status.models.iter().find(|m| m.name == *model);
        match found {
            Some(model) if model.phase != Phase::Ready => {
                let left = match model.phase {
                    // It is about to begin.
                    Phase::Stopped => model.load_ms.map(Duration::from_millis),
                    Phase::Starting | Phase::Loading | Phase::Waking => {
                        model.progress.and_then(|p| {
                            p.expected.map(|expected| expected.saturating_sub(now.since(p.since)))
                        })
                    }
                    Phase::Waiting
                    | Phase::Pulling
                    | Phase::Ready
                    | Phase::Draining
                    | Phase::Dozing
                    | Phase::Asleep
                    | Phase::Stopping
                    | Phase::Failed => None,
                };
                Self::Model { phase: model.phase, left }
            }
            Some(_) | None => Self::Turn,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Model { phase, .. } => phase.as_str(),
            Self::Turn => "queued",
            Self::Engine => "processing",
        }
    }

    /// Whole seconds that are left, as far as that can be said: a load that is late is about to be over, for all we know.
    fn eta(self) -> Option<u64> {
        match self {
            Self::Model { left, .. } => left.map(|left| left.as_secs().max(1)),
            Self::Turn | Self::Engine => None,
        }
    }
}

/// Who waits for what.
#[derive(Clone, Debug)]
pub(super) struct Beat {
    pub form: Feedback,
    pub events: Events,
    /// As the client wrote it.
    pub model: String,
    /// Unix seconds.
    pub created: u64,
}

impl Beat {
    /// The next sign of life.
    pub fn bytes(&self, stage: Stage, waited: Duration) -> Vec<u8> {
        match (self.form, self.events) {
            (Feedback::Off, _) => Vec::new(),
            // Anthropic's streams have an event of their own for this.
            (Feedback::Comment | Feedback::Chunk, Events::Messages) => {
                b"event: ping\ndata: {\"type\":\"ping\"}\n\n".to_vec()
            }
            (Feedback::Chunk, Events::Chat) => self.chunk(
                "chat.completion.chunk",
                &json!({ "index": 0, "delta": { "content": "" }, "finish_reason": null }),
                stage,
                waited,
            ),
            (Feedback::Chunk, Events::Text) => self.chunk(
                "text_completion",
                &json!({ "index": 0, "text": "", "logprobs": null, "finish_reason": null }),
                stage,
                waited,
            ),
            (
                Feedback::Comment,
                Events::Chat | Events::Text | Events::Responses | Events::Other,
            )
            | (Feedback::Chunk, Events::Responses | Events::Other) => comment(stage, waited),
        }
    }

    fn chunk(
        &self,
        object: &str,
        choice: &serde_json::Value,
        stage: Stage,
        waited: Duration,
    ) -> Vec<u8> {
        let data = json!({
            "id": "",
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "hostler": { "phase": stage.word(), "waited_s": waited.as_secs(), "eta_s": stage.eta() },
        });
        format!("data: {data}\n\n").into_bytes()
    }
}

fn comment(stage: Stage, waited: Duration) -> Vec<u8> {
    let mut line = format!(": hostler phase={} waited={}s", stage.word(), waited.as_secs());
    if let Some(eta) = stage.eta() {
        // Writing to a string cannot fail.
        let _ = write!(line, " eta={eta}s");
    }
    line.push('\n');
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LoadProgress, ModelStatus};

    fn text(form: Feedback, events: Events, stage: Stage, waited: u64) -> String {
        let beat = Beat { form, events, model: "a\"b".into(), created: 7 };
        String::from_utf8(beat.bytes(stage, Duration::from_secs(waited))).unwrap()
    }

    const LOADING: Stage =
        Stage::Model { phase: Phase::Loading, left: Some(Duration::from_secs(48)) };

    /// Of a model that loads since second 100 and takes 60 s, at second 150: who came at 140, or waited for room since 20, is told the same.
    #[test]
    fn what_is_left_is_counted_from_the_loads_beginning() {
        let mut row = crate::types::test_status("m");
        row.load_ms = Some(60_000);
        let left = |row: &ModelStatus, now: u64| {
            let status = Status { models: vec![row.clone()], ..Status::default() };
            Stage::of(&status, &row.name, Moment::from_secs(now)).eta()
        };
        let since = Moment::from_secs(100);
        let progress = |expected: Option<u64>| {
            let expected = expected.map(Duration::from_secs);
            Some(LoadProgress { since, expected, pulled: None })
        };
        for phase in [Phase::Starting, Phase::Loading] {
            (row.phase, row.progress) = (phase, progress(Some(60)));
            assert_eq!([100, 150, 159, 300].map(|now| left(&row, now)), [60, 10, 1, 1].map(Some));
            row.progress = progress(None);
            assert_eq!(left(&row, 150), None, "nothing is known of this one");
        }
        // A wake is no load.
        (row.phase, row.progress) = (Phase::Waking, progress(Some(2)));
        assert_eq!(left(&row, 100), Some(2));
        row.progress = progress(None);
        assert_eq!(left(&row, 100), None);
        // What has not begun takes all its time.
        (row.phase, row.progress) = (Phase::Stopped, None);
        assert_eq!(left(&row, 150), Some(60));
        for phase in [Phase::Waiting, Phase::Pulling, Phase::Failed] {
            (row.phase, row.progress) = (phase, progress(None));
            assert_eq!(left(&row, 150), None, "{phase}");
        }
    }

    #[test]
    fn a_comment_is_one_line() {
        let all = [Events::Chat, Events::Text, Events::Responses, Events::Other];
        for events in all {
            let comment = text(Feedback::Comment, events, LOADING, 12);
            assert_eq!(comment, ": hostler phase=loading waited=12s eta=48s\n");
        }
        assert_eq!(
            text(Feedback::Comment, Events::Chat, LOADING, 90),
            ": hostler phase=loading waited=90s eta=48s\n"
        );
        assert_eq!(
            text(Feedback::Comment, Events::Chat, Stage::Turn, 2),
            ": hostler phase=queued waited=2s\n"
        );
        let waiting = Stage::Model { phase: Phase::Waiting, left: None };
        assert_eq!(
            text(Feedback::Chunk, Events::Responses, waiting, 2),
            ": hostler phase=waiting waited=2s\n"
        );
    }

    #[test]
    fn anthropics_clients_get_pings() {
        for form in [Feedback::Comment, Feedback::Chunk] {
            let ping = text(form, Events::Messages, LOADING, 1);
            assert_eq!(ping, "event: ping\ndata: {\"type\":\"ping\"}\n\n");
        }
        assert_eq!(text(Feedback::Off, Events::Messages, LOADING, 1), "");
    }

    /// Chunks as clients put them together: openai-python adds texts up for all keys but `index` and `type`; openai-go takes the first
    /// ID that is one, and no chunk of another.
    fn merged(
        chunks: &[serde_json::Value],
    ) -> (String, serde_json::Map<String, serde_json::Value>) {
        let (mut id, mut all) = (String::new(), serde_json::Map::new());
        for chunk in chunks {
            let its = chunk["id"].as_str().unwrap();
            assert!(id.is_empty() || its == id, "openai-go refuses {chunk} after {id}");
            its.clone_into(&mut id);
            for (key, value) in chunk["choices"][0]["delta"].as_object().unwrap() {
                let so_far = all.get(key).and_then(|v| v.as_str()).unwrap_or_default();
                let text = format!("{so_far}{}", value.as_str().unwrap());
                all.insert(key.clone(), text.into());
            }
        }
        (id, all)
    }

    #[test]
    fn chunks_leave_the_engines_answer_as_it_is() {
        let waiting = Stage::Model { phase: Phase::Waiting, left: None };
        let event = |events, stage| -> serde_json::Value {
            let bytes = text(Feedback::Chunk, events, stage, 1);
            serde_json::from_str(bytes.strip_prefix("data: ").unwrap().trim_end()).unwrap()
        };
        let mut chunks: Vec<_> = [waiting, LOADING, LOADING, Stage::Turn, Stage::Engine]
            .map(|stage| event(Events::Chat, stage))
            .into();
        for delta in [json!({ "role": "assistant", "content": "" }), json!({ "content": "Hi" })] {
            chunks.push(json!({ "id": "chatcmpl-1", "choices": [{ "index": 0, "delta": delta }] }));
        }
        let (id, message) = merged(&chunks);
        assert_eq!((&*id, message.len()), ("chatcmpl-1", 2));
        assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &json!("Hi")));
        assert_eq!(event(Events::Text, LOADING)["id"], "");
    }

    #[test]
    fn a_chunk_is_one_event_that_says_nothing() {
        let chat = text(Feedback::Chunk, Events::Chat, LOADING, 12);
        let data: serde_json::Value =
            serde_json::from_str(chat.strip_prefix("data: ").unwrap().trim_end()).unwrap();
        assert_eq!(data["choices"][0]["delta"]["content"], "");
        assert_eq!((&data["model"], &data["hostler"]["eta_s"]), (&json!("a\"b"), &json!(48)));
        assert!(chat.ends_with("}\n\n") && chat.matches('\n').count() == 2);
        let text = text(Feedback::Chunk, Events::Text, Stage::Engine, 12);
        assert!(
            text.contains("\"text\":\"\"") && text.contains("\"phase\":\"processing\""),
            "{text}"
        );
    }
}
