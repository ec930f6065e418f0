//! A page, taken apart.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// All samples of a page in Prometheus' text format.
pub fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(sample).collect()
}

/// No value of a label here holds a quote, a comma or a brace.
fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap().split(',').filter(|l| !l.is_empty());
    let pair = |label: &str| {
        let (key, value) = label.split_once('=').unwrap();
        (key.to_owned(), value.trim_matches('"').to_owned())
    };
    let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
    Sample { name: name.to_owned(), labels: labels.map(pair).collect(), value }
}

/// The one sample of that name with these labels among others; `None`: there is none.
pub fn find(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |s: &&Sample| {
        s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|is| is == v))
    };
    let mut found = samples.iter().filter(fits);
    let first = found.next()?;
    assert!(found.next().is_none(), "{name} {labels:?} fits more than one sample");
    Some(first.value)
}
