//! What happened, as text. Kept only for a seed that is replayed: it is the same each time.

use hostler::supervisor::effect::Effect;
use hostler::supervisor::event::Event;
use hostler::types::Moment;

/// The lines of one history.
#[derive(Debug, Default)]
pub struct History {
    on: bool,
    lines: Vec<String>,
}

impl History {
    pub fn new(on: bool) -> Self {
        Self { on, lines: Vec::new() }
    }

    pub fn event(&mut self, now: Moment, event: &Event) {
        if self.on {
            self.lines.push(format!("{:>9.3} {event:?}", now.0.as_secs_f64()));
        }
    }

    pub fn effect(&mut self, effect: &Effect) {
        if self.on {
            self.lines.push(format!("            → {effect:?}"));
        }
    }

    /// Something that the core is not told.
    pub fn note(&mut self, now: Moment, text: impl FnOnce() -> String) {
        if self.on {
            self.lines.push(format!("{:>9.3}   ({})", now.0.as_secs_f64(), text()));
        }
    }

    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The last lines.
    pub fn tail(&self, count: usize) -> String {
        let from = self.lines.len().saturating_sub(count);
        self.lines[from..].join("\n")
    }
}
