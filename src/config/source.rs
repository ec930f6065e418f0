//! Configuration texts, places in them, and the list of what is wrong in them.
//!
//! Purpose: all texts share one range of offsets, text after text, so that one number tells file, line and column, and
//! trees of several files can be merged without losing where a value came from. Owner: one [`Report`] a parse.

use std::collections::BTreeSet;

use super::error::{ConfigError, ConfigErrors, Position};

/// What a source may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Sections and `[models.NAME]` tables: `hostler.toml` and its drop-ins.
    Settings,
    /// One model's keys at the top level: `models.d/*.toml`.
    Model,
}

/// One configuration file, read or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path that errors name.
    pub path: String,
    /// What it may hold.
    pub kind: SourceKind,
    /// Its text, or why it could not be read; that is then reported along with all else that is wrong.
    pub text: Result<String, String>,
}

impl Source {
    /// A `hostler.toml` or a drop-in.
    pub fn settings(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), kind: SourceKind::Settings, text: Ok(text.into()) }
    }

    /// A file of `models.d`; its stem is the model's name unless it says `name = "…"`.
    pub fn model(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), kind: SourceKind::Model, text: Ok(text.into()) }
    }

    /// The file's name without directories and `.toml`.
    pub(super) fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.strip_suffix(".toml").unwrap_or(name)
    }

    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

/// Collects errors and knows where offsets are.
pub(super) struct Report<'a> {
    sources: &'a [Source],
    /// Offset of each source's first byte.
    bases: Vec<usize>,
    errors: Vec<ConfigError>,
    /// Sources that are no TOML or could not be read: a key that is missing there may well have been meant.
    broken: BTreeSet<usize>,
    /// Lines that are no TOML; what else is said about them only follows from that.
    broken_lines: BTreeSet<(String, usize)>,
    /// File, line and message of the last such line.
    last_syntax: Option<(String, usize, String)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(sources: &'a [Source]) -> Self {
        let mut bases = Vec::with_capacity(sources.len());
        let mut next = 0_usize;
        for source in sources {
            bases.push(next);
            // One more than the text, so that a text's end is not the next one's start.
            next += source.text().len() + 1;
        }
        Self {
            sources,
            bases,
            errors: Vec::new(),
            broken: BTreeSet::new(),
            broken_lines: BTreeSet::new(),
            last_syntax: None,
        }
    }

    /// Offset of a source's first byte.
    pub(super) fn base(&self, source: usize) -> usize {
        self.bases.get(source).copied().unwrap_or_default()
    }

    /// Which source an offset is in.
    pub(super) fn source_of(&self, offset: usize) -> usize {
        self.bases.partition_point(|base| *base <= offset).saturating_sub(1)
    }

    /// File, line and column of an offset.
    pub(super) fn place(&self, offset: usize) -> (String, Position) {
        let index = self.source_of(offset);
        let Some(source) = self.sources.get(index) else {
            return (String::new(), Position { line: 1, column: 1 });
        };
        let text = source.text();
        let mut end = (offset - self.base(index)).min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = text.get(..end).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        (source.path.clone(), Position { line, column })
    }

    /// A place as errors print it.
    pub(super) fn place_text(&self, offset: usize) -> String {
        let (path, Position { line, column }) = self.place(offset);
        format!("{path}:{line}:{column}")
    }

    /// A wrong key or value.
    pub(super) fn at(&mut self, offset: usize, key: &str, message: impl Into<String>) {
        let (path, position) = self.place(offset);
        self.push(Some(path), Some(position), Some(key), message.into());
    }

    /// Something wrong with the configuration as a whole; names the first settings file, if there is one.
    pub(super) fn whole(&mut self, key: &str, message: impl Into<String>) {
        let first = self.sources.iter().find(|s| s.kind == SourceKind::Settings);
        self.push(first.map(|s| s.path.clone()), None, Some(key), message.into());
    }

    /// A text that is no TOML; only the first such error of a line is kept, as the parser stumbles on after it, and
    /// the first of lines that fail one after another for the same reason, as all do that follow an open bracket.
    pub(super) fn syntax(&mut self, offset: usize, message: &str) {
        self.broken.insert(self.source_of(offset));
        let (path, position) = self.place(offset);
        let this = (path.clone(), position.line, message.to_owned());
        let goes_on = self.last_syntax.as_ref().is_some_and(|(last_path, line, last_message)| {
            *last_path == path && *last_message == message && *line + 1 == position.line
        });
        self.last_syntax = Some(this);
        if self.broken_lines.insert((path.clone(), position.line)) && !goes_on {
            let message = format!("not valid TOML: {message}");
            self.push(Some(path), Some(position), None, message);
        }
    }

    /// A file that could not be read.
    pub(super) fn unreadable(&mut self, source: usize, why: &str) {
        self.broken.insert(source);
        let path = self.sources.get(source).map(|s| s.path.clone());
        self.push(path, None, None, format!("cannot be read: {why}"));
    }

    /// Whether something may be missing from this source only because it could not be understood.
    pub(super) fn is_broken(&self, source: usize) -> bool {
        self.broken.contains(&source)
    }

    /// Like [`Self::is_broken`], for the merged settings.
    pub(super) fn settings_broken(&self) -> bool {
        let is_settings =
            |i: &usize| self.sources.get(*i).is_some_and(|s| s.kind == SourceKind::Settings);
        self.broken.iter().any(is_settings)
    }

    /// Whether `key`, or a table that holds it, was reported already; in `source`, or in any.
    pub(super) fn is_reported(&self, source: Option<usize>, key: &str) -> bool {
        let path = source.and_then(|i| self.sources.get(i)).map(|s| &s.path);
        self.errors.iter().filter(|e| path.is_none() || e.path.as_ref() == path).any(|e| {
            let Some(bad) = &e.key else { return false };
            key.strip_prefix(bad.as_str()).is_some_and(|rest| {
                // The empty key is the whole file.
                rest.is_empty() || rest.starts_with('.')
            })
        })
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// All that was reported.
    pub(super) fn into_errors(self) -> ConfigErrors {
        let broken_lines = self.broken_lines;
        let follows = |e: &ConfigError| match (&e.path, e.position, &e.key) {
            (Some(path), Some(at), Some(_)) => broken_lines.contains(&(path.clone(), at.line)),
            _ => false,
        };
        ConfigErrors::new(self.errors.into_iter().filter(|e| !follows(e)).collect())
    }

    fn push(
        &mut self,
        path: Option<String>,
        position: Option<Position>,
        key: Option<&str>,
        message: String,
    ) {
        self.errors.push(ConfigError { path, position, key: key.map(str::to_owned), message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_offset_tells_file_line_and_column() {
        let sources = [Source::settings("/a", "x\nyé!"), Source::settings("/b", "")];
        let report = Report::new(&sources);
        assert_eq!(report.place_text(0), "/a:1:1");
        assert_eq!(report.place_text(2), "/a:2:1");
        // In the middle of é, and after it.
        assert_eq!(report.place_text(4), "/a:2:2");
        assert_eq!(report.place_text(5), "/a:2:3");
        assert_eq!(report.place_text(6), "/a:2:4");
        assert_eq!(report.place_text(report.base(1)), "/b:1:1");
        assert_eq!(report.place_text(999), "/b:1:1");
    }

    #[test]
    fn follow_ups_of_a_broken_line_are_dropped() {
        let sources = [Source::settings("/a", "x\ny\n"), Source::model("/m/n.toml", "")];
        let mut report = Report::new(&sources);
        report.syntax(0, "first");
        report.syntax(0, "again");
        report.at(0, "x", "follows");
        report.at(2, "y", "stays");
        assert!(report.settings_broken());
        assert!(report.is_broken(0) && !report.is_broken(1));
        let text = report.into_errors().to_string();
        assert_eq!(text, "/a:1:1: not valid TOML: first\n/a:2:1: y: stays");
        assert_eq!(sources[1].stem(), "n");
    }

    #[test]
    fn a_table_that_was_reported_covers_its_keys() {
        let sources = [Source::settings("/a", "x\n"), Source::settings("/b", "x\n")];
        let mut report = Report::new(&sources);
        report.at(0, "gpu", "is no table");
        assert!(report.is_reported(None, "gpu.backend"));
        assert!(report.is_reported(Some(0), "gpu"));
        assert!(!report.is_reported(Some(1), "gpu.backend"));
        assert!(!report.is_reported(None, "gpus"));
    }
}
