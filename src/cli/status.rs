//! `hostler status`: the daemon, its devices and its models at one moment.

use clap::Args;

use super::document::{Document, Gpu};
use super::exit::Outcome;
use super::list::{self, paragraphs};
use super::output::{NONE, Output, Side, Table, Tone, plain, span};
use super::{Context, elsewhere, show};
use crate::types::Bytes;

/// Shows the daemon, its devices and its models. With a name: the same as show.
#[derive(Debug, Args)]
pub struct Status {
    /// Only this model.
    model: Option<String>,
}

impl Status {
    pub async fn run(self, context: &Context) -> Outcome {
        if let Some(model) = self.model {
            return show::Show { model }.run(context).await;
        }
        let (text, document) = context.bus().await?.status().await?;
        if context.out.json {
            return context.out.text(&(text + "\n"));
        }
        context.out.text(&render(&document, &context.out))?;
        if document.models.is_empty() && document.externals.is_empty() {
            context.out.say(&list::nothing(&[]));
        }
        Ok(())
    }
}

/// The whole, as text.
fn render(document: &Document, out: &Output) -> String {
    let tone = if document.state == "running" { Tone::Good } else { Tone::Warn };
    let mut text = format!(
        "hostler {}: {}, up {}; podman {}\n",
        document.version,
        out.paint(&document.state, tone),
        span(document.now),
        document.podman_version
    );
    text += &format!("listening on {}\n", document.listeners.join(", "));
    for problem in &document.problems {
        let code = out.paint(&problem.code, Tone::Bad);
        let since = span(document.now.saturating_sub(problem.since));
        text += &format!("PROBLEM {code} for {since}: {}\n", problem.message);
    }
    let mut jobs = Table::new(&[
        ("JOB", Side::Right),
        ("KIND", Side::Left),
        ("MODEL", Side::Left),
        ("DONE", Side::Right),
    ]);
    for job in document.jobs.iter().filter(|job| job.state == "running") {
        let done = job.progress.map(|p| format!("{:.0}%", p * 100.0));
        jobs.row(vec![
            plain(job.id.to_string()),
            plain(&job.kind),
            plain(job.model.as_deref().unwrap_or("all")),
            plain(done.unwrap_or_else(|| NONE.to_owned())),
        ]);
    }
    let models = list::table(document, |_| true).render(out);
    let others = elsewhere::table(document).render(out);
    let strangers = strangers(&document.gpus, out);
    paragraphs([text, gpus(&document.gpus, out), strangers, models, others, jobs.render(out)])
}

/// A number of bytes that may not be known.
pub fn bytes(value: Option<Bytes>) -> String {
    value.map_or_else(|| NONE.to_owned(), |b| b.to_string())
}

/// The devices' ledgers.
fn gpus(gpus: &[Gpu], out: &Output) -> String {
    let mut table = Table::new(&[
        ("DEVICE", Side::Left),
        ("PRODUCT", Side::Left),
        ("TOTAL", Side::Right),
        ("MODELS", Side::Right),
        ("LEAVING", Side::Right),
        ("OTHERS", Side::Right),
        ("FREE", Side::Right),
    ]);
    for gpu in gpus {
        let tone = if gpu.total.is_none() { Tone::Bad } else { Tone::Plain };
        table.row(vec![
            (gpu.id.clone(), tone),
            plain(&gpu.name),
            plain(bytes(gpu.total)),
            plain((gpu.reserved + gpu.confirmed).to_string()),
            plain((gpu.releasing + gpu.quarantined).to_string()),
            plain(bytes(gpu.foreign)),
            plain(bytes(gpu.free)),
        ]);
    }
    table.render(out)
}

/// The processes that are not Hostler's.
fn strangers(gpus: &[Gpu], out: &Output) -> String {
    let mut table =
        Table::new(&[("OTHERS ON", Side::Left), ("PROCESS", Side::Right), ("HOLDS", Side::Right)]);
    for gpu in gpus {
        for process in gpu.processes.iter().filter(|process| process.model.is_none()) {
            let pid = process.pid.to_string();
            table.row(vec![plain(&gpu.id), plain(pid), plain(bytes(process.bytes))]);
        }
    }
    table.render(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::tests::example;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn as_expected() {
        crate::cli::tests::compare("status.txt", &render(&example(), &PIPE));
    }
}
