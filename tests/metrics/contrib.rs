//! Dashboard, alerts and scrape configuration in `contrib/` name what there is, and their own programs take them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use hostler::observe::metrics::names::{self, Kind};
use serde_json::Value;

use crate::{content, root, tool};

/// Words of a text that look like metrics of ours.
fn named(text: &str) -> BTreeSet<String> {
    let part = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let ours = |w: &&str| w.starts_with("hostler_") || w.starts_with("process_");
    text.split(part).filter(ours).map(str::to_owned).collect()
}

/// The metric that a series belongs to.
fn metric(series: &str) -> Option<&'static names::Metric> {
    names::ALL.iter().find(|m| {
        let rest = series.strip_prefix(m.name);
        match m.kind {
            Kind::Histogram => matches!(rest, Some("_bucket" | "_sum" | "_count")),
            Kind::Counter | Kind::Gauge => rest == Some(""),
        }
    })
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join("contrib").join(path)).unwrap()
}

fn expressions(panel: &Value) -> String {
    let targets = panel["targets"].as_array().cloned().unwrap_or_default();
    targets.iter().map(|t| t["expr"].as_str().unwrap().to_owned() + "\n").collect()
}

#[test]
fn what_they_name_exists() {
    let dashboard: Value = serde_json::from_str(&read("grafana/hostler.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let shown: String = panels.iter().map(expressions).collect();
    let variables = dashboard["templating"]["list"].to_string();
    for text in [&shown, &variables, &read("prometheus/alerts.yml")] {
        let all = named(text);
        assert!(!all.is_empty());
        for series in all {
            assert!(metric(&series).is_some(), "{series} is no metric");
        }
    }
    let used: BTreeSet<&str> =
        named(&(shown + &variables)).iter().filter_map(|s| metric(s)).map(|m| m.name).collect();
    let unused: Vec<&str> =
        names::ALL.iter().map(|m| m.name).filter(|n| !used.contains(n)).collect();
    assert!(unused.is_empty(), "no panel shows {unused:?}");
}

#[test]
fn the_dashboard_is_sound() {
    let dashboard: Value = serde_json::from_str(&read("grafana/hostler.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 20, "{}", panels.len());
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(x < 24 && cells.insert((x, y)), "{title} lies over another");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(panel["description"].as_str().is_some_and(|d| d.len() > 10), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        assert!(!expressions(panel).is_empty(), "{title}");
        // Each answer is a table of its own, and one is shown.
        let tables = panel["targets"].as_array().unwrap().iter().filter(|t| t["format"] == "table");
        assert!(tables.count() < 2 || panel["transformations"][0]["id"] == "merge", "{title}");
    }
    assert!(dashboard["id"].is_null() && dashboard["uid"] == "hostler");
}

fn variable<'a>(dashboard: &'a Value, name: &str) -> &'a Value {
    let all = dashboard["templating"]["list"].as_array().unwrap();
    all.iter().find(|v| v["name"] == name).unwrap()
}

#[test]
fn models_that_run_elsewhere_can_be_chosen() {
    let dashboard: Value = serde_json::from_str(&read("grafana/hostler.json")).unwrap();
    // The one metric that each model has: `observe::metrics::tests` hold it to that.
    let query = &variable(&dashboard, "model")["query"]["query"];
    assert_eq!(query, "label_values(hostler_queue_length, model)");
}

/// Of every panel, with all of each variable, as the rules of a file: promtool reads expressions only there. A target's is called by its
/// panel's number and its letter, `panel:2:A`.
fn as_rules(dashboard: &Value) -> Value {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let rules = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(|target| {
            let mut expr = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            for name in ["instance", "model", "gpu"] {
                let all = variable(dashboard, name)["allValue"].as_str().unwrap();
                expr = expr.replace(&format!("${name}"), all);
            }
            assert!(!expr.contains('$'), "{expr} has a variable that nobody knows");
            let called = format!("panel:{}:{}", panel["id"], target["refId"].as_str().unwrap());
            serde_json::json!({"record": called, "expr": expr})
        })
    });
    serde_json::json!({"groups": [{"name": "panels", "rules": rules.collect::<Vec<_>>()}]})
}

#[test]
fn panels_show_what_they_say() {
    let Some(promtool) = tool("metrics::panels_show_what_they_say", "promtool") else { return };
    let dashboard: Value = serde_json::from_str(&read("grafana/hostler.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &Value| {
        fs::write(dir.path().join(name), content.to_string()).unwrap();
    };
    file("panels.json", &as_rules(&dashboard));
    let load = "hostler_model_load_duration_seconds_bucket{model=\"m\",step=\"load\"";
    let wake = "hostler_model_wake_duration_seconds_bucket{model=\"m\"";
    let series = [
        (
            "hostler_requests_total{model=\"m\",endpoint=\"completions\",code=\"200\"}".into(),
            "0+6x60",
        ),
        ("hostler_requests_total{model=\"\",endpoint=\"health\",code=\"200\"}".into(), "0+60x60"),
        ("hostler_model_failures_total{model=\"m\",code=\"gpu_lost\"}".into(), "0x30 1x30"),
        ("hostler_model_failures_total{model=\"m\",code=\"unhealthy\"}".into(), "0x60"),
        ("hostler_model_pinned{model=\"m\"}".into(), "0x60"),
        ("hostler_model_pinned{model=\"new\"}".into(), "1x60"),
        ("hostler_model_idle_seconds{model=\"m\"}".into(), "30x60"),
        (format!("{load},le=\"10\"}}"), "_x30 0x30"),
        (format!("{load},le=\"20\"}}"), "_x30 1x30"),
        (format!("{load},le=\"+Inf\"}}"), "_x30 1x30"),
        (format!("{wake},le=\"1\"}}"), "9x30 9x30"),
        (format!("{wake},le=\"3\"}}"), "9x30 10x30"),
        (format!("{wake},le=\"+Inf\"}}"), "9x30 10x30"),
    ];
    let series =
        series.map(|(series, values)| serde_json::json!({"series": series, "values": values}));
    let shown: [(&str, &[(&str, f64)]); 8] = [
        // A second, without what is for no model.
        ("10 * panel:2:A", &[("{}", 1.0)]),
        ("10 * panel:9:A", &[("{model=\"m\", code=\"200\"}", 1.0)]),
        (
            "10 * panel:10:A",
            &[("{endpoint=\"completions\"}", 1.0), ("{endpoint=\"health\"}", 10.0)],
        ),
        // What has never happened has no line.
        ("panel:27:A", &[("{model=\"m\", code=\"gpu_lost\"}", 1.0)]),
        ("panel:23:A", &[("{model=\"m\"}", 0.0), ("{model=\"new\"}", 1.0)]),
        ("panel:23:B", &[("{model=\"m\"}", 30.0)]),
        ("panel:24:A", &[("{model=\"m\", step=\"load\"}", 15.0)]),
        ("10 * panel:29:A", &[("{model=\"m\"}", 29.0)]),
    ];
    let shown = shown.map(|(expr, samples)| {
        let samples: Vec<Value> = samples
            .iter()
            .map(|(labels, value)| serde_json::json!({"labels": labels, "value": value}))
            .collect();
        serde_json::json!({"expr": format!("round({expr})"), "eval_time": "1h", "exp_samples": samples})
    });
    let test =
        serde_json::json!({"interval": "1m", "input_series": series, "promql_expr_test": shown});
    file("test.json", &serde_json::json!({"rule_files": ["panels.json"], "tests": [test]}));
    let mut command = Command::new(&promtool);
    let output = command.current_dir(&dir).args(["test", "rules", "test.json"]).output().unwrap();
    content("the panels", &output);
}

#[test]
fn promtool_takes_alerts_scrapes_and_panels() {
    let Some(promtool) = tool("metrics::promtool_takes_alerts_scrapes_and_panels", "promtool")
    else {
        return;
    };
    let here = root().join("contrib/prometheus");
    let check = |what: &str, file: &str| {
        let mut command = Command::new(&promtool);
        let output = command.current_dir(&here).args(["check", what, file]).output().unwrap();
        content(file, &output);
    };
    let dashboard: Value = serde_json::from_str(&read("grafana/hostler.json")).unwrap();
    let panels = tempfile::NamedTempFile::new().unwrap();
    fs::write(panels.path(), as_rules(&dashboard).to_string()).unwrap();
    check("rules", panels.path().to_str().unwrap());
    check("rules", "alerts.yml");
    check("config", "scrape.yml");
    let mut command = Command::new(&promtool);
    let tests = here.join("alerts.test.yml");
    content("alerts.test.yml", &command.args(["test", "rules"]).arg(tests).output().unwrap());
}
