//! `hostler remove`: takes back what `add` wrote.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Context;
use super::add::file::model_files;
use super::change::{self, Applied, Before};
use super::exit::{Exit, Failure, Outcome};
use crate::config;
use crate::daemon::Options;

/// Removes the file of a model in models.d, and applies that: the model drains and is unloaded. Weights stay.
#[derive(Debug, Args)]
pub struct Remove {
    /// Its name.
    model: String,

    /// Do not apply it to the running daemon.
    #[arg(long)]
    no_reload: bool,
}

impl Remove {
    pub async fn run(self, context: &Context) -> Outcome {
        let options = Options::of(context.is_user().await, None);
        let Some(dir) = options.dirs().all.into_iter().next() else {
            return Err(Failure::new(Exit::Failed, "there is no configuration directory"));
        };
        let files = model_files(&dir.join("models.d"));
        let Some(file) = files.into_iter().find(|f| f.name == self.model) else {
            return Err(elsewhere(&self.model, &options, &dir));
        };
        valid_without(&options, &file.path)?;
        let failed = |err: std::io::Error| {
            let exit = if err.kind() == std::io::ErrorKind::PermissionDenied {
                Exit::Denied
            } else {
                Exit::Failed
            };
            Failure::new(exit, format!("{} cannot be removed: {err}", file.path.display()))
        };
        let before = Before::of(&file.path).await.map_err(failed)?;
        std::fs::remove_file(&file.path).map_err(failed)?;
        context.out.say(&format!("removed {}", file.path.display()));
        if !self.no_reload
            && let Applied::Later(absent) = change::apply(context, before).await?
        {
            context.out.say(&format!("{}; this is applied when it is there", absent.message));
        }
        if context.out.json {
            return context.out.document(&serde_json::json!({"removed": file.path}));
        }
        Ok(())
    }
}

/// A configuration that would not be valid any more stays as it is: a key that is for this model, say.
fn valid_without(options: &Options, path: &Path) -> Outcome {
    let mut sources = config::read(Path::new("/"), &options.dirs());
    sources.retain(|source| Path::new(&source.path) != path);
    change::check(options, &sources).map(drop).map_err(|errors| {
        let message = format!("without {} the configuration is wrong:\n{errors}", path.display());
        Failure::new(Exit::Config, message).fix("correct that first; nothing was removed")
    })
}

/// It is not a file of its own in the first directory: where, then?
fn elsewhere(model: &str, options: &Options, dir: &Path) -> Failure {
    let missing =
        format!("no file in {} defines a model {model:?}", dir.join("models.d").display());
    let failure = Failure::new(Exit::NotFound, missing);
    let others: Vec<PathBuf> = options.dirs().all.into_iter().skip(1).collect();
    for other in others {
        if let Some(file) =
            model_files(&other.join("models.d")).into_iter().find(|f| f.name == model)
        {
            let mask = dir.join("models.d").join(file.path.file_name().unwrap_or_default());
            return failure.fix(format!(
                "{} does, which a package owns; mask it: ln -s /dev/null {}",
                file.path.display(),
                mask.display()
            ));
        }
    }
    let sources = config::read(Path::new("/"), &options.dirs());
    let table = sources.iter().find(|s| {
        let text = s.text.as_deref().unwrap_or_default();
        text.contains(&format!("[models.{model}]"))
            || text.contains(&format!("[models.\"{model}\"]"))
    });
    match table {
        Some(source) => failure
            .fix(format!("it is a table in {}: remove it there, then hostler reload", source.path)),
        None => failure.fix("hostler list shows the models, hostler config files the files"),
    }
}
