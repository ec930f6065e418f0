//! The table of a run: rows of measures, columns of proxies, ratios to nginx.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::load::median;

/// All values of a run: measure → proxy → one value a round.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, Row)>,
}

struct Row {
    unit: &'static str,
    /// Compared with nginx; `false`: only shown.
    ratio: bool,
    /// What the same run took without a proxy is subtracted.
    added: bool,
    values: BTreeMap<&'static str, Vec<f64>>,
}

/// The order of columns. `bare` is hyper by itself, which checks nothing: what the library costs.
pub const WHO: [&str; 5] = ["direct", "hostler", "nginx", "haproxy", "bare"];
const OVER_NGINX: [&str; 3] = ["hostler", "haproxy", "bare"];

impl Table {
    /// One round's value. `added`: without a proxy there is a value too, and what counts is what a proxy adds.
    pub fn put(
        &mut self,
        measure: &str,
        unit: &'static str,
        (ratio, added): (bool, bool),
        who: &'static str,
        value: f64,
    ) {
        let at = match self.rows.iter().position(|(name, _)| name == measure) {
            Some(at) => at,
            None => {
                let row = Row { unit, ratio, added, values: BTreeMap::new() };
                self.rows.push((measure.to_owned(), row));
                self.rows.len() - 1
            }
        };
        self.rows[at].1.values.entry(who).or_default().push(value);
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| Measure | direct | Hostler | nginx | HAProxy | bare hyper | Hostler ÷ nginx | HAProxy ÷ nginx | bare ÷ nginx |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for (name, row) in &self.rows {
            let _ = write!(out, "| {name}, {} |", row.unit);
            for who in WHO {
                let cell = row.middle(who).map_or_else(|| "–".to_owned(), number);
                let _ = write!(out, " {cell} |");
            }
            for who in OVER_NGINX {
                let cell =
                    row.over_nginx(who).map_or_else(|| "–".to_owned(), |r| format!("{r:.2}"));
                let _ = write!(out, " {cell} |");
            }
            out.push('\n');
        }
        out
    }
}

impl Row {
    fn middle(&self, who: &str) -> Option<f64> {
        median(&mut self.values.get(who)?.clone())
    }

    /// The median of the rounds' ratios.
    fn over_nginx(&self, who: &str) -> Option<f64> {
        if !self.ratio {
            return None;
        }
        let base = |round: usize| {
            if self.added {
                self.values.get("direct").and_then(|v| v.get(round)).copied()
            } else {
                Some(0.0)
            }
        };
        let nginx = self.values.get("nginx")?;
        let ratios = self.values.get(who)?.iter().zip(nginx).enumerate();
        let mut ratios: Vec<f64> = ratios
            .filter_map(|(round, (mine, theirs))| {
                let base = base(round)?;
                Some((mine - base) / (theirs - base))
            })
            .collect();
        median(&mut ratios)
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}
