//! `hostler config`: the files, without a daemon.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, Subcommand};

use super::Context;
use super::doctor::service_user;
use super::exit::{Exit, Failure, Outcome};
use super::output::{tell, warn};
use crate::checks::SERVICE_USER;
use crate::config;
use crate::daemon::{Options, but};
use crate::types::ModelSpec;

/// Looks at the configuration files.
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check the files as the daemon would read them; print every error with file, line and fix.
    Check {
        /// Check this file alone instead of the configuration directories.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List the files that are read, in the order in which they apply.
    Files,
    /// Print the JSON schema of the configuration.
    Schema,
}

impl Config {
    pub fn run(self, context: &Context) -> Outcome {
        let user = context.is_configured_for_user();
        match self.what {
            What::Check { file } => {
                if let Some(file) = &file {
                    whole(file)?;
                }
                check(context, &Options::of(user, file))
            }
            What::Files => files(context, &Options::of(user, None)),
            What::Schema => context.out.document(&config::schema()),
        }
    }
}

fn check(context: &Context, options: &Options) -> Outcome {
    let mut loaded = options.look();
    let closed =
        if loaded.is_ok() { closed_to_service(context, options) } else { Some(Vec::new()) };
    if let (Ok((_, unseen)), None) = (&mut loaded, &closed) {
        unseen.push(format!("what {SERVICE_USER} may read"));
    }
    let closed = closed.unwrap_or_default();
    if context.out.json {
        let unseen = loaded.as_ref().map(|(_, unseen)| unseen.as_slice()).unwrap_or_default();
        let errors: Vec<_> = match &loaded {
            Ok(_) => closed
                .iter()
                .map(|(file, message)| {
                    serde_json::json!({
                        "file": file, "line": null, "column": null, "key": null, "message": message,
                    })
                })
                .collect(),
            Err(errors) => errors
                .as_slice()
                .iter()
                .map(|e| {
                    serde_json::json!({
                        "file": e.path, "line": e.position.map(|p| p.line),
                        "column": e.position.map(|p| p.column), "key": e.key, "message": e.message,
                    })
                })
                .collect(),
        };
        let valid = errors.is_empty();
        let warnings = loaded.as_ref().map(|(config, _)| doubts(config)).unwrap_or_default();
        let document = serde_json::json!({
            "valid": valid, "errors": errors, "warnings": warnings, "unseen": unseen,
        });
        context.out.document(&document)?;
        return if valid { Ok(()) } else { Err(Failure::said(Exit::Config)) };
    }
    match loaded {
        Ok((config, unseen)) => {
            if !closed.is_empty() {
                for (file, message) in &closed {
                    tell(format_args!("{file}: {message}"));
                }
                return Err(Failure::said(Exit::Config));
            }
            doubts(&config).iter().for_each(warn);
            let models = config.counted();
            context.out.say(&format!("the configuration is valid: {models}{}", but(&unseen)));
            Ok(())
        }
        Err(errors) => {
            tell(errors);
            Err(Failure::said(Exit::Config))
        }
    }
}

/// What is right by its form, and most often not what is meant.
fn doubts(config: &config::Config) -> Vec<String> {
    let models = config.models.values();
    let doubt =
        |model: &ModelSpec| Some(format!("models.{}: {}", model.name, model.image.doubt()?));
    models.filter_map(|model| doubt(model)).collect()
}

/// What root may read and the service may not, which then does not start, each with what to do: found by the same check in the name of the
/// service's user, with the groups that it has on this host (not those that a drop-in gives it). `None`: it cannot be asked here.
fn closed_to_service(context: &Context, options: &Options) -> Option<Vec<(String, String)>> {
    let own = options.config.is_some() || context.is_configured_for_user();
    if own || !rustix::process::geteuid().is_root() || service_user().is_none() {
        return Some(Vec::new());
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", SERVICE_USER, "--regid", SERVICE_USER, "--init-groups", "--"]);
    command.arg(std::env::current_exe().ok()?).args(["--system", "--json", "config", "check"]);
    command.current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
    let seen: Seen = serde_json::from_slice(&command.output().ok()?.stdout).ok()?;
    let errors = seen.errors.into_iter().filter_map(|it| Some((it.file?, it.message)));
    // A file of keys that is closed to who checks is told apart.
    let keys = seen.unseen.into_iter().filter(|it| it.starts_with('/'));
    let keys = keys.map(|file| (file, "cannot be read: Permission denied".to_owned()));
    let advise = |(file, message): (String, String)| {
        let fix = config::closed_fix(&file);
        (file, format!("the service user {SERVICE_USER}: {message}; {fix}"))
    };
    Some(errors.chain(keys).map(advise).collect())
}

/// What such a check answers.
#[derive(serde::Deserialize)]
struct Seen {
    errors: Vec<SeenError>,
    unseen: Vec<String>,
}

#[derive(serde::Deserialize)]
struct SeenError {
    file: Option<String>,
    message: String,
}

/// A file of `models.d` is no configuration of its own: most of what could be wrong with it shows beside the others only.
fn whole(file: &Path) -> Outcome {
    let dir = std::path::absolute(file)?;
    if dir.parent().is_none_or(|dir| !dir.ends_with("models.d")) {
        return Ok(());
    }
    let message =
        format!("{} is one model's file, and no configuration of its own", file.display());
    Err(Failure::new(Exit::Usage, message)
        .fix("hostler config check, without --file, checks those of the configuration directories together"))
}

fn files(context: &Context, options: &Options) -> Outcome {
    let dirs = options.dirs();
    let read = config::read(std::path::Path::new("/"), &dirs).into_iter();
    let read = read.map(|source| (source.path, source.text.err()));
    let closed = |dir: &PathBuf| (dir.display().to_string(), Some("you may not look there".into()));
    let rows: Vec<(String, Option<String>)> =
        read.chain(dirs.hidden().iter().map(closed)).collect();
    if context.out.json {
        let row = |(file, error)| serde_json::json!({"file": file, "error": error});
        return context.out.document(&rows.into_iter().map(row).collect::<Vec<_>>());
    }
    let line = |(path, error): &(String, Option<String>)| match error {
        None => format!("{path}\n"),
        Some(why) => format!("{path} (cannot be read: {why})\n"),
    };
    context.out.text(&rows.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Defaults, Source};

    #[test]
    fn models_are_counted_wherever_they_run() {
        let counted = |names: &[&str]| {
            let model = |name: &&str| {
                let rest = match name.starts_with('e') {
                    true => "engine = \"external\"\nurl = \"http://192.0.2.1\"",
                    false => "engine = \"llamacpp\"\nimage = \"example/l\"",
                };
                format!("[models.{name}]\n{rest}\n")
            };
            let models: String = names.iter().map(model).collect();
            let text = format!("[gpu]\nbackend = \"host\"\n{models}");
            let source = Source::settings("/h.toml", text);
            config::parse(&[source], &Defaults::system()).unwrap().counted()
        };
        assert_eq!(counted(&[]), "0 models");
        assert_eq!(counted(&["a"]), "1 model");
        assert_eq!(counted(&["a", "b"]), "2 models");
        assert_eq!(counted(&["e1"]), "1 model, elsewhere");
        assert_eq!(counted(&["e1", "e2"]), "2 models, all elsewhere");
        assert_eq!(counted(&["a", "e1", "e2"]), "3 models, 2 of them elsewhere");
    }

    #[test]
    fn an_image_without_a_registry_is_doubted() {
        let text = "[gpu]\nbackend = \"host\"\n\
                    [models.a]\nengine = \"vllm\"\nimage = \"org/vllm:v1\"\n\
                    [models.b]\nengine = \"vllm\"\nimage = \"localhost/vllm:v1\"\n";
        let source = Source::settings("/h.toml", text.to_owned());
        let config = config::parse(&[source], &Defaults::system()).unwrap();
        let said = doubts(&config);
        assert!(
            said.len() == 1 && said[0].starts_with("models.a: the image org/vllm:v1"),
            "{said:?}"
        );
    }

    #[test]
    fn one_models_file_is_no_configuration() {
        let wrong = whole(Path::new("/etc/hostler/models.d/m.toml")).unwrap_err();
        assert_eq!(wrong.exit, Exit::Usage);
        whole(Path::new("/etc/hostler/hostler.toml")).unwrap();
        whole(Path::new("x.toml")).unwrap();
    }
}
