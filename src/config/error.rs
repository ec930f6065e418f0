//! What is wrong with a configuration.
//!
//! Purpose: one value for all errors of all files, printed one a line. Owner: [`super::source::Report`] collects.

use std::fmt;

/// Line and column of a character, both counted from 1; columns count characters, as editors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// One thing that is wrong, and how to mend it.
///
/// Printed as `FILE:LINE:COLUMN: KEY: what is wrong; the fix`; what is not known is left out. The order of the fields
/// is the order in which errors are printed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// The file, as seen from the root; `None` where it is a file's absence that is wrong.
    pub path: Option<String>,
    /// Where in the file; `None` where the file as a whole is meant.
    pub position: Option<Position>,
    /// The key, with its tables: `server.max_wait`. `None` for files that are no TOML.
    pub key: Option<String>,
    /// What is wrong, and the fix.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            f.write_str(path)?;
            if let Some(Position { line, column }) = self.position {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// All that is wrong, sorted by file, line and column; never empty. Printed one error a line, without a final newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// Sorts; identical errors are reported once.
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort();
        errors.dedup();
        Self(errors)
    }

    /// The same, each with more of what to do about it.
    pub(super) fn each_with(mut self, more: &str) -> Self {
        self.0.iter_mut().for_each(|error| error.message.push_str(more));
        self
    }

    /// The same, where the system's daemon reads: what may not be read comes with the commands that open it.
    #[must_use]
    pub fn with_commands(mut self) -> Self {
        for error in &mut self.0 {
            if let (Some(path), true) = (&error.path, error.message.contains("Permission denied")) {
                error.message = format!("{}; {}", error.message, super::closed_fix(path));
            }
        }
        self
    }

    /// The errors, in the order in which they are printed.
    #[must_use]
    pub fn as_slice(&self) -> &[ConfigError] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: Option<&str>, at: Option<(usize, usize)>, key: Option<&str>) -> ConfigError {
        ConfigError {
            path: path.map(str::to_owned),
            position: at.map(|(line, column)| Position { line, column }),
            key: key.map(str::to_owned),
            message: "is wrong".to_owned(),
        }
    }

    #[test]
    fn prints_what_is_known() {
        let print = |e: ConfigError| e.to_string();
        assert_eq!(print(error(Some("/f"), Some((1, 2)), Some("a.b"))), "/f:1:2: a.b: is wrong");
        assert_eq!(print(error(Some("/f"), None, Some("a"))), "/f: a: is wrong");
        assert_eq!(print(error(None, None, Some("a"))), "a: is wrong");
        assert_eq!(print(error(Some("/f"), None, None)), "/f: is wrong");
    }

    #[test]
    fn sorts_by_number_and_says_things_once() {
        let all = ConfigErrors::new(vec![
            error(Some("/f"), Some((10, 1)), None),
            error(Some("/f"), Some((9, 1)), None),
            error(Some("/e"), Some((99, 1)), None),
            error(Some("/f"), Some((9, 1)), None),
        ]);
        assert_eq!(all.to_string(), "/e:99:1: is wrong\n/f:9:1: is wrong\n/f:10:1: is wrong");
        assert_eq!(all.as_slice().len(), 3);
    }
}
