//! systemd's unit files, as far as Quadlet uses them. PURE.

use std::path::Path;

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Where it is, from 1.
    pub line: usize,
    /// The section's name without brackets.
    pub section: String,
    /// The key.
    pub key: String,
    /// The value, continued lines joined by a space.
    pub value: String,
}

/// All settings of a text, in their order. Comments and empty lines are left out, and so is what is no setting.
#[must_use]
pub fn settings(text: &str) -> Vec<Setting> {
    let mut found = Vec::new();
    let mut section = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let mut whole = line.to_owned();
        while let Some(begun) = whole.strip_suffix('\\') {
            let begun = begun.trim_end().to_owned();
            // Comments between continued lines are skipped.
            let next = lines.by_ref().map(|(_, l)| l.trim()).find(|l| !l.starts_with(['#', ';']));
            whole = format!("{begun} {}", next.unwrap_or_default());
        }
        if let Some((key, value)) = whole.split_once('=') {
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            found.push(Setting { line: at + 1, section: section.clone(), key, value });
        }
    }
    found
}

/// Splits a value into words as systemd does: quotes hold together, a backslash takes the next character, `%%` is one, and `%h` is `home`
/// where that is known.
///
/// # Errors
/// For a quote that does not end, and for other specifiers (`%i`), whose value only systemd knows.
pub fn words(value: &str, home: Option<&Path>) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => word.get_or_insert_default().extend(chars.next()),
            ('%', _) => match (chars.next(), home) {
                (Some('%'), _) => word.get_or_insert_default().push('%'),
                (Some('h'), Some(home)) => {
                    word.get_or_insert_default().push_str(&home.display().to_string());
                }
                (other, _) => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!(
                        "holds the specifier %{other}, whose value only systemd knows; write it out"
                    ));
                }
            },
            (c, Some(end)) if c == end => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("holds a quote that does not end".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_with_comments_and_continued_lines() {
        let text = "# c\n[Container]\nImage = x\nExec=a \\\n# between\n  b\n;c\nnothing\n[Service]\nRestart=always\n";
        let found = settings(text);
        let short: Vec<_> = found
            .iter()
            .map(|s| (s.line, s.section.as_str(), s.key.as_str(), s.value.as_str()))
            .collect();
        assert_eq!(
            short,
            [
                (3, "Container", "Image", "x"),
                (4, "Container", "Exec", "a b"),
                (10, "Service", "Restart", "always")
            ]
        );
    }

    #[test]
    fn words_as_systemd_splits_them() {
        let split = |text| words(text, None).unwrap();
        assert_eq!(split("a  b"), ["a", "b"]);
        assert_eq!(split("\"A=1 2\" 'B=\"x\"' c\\ d 100%%"), ["A=1 2", "B=\"x\"", "c d", "100%"]);
        assert_eq!(split("\"\""), [""]);
        assert!(words("%h/models", None).unwrap_err().contains("%h"));
        let home = Some(Path::new("/home/me"));
        assert_eq!(words("%h/m \"%h\" %%h", home).unwrap(), ["/home/me/m", "/home/me", "%h"]);
        assert!(words("%i", home).unwrap_err().contains("%i"));
        assert!(words("\"a", None).is_err());
    }
}
