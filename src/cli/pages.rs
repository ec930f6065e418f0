//! Manual pages and completions, made from the definitions of the command lines.
//!
//! Owner: `make man` and `packaging/install.sh`, by the hidden command `pages`. Invariant: nothing is written here that the
//! definitions do not say, the table of exit statuses aside, which comes from the enums.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit::{Exit, Outcome};
use super::{Cli, Context};
use crate::checks;
use crate::daemon;

/// Writes manual pages and completions below a directory, as in /usr/share.
#[derive(Debug, Args)]
pub struct Pages {
    /// The directory.
    dir: PathBuf,
}

impl Pages {
    pub(super) fn run(self, context: &Context) -> Outcome {
        for (path, text) in all() {
            let path = self.dir.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, text)?;
            context.out.say(&path.display().to_string());
        }
        Ok(())
    }
}

/// Both command lines, as people see them.
#[must_use]
pub fn commands() -> [Command; 2] {
    let mut cli = Cli::command();
    // Global options and help become part of each subcommand.
    cli.build();
    let mut daemon = daemon::Options::command();
    daemon.build();
    [cli, daemon]
}

/// Every file, with its path below /usr/share.
fn all() -> Vec<(PathBuf, Vec<u8>)> {
    let [cli, daemon] = commands();
    let mut files = Vec::new();
    let exits: Vec<(u8, String)> =
        Exit::ALL.iter().map(|exit| (*exit as u8, exit.meaning().to_owned())).collect();
    page(
        &mut files,
        &cli,
        "1",
        &exits,
        "hostlerd(8), hostler.toml(5), systemd(1), podman(1), busctl(1)",
    );
    subpages(&mut files, &cli, "hostler", &exits);
    let exits: Vec<(u8, String)> = checks::Exit::ALL
        .iter()
        .map(|exit| (*exit as u8, format!("{exit}: {}", exit.fix())))
        .collect();
    page(&mut files, &daemon, "8", &exits, "hostler(1), hostler.toml(5), systemd(1), podman(1)");
    files.push((PathBuf::from("man/man5/hostler.toml.5"), super::settings::page()));
    for (name, command) in
        [("hostler", shown(Cli::command())), ("hostlerd", daemon::Options::command())]
    {
        let places = [
            (Shell::Bash, format!("bash-completion/completions/{name}")),
            (Shell::Zsh, format!("zsh/site-functions/_{name}")),
            (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
        ];
        for (shell, path) in places {
            let mut text = Vec::new();
            generate(shell, &mut command.clone(), name, &mut text);
            files.push((PathBuf::from(path), text));
        }
    }
    files
}

/// A page for each subcommand, and for theirs: `hostler-config-check.1`.
fn subpages(
    files: &mut Vec<(PathBuf, Vec<u8>)>,
    parent: &Command,
    prefix: &str,
    exits: &[(u8, String)],
) {
    for command in visible(parent) {
        let name = format!("{prefix}-{}", command.get_name());
        let whole = command.get_bin_name().unwrap_or(&name).to_owned();
        let command = command.clone().name(name.clone()).bin_name(whole);
        page(files, &command, "1", exits, "hostler(1), hostlerd(8)");
        subpages(files, &command, &name, exits);
    }
}

/// The subcommands that people use.
fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

/// Completions know no hidden commands: the generator does not leave them out by itself.
fn shown(command: Command) -> Command {
    let bare = Command::new("hostler")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().cloned().collect::<Vec<_>>());
    let subcommands: Vec<Command> = visible(&command).cloned().collect();
    bare.subcommands(subcommands)
}

fn page(
    files: &mut Vec<(PathBuf, Vec<u8>)>,
    command: &Command,
    section: &str,
    exits: &[(u8, String)],
    see: &str,
) {
    let name = command.get_name().to_owned();
    let man = Man::new(command.clone().disable_help_subcommand(true)).section(section);
    let mut text = Vec::new();
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in exits {
        roff.control("TP", []);
        roff.text([bold(status.to_string())]);
        roff.text([roman(meaning.as_str())]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(see)]);
    // Writing into memory does not fail.
    let _ = man.render(&mut text);
    let _ = roff.to_writer(&mut text);
    files.push((Path::new(&format!("man/man{section}")).join(format!("{name}.{section}")), text));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command and every option of a command line.
    fn helpless(command: &Command, found: &mut Vec<String>) {
        let name = command.get_name();
        if command.get_about().is_none_or(|about| about.to_string().is_empty()) {
            found.push(name.to_owned());
        }
        let said = |a: &clap::Arg| a.get_help().is_some_and(|help| help.to_string().len() > 5);
        for argument in command.get_arguments().filter(|a| !said(a)) {
            found.push(format!("{name} {}", argument.get_id()));
        }
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            helpless(sub, found);
        }
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        let mut found = Vec::new();
        for command in commands() {
            helpless(&command, &mut found);
        }
        assert!(found.is_empty(), "without help: {found:?}");
        Cli::command().debug_assert();
        daemon::Options::command().debug_assert();
    }

    #[test]
    fn there_is_a_page_for_each_command_and_none_for_hidden_ones() {
        let files = all();
        let names: Vec<String> = files.iter().map(|(path, _)| path.display().to_string()).collect();
        for wanted in [
            "man/man1/hostler.1",
            "man/man1/hostler-load.1",
            "man/man1/hostler-doctor.1",
            "man/man1/hostler-config-check.1",
            "man/man1/hostler-import-llama-swap.1",
            "man/man8/hostlerd.8",
            "man/man5/hostler.toml.5",
            "bash-completion/completions/hostler",
            "zsh/site-functions/_hostlerd",
            "fish/vendor_completions.d/hostler.fish",
        ] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} is not in {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("fetch") || name.contains("pages")));
        for (path, text) in &files {
            let text = String::from_utf8(text.clone()).unwrap();
            let hidden = text.contains("__fetch") || text.contains("\"fetch\"");
            assert!(!hidden, "{} shows a hidden command", path.display());
        }
    }
}
