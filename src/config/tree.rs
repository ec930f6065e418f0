//! From a text to a tree that fits [`super::raw`], reporting and cutting out what does not.
//!
//! Purpose: TOML's own reader stops at the first value of a wrong type; here that key is cut out and the reading is
//! tried again, until all such errors are known. Owner: [`super::parse`], one call a source.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::source::Report;

/// Wrong keys reported per source; whoever has more has given us the wrong file, and each costs another reading.
const ERRORS_MAX: usize = 100;

/// Errors are read by more people than the files are, and a password that somebody forgot to quote is longer than a word.
const QUOTED_MAX: usize = 16;

/// Reads a text, with spans in the report's range of offsets. Syntax errors are reported; what could be understood
/// nevertheless is returned.
pub(super) fn read<'t>(text: &'t str, source: usize, report: &mut Report<'_>) -> DeTable<'t> {
    read_quoting(text, source, report, QUOTED_MAX)
}

/// The same of a text that may hold secrets by mistake: errors tell nothing of it.
pub(super) fn read_secret<'t>(
    text: &'t str,
    source: usize,
    report: &mut Report<'_>,
) -> DeTable<'t> {
    read_quoting(text, source, report, 0)
}

fn read_quoting<'t>(
    text: &'t str,
    source: usize,
    report: &mut Report<'_>,
    quoted_max: usize,
) -> DeTable<'t> {
    let base = report.base(source);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let offset = error.span().map_or(text.len(), |span| span.start);
        report.syntax(base + offset, &syntax_message(error, text, quoted_max));
    }
    shift_table(table.into_inner(), base)
}

fn syntax_message(error: &toml::de::Error, text: &str, quoted_max: usize) -> String {
    let message = error.message();
    let span = error.span().unwrap_or_default();
    let found = text.get(span).unwrap_or_default().lines().next().unwrap_or_default();
    // What the reader says of a bare word depends on its first letter: `nvml` would be a bad `nan`.
    let about_values = ["string values must be quoted", "invalid float", "invalid boolean"];
    if found.contains(char::is_alphabetic) && about_values.iter().any(|m| message.starts_with(m)) {
        let word = whole_word(text, error.span());
        let shown = word.len() <= quoted_max;
        let must = "text must be in quotes";
        return if shown { format!("{must}; write {word:?}") } else { must.to_owned() };
    }
    if found.is_empty() || found.len() > quoted_max {
        message.to_owned()
    } else {
        format!("{message} (at `{found}`)")
    }
}

/// The word that a span is in, as the reader may stumble in its middle: at the `h` of `1.5h`.
fn whole_word(text: &str, span: Option<Range<usize>>) -> &str {
    let span = span.unwrap_or_default();
    let ends = |c: char| c.is_whitespace() || "=,[]{}#".contains(c);
    let start = text.get(..span.start).and_then(|t| t.rfind(ends)).map_or(0, |i| i + 1);
    let end = text.get(span.end..).and_then(|t| t.find(ends)).map_or(text.len(), |i| span.end + i);
    text.get(start..end).unwrap_or_default()
}

/// Moves spans. Leaves out what the reader put in for a value that it could not understand: it has no place of its own,
/// so that an error about it would name another key, and it was reported.
fn shift_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    table
        .into_iter()
        .filter(|(_, value)| value.get_ref().is_table() || !value.span().is_empty())
        .map(|(key, value)| {
            let span = moved(key.span(), by);
            (Spanned::new(span, key.into_inner()), shift_value(value, by))
        })
        .collect()
}

fn shift_value(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = moved(value.span(), by);
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shift_table(table, by)),
        DeValue::Array(array) => {
            DeValue::Array(array.into_iter().map(|v| shift_value(v, by)).collect::<DeArray<'_>>())
        }
        scalar @ (DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)) => scalar,
    };
    Spanned::new(span, value)
}

fn moved(span: Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

/// Turns a tree into a `T`, reporting every key that does not fit and cutting it out of `table`.
pub(super) fn fit<T: DeserializeOwned + Default>(
    table: &mut DeTable<'_>,
    report: &mut Report<'_>,
) -> T {
    for _ in 0..ERRORS_MAX {
        let root = Spanned::new(0..0, table.clone());
        let error = match T::deserialize(toml::de::Deserializer::from(root)) {
            Ok(value) => return value,
            Err(error) => error,
        };
        let Some(span) = error.span() else { break };
        let Some(path) = cut(table, &span) else { break };
        report.at(span.start, &path.join("."), fit_message(error.message()));
    }
    let offset = table.keys().next().map_or(0, |key| key.span().start);
    report.at(offset, "(file)", "too much here is not understood; correct the errors above first");
    T::default()
}

/// Removes the innermost key that the span belongs to and returns its path.
fn cut(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut hit = None;
    for (key, value) in table.iter_mut() {
        if key.span() == *span {
            hit = Some(key.get_ref().to_string());
            break;
        }
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(mut path) = cut(inner, span)
        {
            path.insert(0, quote_key(key.get_ref()));
            return Some(path);
        }
        if holds(value.span()) {
            hit = Some(key.get_ref().to_string());
            break;
        }
    }
    let name = hit?;
    table.remove(name.as_str());
    Some(vec![quote_key(&name)])
}

/// A key as it is written in a dotted path.
pub(super) fn quote_key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { format!("{key:?}") }
}

/// Serde's words, made useful: what to write instead.
fn fit_message(message: &str) -> String {
    let (found, allowed) = message.split_once(", expected ").unwrap_or((message, ""));
    let quoted = |text: &str| -> Vec<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let name = |prefix: &str| found.strip_prefix(prefix).map(|rest| rest.trim_matches('`'));
    if let Some(key) = name("unknown field ") {
        return match closest(key, &quoted(allowed)) {
            Some(best) => format!("unknown key; did you mean {best:?}?"),
            None => format!("unknown key; known here are {}", quoted(allowed).join(", ")),
        };
    }
    if let Some(word) = name("unknown variant ") {
        let words: Vec<_> = quoted(allowed).iter().map(|w| format!("{w:?}")).collect();
        return format!("must be {}, not {word:?}", words.join(" or "));
    }
    if found == "wanted string or table" {
        // What is said of any value for an enumeration that is no text.
        return "must be a text in quotes".to_owned();
    }
    let Some(found) = found.strip_prefix("invalid type: ") else { return message.to_owned() };
    let found = match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some((_, value)) => value.trim_start_matches("point ").replace('`', ""),
        None if found == "sequence" => "a list".to_owned(),
        None if found == "map" => "a table".to_owned(),
        None => found.to_owned(),
    };
    match allowed {
        "a boolean" => format!("must be true or false, without quotes, not {found}"),
        "a string" => format!("must be a text in quotes, not {found}"),
        "i64" => format!("must be a whole number, without quotes, not {found}"),
        "a sequence" => format!("must be a list in brackets, [\"…\"], not {found}"),
        "a map" => format!("must be a table, not {found}"),
        _ => format!("must be {allowed}, not {found}"),
    }
}

/// The known word that was most likely meant.
pub(super) fn closest<'w>(word: &str, known: &'w [String]) -> Option<&'w String> {
    let word = word.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(&word, k), k))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::super::raw::RawFile;
    use super::super::source::Source;
    use super::*;

    fn errors(text: &str) -> String {
        let sources =
            [Source::settings("/first", "# shifts offsets\n"), Source::settings("/f", text)];
        let mut report = Report::new(&sources);
        let mut table = read(text, 1, &mut report);
        let _: RawFile = fit(&mut table, &mut report);
        report.into_errors().to_string()
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        let secret = "sk-5f1e0c9ab27748d7a3d2";
        for text in [format!("sha256 = {secret}0"), format!("x = 1 {secret}0 = 2")] {
            let found = errors(&text);
            assert!(found.contains("not valid TOML") && !found.contains("sk-5f"), "{found}");
        }
        let sources = [Source::settings("/keys.toml", format!("[keys.a]\nsha256 = {secret}"))];
        let mut report = Report::new(&sources);
        read_secret(sources[0].text.as_ref().unwrap(), 0, &mut report);
        let found = report.into_errors().to_string();
        assert!(found.contains("/keys.toml:2:") && !found.contains("sk-"), "{found}");
    }

    #[test]
    fn every_wrong_key_is_found() {
        let text = "colour = 1\n[server]\nmax_wiat = \"1s\"\nmax_queue = \"many\"\n\
                    listen = [\"127.0.0.1:1\", 5]\n[models.\"a/b\"]\nenv = { A = 1, B = \"x\" }\npin = \"yes\"\n";
        let found = errors(text);
        let places: Vec<_> =
            found.lines().map(|l| l.split(": ").take(2).collect::<Vec<_>>()).collect();
        assert_eq!(
            places,
            [
                ["/f:1:1", "colour"],
                ["/f:3:1", "server.max_wiat"],
                ["/f:4:13", "server.max_queue"],
                ["/f:5:26", "server.listen"],
                ["/f:7:13", "models.\"a/b\".env.A"],
                ["/f:8:7", "models.\"a/b\".pin"],
            ],
            "{found}"
        );
        assert!(found.contains("did you mean \"max_wait\"?"), "{found}");
        assert!(found.contains("must be true or false"), "{found}");
    }

    #[test]
    fn a_section_that_is_no_table_is_cut_out_whole() {
        let found =
            errors("server = 5\nmodels = [1]\npolicy = [\"keep\"]\n[[gpu]]\nbackend = \"host\"\n");
        assert_eq!(
            found,
            "/f:1:10: server: must be a table, [server], not 5\n\
             /f:2:10: models: must be a table, not a list\n\
             /f:3:10: policy: must be a table, [policy], not a list\n\
             /f:4:1: gpu: must be a table, [gpu], not a list"
        );
    }

    #[test]
    fn a_bare_word_is_told_to_be_quoted() {
        for word in ["nvml", "host", "tcp", "inf2", "240s", "2GiB", "1.5h", "true_", "keep"] {
            let found = errors(&format!("[policy]\non_stop = {word}\n"));
            assert!(found.starts_with("/f:2:1"), "{found}");
            let wanted = format!(": not valid TOML: text must be in quotes; write \"{word}\"");
            assert!(found.ends_with(&wanted), "{found}");
        }
    }

    #[test]
    fn a_value_that_is_missing_is_one_error() {
        for line in ["on_stop = = \"keep\"", "on_stop =", "on_stop", "on_stop = ,"] {
            let found = errors(&format!("[gpu]\nbackend = \"host\"\n[policy]\n{line}\n"));
            assert_eq!(found.lines().count(), 1, "{line}\n{found}");
            assert!(found.starts_with("/f:4:"), "{line}\n{found}");
        }
    }

    #[test]
    fn an_open_bracket_is_one_error() {
        let found =
            errors("[server]\nlisten = [\"127.0.0.1:1\"\nmax_queue = 1\nmax_wait = \"1s\"\n");
        assert_eq!(found.lines().count(), 1, "{found}");
    }

    #[test]
    fn gives_up_on_a_wrong_file_altogether() {
        let text: String = (0..500).map(|i| format!("k{i:03} = 1\n")).collect();
        let found = errors(&text);
        assert_eq!(found.lines().count(), ERRORS_MAX + 1);
        assert!(found.contains("too much here"), "{found}");
    }

    #[test]
    fn keys_are_quoted_where_toml_needs_it() {
        assert_eq!(quote_key("a-b_1"), "a-b_1");
        assert_eq!(quote_key("a.b"), "\"a.b\"");
        assert_eq!(quote_key(""), "\"\"");
    }

    #[test]
    fn suggestions_are_near_or_absent() {
        let known = ["max_wait".to_owned(), "listen".to_owned()];
        assert_eq!(closest("Max-Wait", &known), Some(&known[0]));
        assert_eq!(closest("lsiten", &known), Some(&known[1]));
        assert_eq!(closest("zebra", &known), None);
    }
}
