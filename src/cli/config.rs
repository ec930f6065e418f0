//! `hostler config`: the files, without a daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Context;
use super::bus::own_config;
use super::exit::{Exit, Failure, Outcome};
use crate::config;
use crate::daemon::Options;

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
        let user = is_user(context);
        match self.what {
            What::Check { file } => check(context, &Options::of(user, file)),
            What::Files => files(context, &Options::of(user, None)),
            What::Schema => context.out.document(&config::schema()),
        }
    }
}

/// Whose files: as told; else the system's, unless only the caller's own daemon is configured. No bus is asked: what is configured has
/// to be knowable without one.
fn is_user(context: &Context) -> bool {
    if context.global.user || context.global.system {
        return context.global.user;
    }
    let own = || own_config().is_some_and(|path| path.exists());
    let system = || config::Dirs::system().0.iter().any(|dir| dir.join("hostler.toml").exists());
    !rustix::process::geteuid().is_root() && own() && !system()
}

fn check(context: &Context, options: &Options) -> Outcome {
    let loaded = options.load();
    if context.out.json {
        let errors: Vec<_> = match &loaded {
            Ok(_) => Vec::new(),
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
        context.out.document(&serde_json::json!({"valid": loaded.is_ok(), "errors": errors}))?;
        return if loaded.is_ok() { Ok(()) } else { Err(Failure::said(Exit::Config)) };
    }
    match loaded {
        Ok(config) => {
            context.out.say(&format!("the configuration is valid: {} models", config.models.len()));
            Ok(())
        }
        Err(errors) => {
            eprintln!("{errors}");
            Err(Failure::said(Exit::Config))
        }
    }
}

fn files(context: &Context, options: &Options) -> Outcome {
    let sources = config::read(std::path::Path::new("/"), &options.dirs());
    if context.out.json {
        let rows: Vec<_> = sources
            .iter()
            .map(|s| serde_json::json!({"file": s.path, "error": s.text.as_ref().err()}))
            .collect();
        return context.out.document(&rows);
    }
    let line = |s: &config::Source| match &s.text {
        Ok(_) => format!("{}\n", s.path),
        Err(why) => format!("{} (cannot be read: {why})\n", s.path),
    };
    context.out.text(&sources.iter().map(line).collect::<String>())
}
