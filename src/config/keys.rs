//! The file of keys: digests, and what their holders may do.
//!
//! Purpose: like the configuration itself, checked whole, each error with file and line. Owner: `load` reads the text. Pure. The
//! keys themselves are nowhere: a digest is enough to know one when it comes.

use std::collections::BTreeMap;

use toml::Spanned;

use crate::types::ModelName;

use super::check;
use super::error::ConfigErrors;
use super::raw::{RawKey, RawKeys};
use super::source::{Report, Source};
use super::tree::{self, quote_key};
use super::types::{Config, KeyConfig};

/// Keys in one file.
const KEYS_MAX: usize = 10_000;

/// Checks a file of keys against the models that `config` has.
///
/// # Errors
/// All that is wrong in it.
pub fn keys(source: &Source, config: &Config) -> Result<Vec<KeyConfig>, ConfigErrors> {
    let sources = std::slice::from_ref(source);
    let mut report = Report::new(sources);
    let text = match &source.text {
        Ok(text) => text,
        Err(why) => {
            report.unreadable(0, why);
            return Err(report.into_errors());
        }
    };
    let mut table = tree::read_secret(text, 0, &mut report);
    let raw: RawKeys = tree::fit(&mut table, &mut report);
    let mut digests = BTreeMap::new();
    let mut keys = Vec::new();
    for (name, raw) in raw.keys.iter().take(KEYS_MAX) {
        keys.extend(key(&mut report, name, &raw.0, config, &mut digests));
    }
    if raw.keys.len() > KEYS_MAX {
        report.whole("keys", format!("are more than {KEYS_MAX}"));
    } else if raw.keys.is_empty() && !report.has_errors() {
        let message = "there is none, so nobody could come in; add [keys.NAME] with sha256 = \"…\"";
        report.whole("keys", message);
    }
    if report.has_errors() { Err(report.into_errors()) } else { Ok(keys) }
}

fn key(
    report: &mut Report<'_>,
    name: &Spanned<String>,
    raw: &RawKey,
    config: &Config,
    digests: &mut BTreeMap<[u8; 32], String>,
) -> Option<KeyConfig> {
    let text = name.get_ref();
    let prefix = format!("keys.{}", quote_key(text));
    let at = name.span().start;
    let word = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(word) {
        report.at(at, &prefix, "a key's name has 1 to 64 of letters, digits and - _ . @");
    }
    let Some(value) = &raw.sha256 else {
        if !report.is_reported(None, &format!("{prefix}.sha256")) {
            let message = "must be given: `printf %s \"$key\" | sha256sum` prints it, where key is the key itself";
            report.at(at, &format!("{prefix}.sha256"), message);
        }
        return None;
    };
    let digest = digest(value.get_ref());
    match digest {
        None => {
            let message = "must be 64 hexadecimal digits, as `printf %s \"$key\" | sha256sum` prints them, never the key itself";
            report.at(value.span().start, &format!("{prefix}.sha256"), message);
        }
        Some(_) if value.get_ref().eq_ignore_ascii_case(OF_NOTHING) => {
            let message = "is the digest of an empty text, so the variable was empty; take the digest of the key";
            report.at(value.span().start, &format!("{prefix}.sha256"), message);
        }
        Some(digest) => {
            if let Some(other) = digests.insert(digest, text.clone()) {
                let message = format!("is the digest of {other}, too; give each its own key");
                report.at(value.span().start, &format!("{prefix}.sha256"), message);
            }
        }
    }
    let models = models(report, &format!("{prefix}.models"), raw, config);
    let admin = raw.admin.as_ref().is_some_and(|v| *v.get_ref());
    if let (true, Some(value), false) = (admin, &raw.admin, models.is_empty()) {
        let message = "a key for some models only cannot be an administrator's; remove one of models and admin";
        report.at(value.span().start, &format!("{prefix}.admin"), message);
    }
    let mut count = |key: &str, value: Option<&Spanned<i64>>, max| {
        check::count(report, &format!("{prefix}.{key}"), value, max)
    };
    Some(KeyConfig {
        admin,
        name: text.clone(),
        digest: digest?,
        models,
        per_minute: count("per_minute", raw.per_minute.as_ref(), 1_000_000),
        concurrent: count("concurrent", raw.concurrent.as_ref(), 65_536),
        share: count("share", raw.share.as_ref(), 1000).unwrap_or(1),
    })
}

/// What `sha256sum` prints of nothing.
const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn models(report: &mut Report<'_>, key: &str, raw: &RawKey, config: &Config) -> Vec<ModelName> {
    let Some(list) = &raw.models else { return Vec::new() };
    let mut good = Vec::new();
    for value in list {
        let text = value.get_ref();
        match config.resolve(text) {
            Some(name) => good.push(name.clone()),
            None => {
                let message = format!("there is no model {text:?}; remove it here or configure it");
                report.at(value.span().start, key, message);
            }
        }
    }
    if list.is_empty() {
        let at = raw.sha256.as_ref().map_or(0, |v| v.span().start);
        report.at(
            at,
            key,
            "is empty, so the key would be good for nothing; remove it to allow all models",
        );
    }
    good
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    // `from_str_radix` would take a sign.
    text.bytes().all(|b| b.is_ascii_hexdigit()).then_some(digest)
}
