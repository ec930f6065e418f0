//! Models that run elsewhere, as `list`, `status`, `show`, `why` and `top` tell of them.
//!
//! Invariant: they have neither phase nor memory here, so they are never rows among this host's models; what is asked of one that only
//! this host's models can do is refused with where it runs.

use super::bus::named;
use super::document::{Document, External};
use super::exit::Failure;
use super::output::{NONE, Output, Side, Table, Tone, plain, span};

/// The colour of a health.
pub fn tone(health: &str) -> Tone {
    match health {
        "well" => Tone::Good,
        "unwell" => Tone::Bad,
        _ => Tone::Warn,
    }
}

/// All of them, one a row.
pub fn table(document: &Document) -> Table {
    let mut table = Table::new(&[
        ("ELSEWHERE", Side::Left),
        ("HEALTH", Side::Left),
        ("FOR", Side::Right),
        ("URL", Side::Left),
        ("NOTE", Side::Left),
    ]);
    for external in &document.externals {
        table.row(vec![
            plain(&external.name),
            (external.health.clone(), tone(&external.health)),
            plain(age(document, external).unwrap_or_else(|| NONE.to_owned())),
            plain(&external.url),
            plain(external.why.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

/// How long its health has been what it is.
pub fn age(document: &Document, external: &External) -> Option<String> {
    external.since.map(|since| span(document.now.saturating_sub(since)))
}

/// All about one, with `show`'s keys.
pub fn lines(
    document: &Document,
    external: &External,
    out: &Output,
) -> Vec<(&'static str, String)> {
    let mut lines = vec![("Model", external.name.clone()), ("Runs", "elsewhere".to_owned())];
    lines.push(("URL", external.url.clone()));
    if !external.aliases.is_empty() {
        lines.push(("Aliases", external.aliases.join(", ")));
    }
    let age = age(document, external).map(|age| format!(" for {age}")).unwrap_or_default();
    lines.push(("Health", out.paint(&external.health, tone(&external.health)) + &age));
    if let Some(why) = &external.why {
        lines.push(("Why", why.clone()));
    }
    lines
}

/// What its health means, in sentences.
pub fn why(document: &Document, external: &External, out: &Output) -> String {
    let health = out.paint(&external.health, tone(&external.health));
    let name = &external.name;
    let age = age(document, external).map(|age| format!(" for {age}")).unwrap_or_default();
    let mut text = format!("{name} runs elsewhere, at {}: {health}{age}.\n", external.url);
    if let Some(why) = &external.why {
        text += &format!("What it was asked last came to: {why}\n");
    }
    text += match external.health.as_str() {
        "well" => "Requests for it are passed on.\n",
        "unwell" => {
            "Requests for it are refused (503 external_unwell) until it answers; it is asked every few seconds.\n"
        }
        _ => "It has not answered yet; until then its requests are passed on.\n",
    };
    text + "Nothing of it can be loaded, stopped or measured here.\n"
}

/// Why there is no model of this host by that name.
pub fn absent(document: &Document, name: &str) -> Failure {
    if let Some(External { name, url, .. }) = document.external(name) {
        let message = format!("model {name} runs elsewhere, at {url}, and has no phase here");
        return named("org.hostler1.Error.Conflict", &message, false)
            .fix(format!("hostler show {name} says how it is"));
    }
    unknown(name)
}

/// No model of that name, here or elsewhere.
pub fn unknown(name: &str) -> Failure {
    let message = format!("model {name:?} is not configured on this host");
    named("org.hostler1.Error.UnknownModel", &message, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::tests::example;
    use crate::cli::exit::Exit;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn why_says_what_becomes_of_requests() {
        let document = example();
        let texts: Vec<String> =
            document.externals.iter().map(|e| why(&document, e, &PIPE)).collect();
        crate::cli::tests::compare("elsewhere.txt", &texts.join("\n"));
    }

    #[test]
    fn one_that_runs_elsewhere_is_not_unknown() {
        let document = example();
        let elsewhere = absent(&document, "cloud");
        assert_eq!(elsewhere.exit, Exit::Failed);
        assert!(elsewhere.to_string().contains("https://api.example.org/team"), "{elsewhere}");
        assert!(elsewhere.fix.contains("hostler show far/away"), "{}", elsewhere.fix);
        assert_eq!(absent(&document, "none").exit, Exit::NotFound);
    }
}
