//! An engine's own page with one label more. PURE.
//!
//! Purpose: all engines have the same metrics; whoever scrapes several has to know whose they are. Owner: the console. Invariants: comments
//! and values go through unchanged; a label of the engine's that is called `model` becomes `exported_model`, as Prometheus does it.

/// Adds `model="…"` to each sample of a page in Prometheus' or OpenMetrics' text format. A line that is no sample stays as it is.
#[must_use]
pub fn with_model(page: &str, model: &str) -> String {
    let mut out = String::with_capacity(page.len() + page.len() / 4);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        // Text, unlike OpenMetrics, has no such line, and does not mind it.
        if line == "# EOF" && lines.peek().is_some() {
            continue;
        }
        sample(line, model, &mut out);
        out.push('\n');
    }
    out
}

fn sample(line: &str, model: &str, out: &mut String) {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = line.find(|c| !part(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || !rest.starts_with([' ', '\t', '{']) {
        out.push_str(line);
        return;
    }
    out.push_str(name);
    // A model's name holds nothing that would have to be escaped.
    out.push_str("{model=\"");
    out.push_str(model);
    out.push('"');
    let Some(labels) = rest.strip_prefix('{') else {
        out.push('}');
        out.push_str(rest);
        return;
    };
    if !labels.trim_start().starts_with('}') {
        out.push(',');
    }
    let mut at = 0;
    // Names of labels stand at the beginning and after each comma outside quotes.
    let (mut quoted, mut escaped, mut begins) = (false, false, true);
    for (i, c) in labels.char_indices() {
        if begins && !c.is_whitespace() {
            begins = false;
            if labels[i..].strip_prefix("model").is_some_and(|r| r.trim_start().starts_with('=')) {
                out.push_str(&labels[at..i]);
                out.push_str("exported_");
                at = i;
            }
        }
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => begins = true,
            '}' if !quoted => break,
            _ => {}
        }
    }
    out.push_str(&labels[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_gets_the_label() {
        for (line, want) in [
            ("up 1", "up{model=\"org/m\"} 1"),
            ("up{} 1", "up{model=\"org/m\"} 1"),
            ("up\t1", "up{model=\"org/m\"}\t1"),
            ("vllm:n{a=\"1\"} 2 3", "vllm:n{model=\"org/m\",a=\"1\"} 2 3"),
            ("n{model=\"x\",b=\"}\"} 2", "n{model=\"org/m\",exported_model=\"x\",b=\"}\"} 2"),
            (
                "n{b=\"a,model=\\\"\", model=\"x\"} 2",
                "n{model=\"org/m\",b=\"a,model=\\\"\", exported_model=\"x\"} 2",
            ),
            ("n{model_name=\"x\"} 2", "n{model=\"org/m\",model_name=\"x\"} 2"),
            ("# HELP up x", "# HELP up x"),
            ("", ""),
            ("garbage", "garbage"),
            ("<html>", "<html>"),
        ] {
            assert_eq!(with_model(line, "org/m").trim_end_matches('\n'), want, "{line}");
        }
    }

    #[test]
    fn an_end_in_the_middle_is_none() {
        assert_eq!(
            with_model("a 1\n# EOF\nb 1\n# EOF\n", "m"),
            "a{model=\"m\"} 1\nb{model=\"m\"} 1\n# EOF\n"
        );
    }
}
