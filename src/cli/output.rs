//! What a person or a program reads: tables, JSON, messages.
//!
//! Invariants: answers go to standard output, everything about them to standard error; colour only on a terminal and never
//! with `NO_COLOR`; `--json` prints exactly one document, or is refused; no message ends a command, whatever becomes of who reads them.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Global;
use super::exit::{Exit, Failure, Outcome};
use super::printable::Printable;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON document instead of text.
    pub json: bool,
    /// Tables have their head.
    pub legend: bool,
    /// No messages; answers and errors only.
    pub quiet: bool,
    /// Standard output takes colours.
    pub color: bool,
    /// Standard error is a terminal that a progress bar may move on.
    pub bars: bool,
}

/// A colour of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// On the way, or to be looked at.
    Warn,
    /// Wrong.
    Bad,
    /// Of less weight.
    Dim,
    /// As the rest.
    Plain,
}

impl Tone {
    /// Of a phase.
    #[must_use]
    pub fn of_phase(phase: &str) -> Self {
        match phase {
            "ready" => Self::Good,
            "failed" => Self::Bad,
            "stopped" => Self::Dim,
            "asleep" => Self::Plain,
            _ => Self::Warn,
        }
    }

    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Plain => "0",
        }
    }
}

impl Output {
    /// From the options and the environment.
    #[must_use]
    pub fn new(global: &Global) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let color = std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        let bars = std::io::stderr().is_terminal() && !dumb && !global.quiet && !global.json;
        Self {
            json: global.json,
            legend: !global.no_legend,
            quiet: global.quiet,
            color: color && !global.json,
            bars,
        }
    }

    /// Prints an answer as it is.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn text(&self, text: &str) -> Outcome {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Prints one JSON document.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn document(&self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.text(&(text + "\n"))
    }

    /// Refuses to be one document, for commands whose answer is none.
    ///
    /// # Errors
    /// [`Exit::Usage`] where one is wanted.
    pub fn no_document(&self, command: &str, instead: &str) -> Outcome {
        if !self.json {
            return Ok(());
        }
        let message = format!("{command} prints no document, so --json says nothing here");
        Err(Failure::new(Exit::Usage, message).fix(instead))
    }

    /// Says what was done, unless nobody wants to know.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            tell(text);
        }
    }

    /// A word in its colour.
    #[must_use]
    pub fn paint(&self, text: &str, tone: Tone) -> String {
        if self.color && tone != Tone::Plain {
            format!("\x1b[{}m{text}\x1b[0m", tone.code())
        } else {
            text.to_owned()
        }
    }
}

/// Tells people something on standard error. That nobody may listen there any more, because a pipe was closed or a terminal hung up, ends
/// nothing: who removes a model means that, whether or not somebody reads on. Names of files and what a daemon says are others' words, so
/// nothing but text and colours reaches the terminal.
pub fn tell(text: impl Display) {
    let _ = std::io::stderr().write_all(&told(text));
}

fn told(text: impl Display) -> Vec<u8> {
    let mut printable = Printable::default();
    let mut bytes = printable.feed(format!("{text}\n").as_bytes());
    bytes.extend(printable.end());
    bytes
}

/// Tells people what may be wrong and stops nothing; `--quiet` keeps it.
pub fn warn(why: impl Display) {
    tell(format_args!("warning: {why}"));
}

/// A column's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table whose columns are as wide as what is in them.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<(&'static str, Side)>,
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    /// An empty one with these columns.
    #[must_use]
    pub fn new(head: &[(&'static str, Side)]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<(String, Tone)>) {
        self.rows.push(cells);
    }

    /// The table as text, each line with its end; nothing for no rows.
    #[must_use]
    pub fn render(&self, out: &Output) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let head = self.head.get(column).filter(|_| out.legend);
            let head = head.map_or(0, |(name, _)| name.chars().count());
            cells.map(|(text, _)| text.chars().count()).max().unwrap_or(0).max(head)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let head = self.head.iter().map(|(name, _)| ((*name).to_owned(), Tone::Plain)).collect();
        let head: Vec<Vec<(String, Tone)>> = if out.legend { vec![head] } else { Vec::new() };
        let mut text = String::new();
        for row in head.iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, tone), ((_, side), width)) in row.iter().zip(self.head.iter().zip(&widths))
            {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let painted = out.paint(cell, *tone);
                line += &match side {
                    Side::Left => format!("{painted}{pad}  "),
                    Side::Right => format!("{pad}{painted}  "),
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// A cell without a colour.
pub fn plain(text: impl Into<String>) -> (String, Tone) {
    (text.into(), Tone::Plain)
}

/// What is not there or not known.
pub const NONE: &str = "-";

/// A length of time in one or two units: `350ms`, `42s`, `3m 5s`, `2h 10m`, `4d 3h`.
#[must_use]
pub fn span(time: std::time::Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0 => format!("{}ms", time.as_millis()),
        1..=119 => format!("{secs}s"),
        120..=7199 => format!("{}m {}s", secs / 60, secs % 60),
        7200..=172_799 => format!("{}h {}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d {}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// As to a pipe.
    pub const PIPE: Output =
        Output { json: false, legend: true, quiet: false, color: false, bars: false };

    #[test]
    fn what_people_are_told_does_not_steer_their_terminal() {
        let said = String::from_utf8(told("one\n\x1b[33mtwo\x1b[0m \x1b]52;c;bGw=\x07")).unwrap();
        assert!(said.starts_with("one\n\x1b[33mtwo\x1b[0m ") && said.ends_with('\n'), "{said:?}");
        assert!(!said.contains("\x1b]") && !said.contains('\x07'), "{said:?}");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&[("MODEL", Side::Left), ("USED", Side::Right)]);
        assert_eq!(table.render(&PIPE), "");
        table.row(vec![plain("a"), plain("10")]);
        table.row(vec![("longer-name".into(), Tone::Good), plain("9000")]);
        assert_eq!(
            table.render(&PIPE),
            "MODEL        USED\na              10\nlonger-name  9000\n"
        );
        let bare = Output { legend: false, ..PIPE };
        assert_eq!(table.render(&bare), "a              10\nlonger-name  9000\n");
        let colored = Output { color: true, ..PIPE };
        assert!(table.render(&colored).contains("\x1b[32mlonger-name\x1b[0m  9000\n"));
    }

    #[test]
    fn spans() {
        let span = |ms| span(Duration::from_millis(ms));
        assert_eq!(span(350), "350ms");
        assert_eq!(span(42_000), "42s");
        assert_eq!(span(185_000), "3m 5s");
        assert_eq!(span(7_800_000), "2h 10m");
        assert_eq!(span(356_400_000), "4d 3h");
    }
}
