//! `hostler doctor`: is this host fit, and what mends it?
//!
//! The checks are those of [`crate::checks`], the same that the daemon makes before READY. Where the daemon runs it makes them
//! itself, so that they are seen from where they count; where it does not they are made here, by root as the service user.
//! Invariants: what `--fix` runs comes from our own table, by the check's name; what the daemon wrote is only shown. It is run for what
//! was found, never for what nobody could look at.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::Context;
use super::bus::Bus;
use super::exit::{Exit, Failure, Outcome};
use super::output::{Side, Table, Tone, plain, tell};
use crate::checks::{self, Check, Checks, Probes};
use crate::daemon::{Options, but};

/// Checks the host, and says what mends it. Ends with 8 where a check does not hold, with 6 where only root could look.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Run the commands that mend what was found, as far as there are any, and check again. Needs root.
    #[arg(long)]
    fix: bool,

    /// Make the checks in this process and as this user, and do not ask the daemon.
    #[arg(long, hide = true, conflicts_with = "fix")]
    own: bool,
}

/// The row of a host that the caller cannot look at.
const HOST: &str = "host";

/// One check, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    check: String,
    outcome: String,
    measured: String,
    fix: String,
}

impl Row {
    fn new(check: &str, outcome: &str, measured: impl Into<String>, fix: &str) -> Self {
        Self {
            check: check.to_owned(),
            outcome: outcome.to_ascii_uppercase(),
            measured: measured.into(),
            fix: fix.to_owned(),
        }
    }

    fn is_bad(&self) -> bool {
        self.outcome == checks::Outcome::Fail.as_str()
    }
}

impl Doctor {
    pub async fn run(self, context: &Context) -> Outcome {
        let user = if self.own { context.global.user } else { context.is_user().await };
        let options = Options::of(user, None);
        let mut rows = self.look(context, &options).await?;
        if self.fix {
            rows = self.mend(context, &options, rows).await?;
        }
        if context.out.json {
            context.out.document(&rows)?;
        } else {
            context.out.text(&render(context, &rows))?;
        }
        let bad = rows.iter().filter(|row| row.is_bad()).count();
        match () {
            () if self.own => Ok(()),
            () if bad > 0 => Err(Failure::said(Exit::Unfit)),
            () if rows.iter().any(|row| row.check == HOST) => Err(Failure::said(Exit::Denied)),
            () => Ok(()),
        }
    }

    /// Mends, and looks again after each round; what is found there. A check is mended once.
    async fn mend(
        &self,
        context: &Context,
        options: &Options,
        mut rows: Vec<Row>,
    ) -> Outcome<Vec<Row>> {
        let mut done = BTreeSet::new();
        loop {
            let round = round(&rows, &options.service_user(), &done);
            if round.is_empty() {
                break;
            }
            for (check, commands) in round {
                done.insert(check);
                run_all(context, check, commands).await;
            }
            rows = self.look(context, options).await?;
        }
        if done.is_empty() {
            context.out.say("there is nothing that a command mends");
        }
        Ok(rows)
    }

    async fn look(&self, context: &Context, options: &Options) -> Outcome<Vec<Row>> {
        if self.own {
            return Ok(own(options).await);
        }
        let mut rows = vec![configuration(options)];
        let daemon = match context.bus().await {
            Ok(bus) => Some(bus),
            Err(why) => {
                rows.push(Row::new("daemon", "warn", why.message, &why.fix));
                None
            }
        };
        if let Some(bus) = daemon {
            match validate(&bus).await {
                Ok(found) => {
                    rows.push(Row::new("daemon", "pass", "it runs, and made the checks below", ""));
                    rows.extend(found);
                    return Ok(rows);
                }
                Err(why) => rows.push(Row::new("daemon", "warn", why.message, &why.fix)),
            }
        }
        if rows.first().is_some_and(Row::is_bad) {
            return Ok(rows);
        }
        rows.extend(here(options).await?);
        Ok(rows)
    }
}

/// The checks without the daemon, made as whoever they are about.
async fn here(options: &Options) -> Outcome<Vec<Row>> {
    if options.user {
        return Ok(own(options).await);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let Some((uid, gid)) = ids(&passwd, checks::SERVICE_USER) else {
        let missing = format!("there is no user {}", checks::SERVICE_USER);
        return Ok(vec![Row::new("user", "fail", missing, "run /usr/lib/hostler/postinst.sh")]);
    };
    let caller = rustix::process::geteuid();
    if caller.as_raw() == uid {
        return Ok(own(options).await);
    }
    if !caller.is_root() {
        // podman's socket is closed to anybody else: all would seem amiss that needs podman.
        let why = format!("only root can look at it, in the name of {}", checks::SERVICE_USER);
        return Ok(vec![Row::new(HOST, "warn", why, "sudo hostler doctor")]);
    }
    let mut rows = as_service_user(uid, gid).await?;
    // Only root sees who holds systemd's sockets.
    let at = rows.iter().position(|row| row.check == Check::Ports.as_str());
    if let (Some(at), Ok(config)) = (at, options.load()) {
        rows.splice(at..=at, [finding(checks::ports(&config))]);
    }
    Ok(rows)
}

/// The files as they are now; the daemon may run with older ones.
fn configuration(options: &Options) -> Row {
    match options.look() {
        Ok((config, unseen)) => {
            let but = but(&unseen);
            Row::new("config", "pass", format!("valid, {} models{but}", config.models.len()), "")
        }
        Err(errors) => Row::new(
            "config",
            "fail",
            errors.to_string(),
            "correct the files; hostler config check",
        ),
    }
}

/// The daemon's own checks.
async fn validate(bus: &Bus) -> Outcome<Vec<Row>> {
    type Answer = Vec<(String, String, String, String)>;
    let answer: Answer = bus.call(&bus.manager, "Validate", &()).await?;
    let row = |(check, outcome, measured, fix): (String, String, String, String)| {
        Row::new(&check, &outcome, measured, &fix)
    };
    Ok(answer.into_iter().map(row).collect())
}

/// The checks, made here.
async fn own(options: &Options) -> Vec<Row> {
    let config = match options.load() {
        Ok(config) => config,
        Err(_) => return Vec::new(),
    };
    let (cdi_dirs, user) = (checks::cdi_dirs(), options.service_user());
    let probes = Probes::new(&config, &user);
    let checks = Checks {
        config: &config,
        containers: &*probes.containers,
        gpus: &*probes.gpus,
        cdi_dirs: &cdi_dirs,
        user: &user,
    };
    checks.all().await.into_iter().map(finding).collect()
}

fn finding(found: checks::Finding) -> Row {
    Row::new(found.check.as_str(), found.outcome.as_str(), found.measured, &found.fix)
}

/// The same by a process of the service user: whether root could do it is not the question.
async fn as_service_user(uid: u32, gid: u32) -> Outcome<Vec<Row>> {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--system", "--json", "doctor", "--own"])
        .env("HOME", "/var/lib/hostler")
        .env_remove("XDG_RUNTIME_DIR")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .gid(gid)
        .uid(uid);
    let output = run(command).await?;
    serde_json::from_slice(&output.stdout).map_err(|err| {
        let user = checks::SERVICE_USER;
        let status = output.status;
        Failure::new(Exit::Failed, format!("the checks as {user} ended with {status} ({err})"))
    })
}

/// Runs a program on a thread of its own: Ctrl-C ends that program, and is not to be heeded by it alone.
async fn run(mut command: Command) -> std::io::Result<std::process::Output> {
    tokio::task::spawn_blocking(move || command.output()).await?
}

/// User and group of the service; `None`: there is no such user.
pub fn service_user() -> Option<(u32, u32)> {
    ids(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), checks::SERVICE_USER)
}

/// User and group of a name.
#[must_use]
fn ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// What is to be run before the next look: what mends podman ends a round, as without podman much was not looked at.
fn round(rows: &[Row], user: &str, done: &BTreeSet<Check>) -> Vec<(Check, Vec<Vec<String>>)> {
    let mut round = Vec::new();
    for row in rows {
        let Some(check) = Check::named(&row.check).filter(|check| !done.contains(check)) else {
            continue;
        };
        let commands = checks::wanted(check, &row.outcome, &row.fix, user);
        if commands.is_empty() {
            continue;
        }
        round.push((check, commands));
        if check == Check::Podman {
            break;
        }
    }
    round
}

/// Runs commands one after the other, up to the first that fails.
async fn run_all(context: &Context, check: Check, commands: Vec<Vec<String>>) {
    for command in commands {
        let Some((program, args)) = command.split_first() else { continue };
        context.out.say(&format!("{}: {}", check.as_str(), command.join(" ")));
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let why = match run(command).await {
            Ok(output) if output.status.success() => continue,
            Ok(output) => output.status.to_string(),
            Err(err) => err.to_string(),
        };
        tell(format_args!("hostler: {program} failed ({why}), going on with the next check"));
        break;
    }
}

fn render(context: &Context, rows: &[Row]) -> String {
    let mut table =
        Table::new(&[("", Side::Left), ("CHECK", Side::Left), ("MEASURED", Side::Left)]);
    let mut text = String::new();
    for row in rows {
        let tone = match row.outcome.as_str() {
            "PASS" => Tone::Good,
            "WARN" => Tone::Warn,
            _ => Tone::Bad,
        };
        let mut lines = row.measured.lines();
        let first = lines.next().unwrap_or_default();
        table.row(vec![(row.outcome.clone(), tone), plain(&row.check), plain(first)]);
        for line in lines {
            table.row(vec![plain(""), plain(""), plain(line)]);
        }
        if !row.fix.is_empty() {
            table.row(vec![plain(""), plain(""), plain(format!("fix: {}", row.fix))]);
        }
    }
    text += &table.render(&context.out);
    let count = |word: &str| rows.iter().filter(|row| row.outcome == word).count();
    if !context.out.quiet {
        let (pass, warn, fail) = (count("PASS"), count("WARN"), count("FAIL"));
        text += &format!("\n{pass} hold, {warn} to look at, {fail} do not hold\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;
    use crate::cli::output::tests::PIPE;

    #[test]
    fn ids_of_a_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nhostler:x:996:995::/var/lib/hostler:/x\n";
        assert_eq!(ids(passwd, "hostler"), Some((996, 995)));
        assert_eq!(ids(passwd, "host"), None);
    }

    #[test]
    fn a_podman_that_does_not_answer_is_mended_before_anything_is_concluded() {
        let unasked = "mend podman first";
        let generate = &checks::wanted(Check::Cdi, "FAIL", "", "hostler").concat().join(" ");
        let mut rows = vec![
            Row::new("config", "pass", "valid", ""),
            Row::new("cdi", "warn", "x.yaml cannot be used", "mend or remove x.yaml"),
            Row::new("linger", "fail", "off", "loginctl enable-linger hostler"),
            Row::new("podman", "fail", "does not answer", "…"),
            Row::new("subids", "warn", "could not be looked at", unasked),
            Row::new("selinux", "warn", "could not be looked at", unasked),
            Row::new("network", "fail", "does not work", "…"),
        ];
        let checks = |rows: &[Row], done: &BTreeSet<Check>| -> Vec<Check> {
            round(rows, "hostler", done).into_iter().map(|(check, _)| check).collect()
        };
        let mut done = BTreeSet::new();
        assert_eq!(checks(&rows, &done), [Check::Linger, Check::Podman]);
        // It answers: the rest was all right, but for what is found now.
        done.extend([Check::Linger, Check::Podman]);
        assert_eq!(checks(&rows, &done), [], "no command is run twice, and none unseen");
        rows[1] = Row::new("cdi", "warn", "x", generate);
        rows[4] = Row::new("subids", "fail", "1 user and 1 group IDs", "…");
        assert_eq!(checks(&rows, &done), [Check::Cdi, Check::Subids]);
    }

    #[test]
    fn each_failure_has_its_fix_below() {
        let rows = [
            Row::new("config", "pass", "valid, 3 models", ""),
            Row::new("linger", "fail", "off for hostler", "loginctl enable-linger hostler"),
            Row::new("disk", "Warn", "1GiB of 9GiB free\nat /x", "prune"),
        ];
        let context = Context { global: Global::default(), out: PIPE };
        crate::cli::tests::compare("doctor.txt", &render(&context, &rows));
    }
}
