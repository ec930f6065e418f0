//! Names of models.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A model's name: what clients write in `"model"` and admins in the configuration.
///
/// Letters, digits and `. _ - : / @ +`, starting with a letter or digit, at most 128 bytes, without empty, `.` or `..`
/// path segments. So a name is safe in a URL path, a label value, a log field and (escaped) a D-Bus object path, and
/// can never be taken for an option or climb out of a directory. Cheap to clone.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(Arc<str>);

/// Why a text is no model name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a model name must not be empty")]
    Empty,
    /// Longer than [`ModelName::LENGTH_MAX`].
    #[error("a model name has at most 128 bytes, this one has {0}")]
    Long(usize),
    /// A character outside the allowed set.
    #[error("a model name must not contain {0:?}; allowed are letters, digits and . _ - : / @ +")]
    Character(char),
    /// Begins with punctuation, so it could be taken for an option or a hidden file.
    #[error("a model name must start with a letter or a digit, not {0:?}")]
    Start(char),
    /// An empty, `.` or `..` segment between slashes.
    #[error("a model name must not contain the path segment {0:?}")]
    Segment(&'static str),
}

impl ModelName {
    /// The longest name, in bytes.
    pub const LENGTH_MAX: usize = 128;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A short form for container and directory names: lower-case letters, digits and `-`, at most 24 bytes, never
    /// empty. Not unique; whoever needs uniqueness adds a generation and a random suffix.
    #[must_use]
    pub fn slug(&self) -> String {
        let mut slug = String::with_capacity(24);
        for c in self.0.chars() {
            if slug.len() == 24 {
                break;
            }
            if c.is_ascii_alphanumeric() {
                slug.push(c.to_ascii_lowercase());
            } else if !slug.ends_with('-') {
                slug.push('-');
            }
        }
        slug.trim_end_matches('-').to_owned()
    }
}

/// So that what is keyed by names can be asked with a text, which need not be a name.
impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some(first) = text.chars().next() else { return Err(NameError::Empty) };
        if text.len() > Self::LENGTH_MAX {
            return Err(NameError::Long(text.len()));
        }
        let ok = |c: char| c.is_ascii_alphanumeric() || "._-:/@+".contains(c);
        if let Some(bad) = text.chars().find(|c| !ok(*c)) {
            return Err(NameError::Character(bad));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start(first));
        }
        for segment in text.split('/') {
            match segment {
                "" => return Err(NameError::Segment("")),
                "." => return Err(NameError::Segment(".")),
                ".." => return Err(NameError::Segment("..")),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for ModelName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_in_use() {
        for text in ["qwen3", "Qwen/Qwen3-8B", "llama3.1:8b", "a", "org/model@v1+int4", "7b_x"] {
            assert_eq!(text.parse::<ModelName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_what_could_do_harm() {
        let parse = |t: &str| t.parse::<ModelName>().unwrap_err();
        assert_eq!(parse(""), NameError::Empty);
        assert_eq!(parse("-rm"), NameError::Start('-'));
        assert_eq!(parse("../etc"), NameError::Start('.'));
        assert_eq!(parse("a/../b"), NameError::Segment(".."));
        assert_eq!(parse("a//b"), NameError::Segment(""));
        assert_eq!(parse("a/./b"), NameError::Segment("."));
        assert_eq!(parse("a b"), NameError::Character(' '));
        assert_eq!(parse("a\0b"), NameError::Character('\0'));
        assert_eq!(parse("modèle"), NameError::Character('è'));
        assert_eq!(parse(&"x".repeat(10_000)), NameError::Long(10_000));
    }

    #[test]
    fn slug_is_a_container_name() {
        let slug = |t: &str| t.parse::<ModelName>().unwrap().slug();
        assert_eq!(slug("Qwen/Qwen3-8B"), "qwen-qwen3-8b");
        assert_eq!(slug("a_-.b"), "a-b");
        assert_eq!(slug("m/".repeat(30).trim_end_matches('/')).len(), 23);
        assert_eq!(slug("x::"), "x");
    }

    #[test]
    fn serde_checks_too() {
        assert!(serde_json::from_str::<ModelName>("\"../x\"").is_err());
        let name: ModelName = serde_json::from_str("\"a/b\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"a/b\"");
    }
}
