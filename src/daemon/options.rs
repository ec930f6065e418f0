//! The command line of `hostlerd`.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::checks;
use crate::config::{self, Config, ConfigErrors, Defaults, Dirs, KeySource};
use crate::observe::log::Format;

/// Hostler's daemon: serves one OpenAI-compatible endpoint and runs rootless podman model containers behind it, on
/// demand, within the measured memory.
#[derive(Debug, Clone, Parser)]
#[command(name = "hostlerd", version)]
pub struct Options {
    /// Read this file alone instead of the configuration directories.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Run for a desktop user: configuration in $XDG_CONFIG_HOME/hostler, sockets below $XDG_RUNTIME_DIR/hostler.
    #[arg(long)]
    pub user: bool,

    /// Listen here when systemd hands over no sockets; may be given more than once. Overrides [server] listen.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Vec<SocketAddr>,

    /// Check the configuration, print every error, and exit.
    #[arg(long)]
    pub check_config: bool,

    /// Print the configuration's JSON schema and exit.
    #[arg(long)]
    pub config_schema: bool,

    /// Form of the log lines.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: Format,

    /// What is logged: a level, or target=level directives. Overrides [log] level.
    #[arg(long, value_name = "FILTER", env = "HOSTLER_LOG")]
    pub log: Option<String>,
}

impl Options {
    /// Those that say which configuration is meant, for whoever checks it by hand.
    #[must_use]
    pub fn of(user: bool, config: Option<PathBuf>) -> Self {
        Self {
            config,
            user,
            listen: Vec::new(),
            check_config: true,
            config_schema: false,
            log_format: Format::default(),
            log: None,
        }
    }

    /// What the command line or the environment says is logged; an empty word says nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn said(&self) -> Result<Option<&str>, String> {
        let said = self.log.as_deref().filter(|said| !said.is_empty());
        said.map_or(Ok(()), config::log_filter)
            .map_err(|wrong| format!("the log filter of --log or HOSTLER_LOG: {wrong}"))?;
        Ok(said)
    }

    /// What is logged: the command line's word, else the configuration's.
    ///
    /// # Errors
    /// As [`Options::said`].
    pub fn filter<'a>(&'a self, config: &'a Config) -> Result<&'a str, String> {
        Ok(self.said()?.unwrap_or(&config.log.level))
    }

    /// Reads and checks the configuration that the options point at.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        self.look().map(|(config, _)| config)
    }

    /// The same, with what a check by hand leaves out, for the caller may not look there.
    ///
    /// # Errors
    /// As [`Options::load`].
    pub fn look(&self) -> Result<(Config, Vec<String>), ConfigErrors> {
        let looked = self.read();
        if self.user || self.check_config {
            looked
        } else {
            looked.map_err(ConfigErrors::with_commands)
        }
    }

    fn read(&self) -> Result<(Config, Vec<String>), ConfigErrors> {
        let defaults = self.defaults();
        let (mut config, mut unseen) = match &self.config {
            Some(file) => (config::load_file(file, &defaults)?, Vec::new()),
            None => {
                let dirs = self.dirs();
                let hidden = dirs.hidden().iter().map(|dir| dir.display().to_string());
                (config::load(Path::new("/"), &dirs, &defaults)?, hidden.collect())
            }
        };
        if !self.listen.is_empty() {
            config.server.listen.clone_from(&self.listen);
        }
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        // Whoever checks by hand is not given the service's credentials.
        let given = credentials.is_some() || !self.check_config;
        let closed = self.closed_keys(&config).map(|path| path.display().to_string());
        if closed.is_none() && (given || !matches!(config.auth, Some(KeySource::Credential(_)))) {
            config::load_keys(Path::new("/"), credentials.as_deref(), &mut config)?;
        }
        if given {
            config::load_external_keys(credentials.as_deref(), &mut config)?;
        } else {
            let keys = config.auth.iter().filter_map(KeySource::credential);
            let all =
                keys.chain(config.externals.values().filter_map(|it| it.key_credential.as_deref()));
            unseen.extend(all.map(|name| format!("the credential {name}")));
        }
        unseen.extend(closed);
        Ok((config, unseen))
    }

    /// The file of keys, where the caller checks by hand and may not read it: it is the service's.
    #[must_use]
    pub fn closed_keys<'a>(&self, config: &'a Config) -> Option<&'a Path> {
        let Some(KeySource::File(path)) = &config.auth else { return None };
        let closed = |path: &Path| {
            File::open(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        (self.check_config && closed(path)).then_some(path)
    }

    /// The user whose containers the daemon runs.
    #[must_use]
    pub fn service_user(&self) -> String {
        let own = || std::env::var("USER").unwrap_or_else(|_| "the user".to_owned());
        if self.user { own() } else { checks::SERVICE_USER.to_owned() }
    }

    /// Where the configuration is.
    #[must_use]
    pub fn dirs(&self) -> Dirs {
        let dirs = self.places();
        if self.check_config { dirs.as_seen(Path::new("/")) } else { dirs }
    }

    fn places(&self) -> Dirs {
        if !self.user {
            return Dirs::system();
        }
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
        Dirs::user(&config.unwrap_or_else(|| PathBuf::from("/etc")))
    }

    /// Where the configuration is read from first, for messages.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        self.config.clone().or_else(|| self.dirs().all.into_iter().next()).unwrap_or_default()
    }

    /// What is not configured.
    #[must_use]
    pub fn defaults(&self) -> Defaults {
        match super::runtime_dir().filter(|_| self.user) {
            Some(dir) => Defaults::user(&dir),
            None => Defaults::system(),
        }
    }
}

/// What was left out of a check, to be said behind its result.
#[must_use]
pub fn but(unseen: &[String]) -> String {
    if unseen.is_empty() {
        String::new()
    } else {
        format!("; not looked at, for you may not: {}", unseen.join(", "))
    }
}
