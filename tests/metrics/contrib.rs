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
    }
    assert!(dashboard["id"].is_null() && dashboard["uid"] == "hostler");
}

/// Of every panel, as the rules of a file: promtool reads expressions only there.
fn as_rules(dashboard: &Value) -> Value {
    let targets = dashboard["panels"].as_array().unwrap().iter();
    let targets = targets.flat_map(|p| p["targets"].as_array().cloned().unwrap_or_default());
    let rules = targets.enumerate().map(|(at, target)| {
        let mut expr = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
        for variable in ["$instance", "$model", "$gpu"] {
            expr = expr.replace(variable, ".*");
        }
        assert!(!expr.contains('$'), "{expr} has a variable that nobody knows");
        serde_json::json!({"record": format!("panel:{at}"), "expr": expr})
    });
    serde_json::json!({"groups": [{"name": "panels", "rules": rules.collect::<Vec<_>>()}]})
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
