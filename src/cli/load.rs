//! `hostler load`: asks for models, and waits until they answer.

use std::time::Duration;

use clap::{Args, ValueEnum};
use zbus::OwnedObjectPath;

use super::Context;
use super::bus::{Bus, Options};
use super::exit::{Exit, Failure, Outcome};
use super::job::{Watch, deadline, until};
use super::output::tell;

/// Loads models, and waits until they answer.
#[derive(Debug, Args)]
pub struct Load {
    /// Names or aliases.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,

    #[command(flatten)]
    wish: Wish,

    /// Keep them loaded: never evicted nor idled out, until unloaded or unpinned.
    #[arg(long)]
    pin: bool,

    /// Return at once, and print the jobs.
    #[arg(long)]
    no_block: bool,

    /// Wait no longer than this, for all of them together; a load that was begun goes on. Such as 90s or 10m.
    #[arg(long, value_name = "TIME", value_parser = super::wait::time, conflicts_with = "no_block")]
    timeout: Option<Duration>,
}

/// How a place is found.
#[derive(Clone, Debug, Default, Args)]
pub struct Wish {
    /// Who may be made to leave for it. Without this: what on_full in the configuration says.
    #[arg(long, value_enum)]
    evict: Option<Evict>,

    /// Only on these devices, this time.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    gpus: Vec<String>,
}

/// Who may be made to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Evict {
    /// Nobody.
    None,
    /// Idle models.
    Idle,
    /// Also busy models, after the requests that they serve; never pinned ones.
    Any,
}

impl Wish {
    /// As the daemon takes it.
    pub fn options(&self) -> Options<'_> {
        let mut options = Options::new();
        if let Some(evict) = self.evict {
            let word = match evict {
                Evict::None => "none",
                Evict::Idle => "idle",
                Evict::Any => "any",
            };
            options.insert("evict", word.into());
        }
        if !self.gpus.is_empty() {
            let gpus: Vec<&str> = self.gpus.iter().map(String::as_str).collect();
            options.insert("gpus", gpus.into());
        }
        options
    }
}

impl Load {
    pub async fn run(self, context: &Context) -> Outcome {
        let bus = context.bus_even_idle().await?;
        let mut options = self.wish.options();
        if self.pin {
            options.insert("pin", true.into());
        }
        if self.no_block {
            let begin = async |model: &str| bus.begin("Load", &(model, &options)).await;
            return begin_each(context, &self.models, begin).await;
        }
        let begin = async |model: &str| bus.begin("Load", &(model, &options)).await;
        let loaded = each(context, &bus, &self.models, self.timeout, "ready", begin).await;
        loaded.map_err(|failure| {
            let goes_on = matches!(failure.exit, Exit::Interrupted | Exit::Timeout);
            if goes_on { failure.fix("hostler unload MODEL ends a load") } else { failure }
        })
    }
}

/// Prints jobs that nobody waits for.
///
/// # Errors
/// If standard output takes no more.
fn print(context: &Context, begun: &[(String, OwnedObjectPath)]) -> Outcome {
    if context.out.json {
        let rows: Vec<_> = begun
            .iter()
            .map(|(model, job)| serde_json::json!({"model": model, "job": job.as_str()}))
            .collect();
        return context.out.document(&rows);
    }
    let lines = begun.iter().map(|(model, job)| format!("{model}: {}\n", job.as_str()));
    context.out.text(&lines.collect::<String>())
}

/// Begins a job for each model and prints those that were begun, whatever became of the others.
///
/// # Errors
/// The last failure; the ones before are printed here.
pub async fn begin_each(
    context: &Context,
    models: &[String],
    begin: impl AsyncFn(&str) -> Outcome<OwnedObjectPath>,
) -> Outcome {
    let (mut begun, mut last) = (Vec::new(), None::<Failure>);
    for model in models {
        match begin(model).await {
            Ok(job) => begun.push((model.clone(), job)),
            Err(failure) => {
                let over = is_over(&failure);
                if let Some(earlier) = last.replace(failure) {
                    tell(format_args!("hostler: {earlier}"));
                }
                if over {
                    break;
                }
            }
        }
    }
    print(context, &begun)?;
    last.map_or(Ok(()), Err)
}

/// Whether nothing more is to be begun after this.
fn is_over(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Interrupted | Exit::NotRunning | Exit::Timeout)
}

/// Begins a job for each model and waits for it, as [`one_by_one`].
///
/// # Errors
/// The same.
pub async fn each(
    context: &Context,
    bus: &Bus,
    models: &[String],
    timeout: Option<Duration>,
    done: &str,
    begin: impl AsyncFn(&str) -> Outcome<OwnedObjectPath>,
) -> Outcome {
    let deadline = deadline(timeout);
    one_by_one(context, models, done, async |model| {
        let mut watch = Watch::new(bus).await?;
        let job = tokio::select! {
            job = begin(model) => job?,
            () = until(deadline) => {
                return Err(Failure::new(Exit::Timeout, format!("{model}: not begun within the time that was given")));
            }
        };
        watch.end(context, bus, &job, model, deadline).await
    })
    .await
}

/// Does something to each model, one after the other; those that fail do not keep the others from being tried. Where nobody waits any
/// more, or nobody is there to do it, nothing more is begun: who says Ctrl-C or stops the daemon means all of it.
///
/// # Errors
/// The last failure; the ones before are printed here.
pub async fn one_by_one(
    context: &Context,
    models: &[String],
    done: &str,
    work: impl AsyncFn(&str) -> Outcome,
) -> Outcome {
    let mut last: Option<Failure> = None;
    let mut rows = Vec::new();
    let mut left = models.iter();
    while let Some(model) = left.next() {
        let outcome = work(model).await;
        rows.push(serde_json::json!({
            "model": model, "done": outcome.is_ok(),
            "error": outcome.as_ref().err().map(|failure| &failure.message),
        }));
        let Err(mut failure) = outcome else {
            context.out.say(&format!("{model}: {done}"));
            continue;
        };
        let over = is_over(&failure);
        let left = left.as_slice().join(", ");
        if over && !left.is_empty() {
            failure.message += &format!("; not tried: {left}");
        }
        if let Some(earlier) = last.replace(failure) {
            tell(format_args!("hostler: {earlier}"));
        }
        if over {
            break;
        }
    }
    if context.out.json {
        context.out.document(&rows)?;
    }
    last.map_or(Ok(()), Err)
}
