//! A model's projector: what makes images part of a prompt.
//!
//! Purpose: the rules of the key `projector`. Owner: [`super::model`]. Pure.

use std::path::PathBuf;

use super::check;
use super::model::Entry;
use super::source::Report;
use crate::types::{EngineKind, files};

/// The file of a model of llama.cpp, whose weights lack it. A second one in `args` is refused: the engine takes the last.
pub(super) fn projector(
    report: &mut Report<'_>,
    entry: &Entry,
    engine: Option<EngineKind>,
) -> Option<PathBuf> {
    let value = entry.raw.projector.as_ref()?;
    let key = entry.key("projector");
    if engine == Some(EngineKind::Vllm) {
        let message = "is for engine = \"llamacpp\" only: vLLM's models have it among their weights; remove it";
        report.at(value.span().start, &key, message);
    }
    let names = |arg: &str| {
        let flag = arg.split('=').next().unwrap_or_default();
        files::PROJECTOR_FLAGS.contains(&flag)
    };
    let args = entry.raw.args.iter().flatten();
    if let Some(arg) = args.into_iter().find(|arg| names(arg.get_ref())) {
        let message = "names a projector, and so does the key projector; remove one of them";
        report.at(arg.span().start, &entry.key("args"), message);
    }
    check::path(report, &key, Some(value))
}
