//! The bus: which one, the daemon on it, and its errors.
//!
//! Invariants: a call that changes nothing never starts a daemon; a daemon that does not run, a bus that is missing and a refusal each
//! have their exit status and say what to do; the daemon's own message is shown as it is.

use std::collections::BTreeMap;

use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::wire::{DynamicDeserialize, DynamicType};
use zbus::{
    Connection, DBusError as _, ObjectPath, OwnedObjectPath, OwnedVariant, Proxy, Variant, fdo,
};

use super::Context;
use super::document::Document;
use super::exit::{Exit, Failure, Outcome};
use super::start;

/// The daemon's name on the bus.
pub const SERVICE: &str = "org.hostler1";
/// Its root object.
const ROOT: &str = "/org/hostler1";
const MANAGER: &str = "org.hostler1.Manager";
/// Where names of D-Bus errors begin that are the daemon's own.
const OWN: &str = "org.hostler1.Error.";
/// Of a load whose engine failed.
pub const LOAD_FAILED: &str = "org.hostler1.Error.LoadFailed";
const BUS: &str = "org.freedesktop.DBus.Error.";

/// The trailing options of a method, an `a{sv}`.
pub type Options<'a> = BTreeMap<&'a str, Variant<'a>>;

/// A connection, and the daemon on it.
#[derive(Clone, Debug)]
pub struct Bus {
    /// The bus.
    pub connection: Connection,
    /// The manager's object.
    pub manager: Proxy<'static>,
    /// A user's own bus and daemon.
    pub user: bool,
}

impl Context {
    /// The daemon, which has to run.
    ///
    /// # Errors
    /// [`Exit::NotRunning`] where it does not, or where there is no bus.
    pub async fn bus(&self) -> Outcome<Bus> {
        let bus = self.bus_even_idle().await?;
        if has_owner(&bus.connection).await? { Ok(bus) } else { Err(start::absent(&bus).await) }
    }

    /// The bus, whether or not the daemon runs: a call may start it.
    ///
    /// # Errors
    /// [`Exit::NotRunning`] where there is no bus.
    pub async fn bus_even_idle(&self) -> Outcome<Bus> {
        let user = self.is_user().await;
        let connection = connect(user).await?;
        let manager = proxy(&connection, ROOT, MANAGER).await?;
        Ok(Bus { connection, manager, user })
    }
}

/// The system's bus, or the caller's own.
///
/// # Errors
/// [`Exit::NotRunning`] where there is none.
pub async fn connect(user: bool) -> Outcome<Connection> {
    let connected = if user { Connection::session().await } else { Connection::system().await };
    connected.map_err(|err| {
        let which = if user { "your user's" } else { "the system's" };
        let fix = if user {
            "log in with a session of your own (XDG_RUNTIME_DIR is set there); systemctl --user status dbus.socket"
        } else {
            "systemctl status dbus.socket"
        };
        Failure::new(Exit::NotRunning, format!("{which} D-Bus cannot be reached ({err})")).fix(fix)
    })
}

/// Whether a daemon is on it.
///
/// # Errors
/// [`Exit::NotRunning`] where the bus is none any more.
pub async fn has_owner(connection: &Connection) -> Outcome<bool> {
    let failed = |err: &dyn std::fmt::Display| {
        Failure::new(Exit::NotRunning, format!("the bus does not answer ({err})"))
    };
    let bus = fdo::DBusProxy::new(connection).await.map_err(|err| failed(&err))?;
    let name = SERVICE.try_into().map_err(|err: zbus::Error| failed(&err))?;
    bus.name_has_owner(name).await.map_err(|err| failed(&err))
}

/// An object of the daemon.
///
/// # Errors
/// For paths that are none.
pub async fn proxy(
    connection: &Connection,
    path: &str,
    interface: &'static str,
) -> Outcome<Proxy<'static>> {
    let path = ObjectPath::try_from(path.to_owned())
        .map_err(|err| Failure::new(Exit::Failed, format!("{path:?} is no object ({err})")))?;
    zbus::proxy::Builder::new(connection)
        .destination(SERVICE)
        .path(path)
        .interface(interface)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(|err| failure(&err, false))
}

impl Bus {
    /// Whether a daemon is there.
    ///
    /// # Errors
    /// [`Exit::NotRunning`] where the bus is none any more.
    pub async fn is_owned(&self) -> Outcome<bool> {
        has_owner(&self.connection).await
    }

    /// Calls a method of an object. A person may be asked to prove who they are.
    ///
    /// # Errors
    /// The daemon's or the bus's, with the right exit status; [`Exit::NotRunning`] where the daemon has left meanwhile: who looks on
    /// must not start again what an administrator has stopped.
    pub async fn call<B, R>(&self, proxy: &Proxy<'_>, method: &str, body: &B) -> Outcome<R>
    where
        B: serde::Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH | MethodFlags::NO_AUTO_START;
        self.send(proxy, method, flags, body).await
    }

    async fn send<B, R>(
        &self,
        proxy: &Proxy<'_>,
        method: &str,
        flags: MethodFlags,
        body: &B,
    ) -> Outcome<R>
    where
        B: serde::Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let answer = proxy.call_with_flags(method, flags, body).await;
        match answer.map_err(|err| failure(&err, self.user))? {
            Some(answer) => Ok(answer),
            None => Err(Failure::new(Exit::Failed, format!("{method} was not answered"))),
        }
    }

    /// A method of the manager that returns an object, most often a job. Starts the daemon where it does not run, and waits for it.
    ///
    /// # Errors
    /// The daemon's or the bus's, with the right exit status.
    pub async fn begin<B>(&self, method: &str, body: &B) -> Outcome<OwnedObjectPath>
    where
        B: serde::Serialize + DynamicType,
    {
        start::start(self).await?;
        let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
        self.send(&self.manager, method, flags, body).await
    }

    /// The object of a model, by its name or an alias.
    ///
    /// # Errors
    /// [`Exit::NotFound`] where there is none.
    pub async fn model(&self, name: &str) -> Outcome<Proxy<'static>> {
        let path: OwnedObjectPath = self.call(&self.manager, "GetModel", &(name,)).await?;
        proxy(&self.connection, path.as_str(), "org.hostler1.Model").await
    }

    /// The same, for which the daemon is started where it does not run.
    ///
    /// # Errors
    /// As [`Bus::begin`].
    pub async fn model_started(&self, name: &str) -> Outcome<Proxy<'static>> {
        let path = self.begin("GetModel", &(name,)).await?;
        proxy(&self.connection, path.as_str(), "org.hostler1.Model").await
    }

    /// A property of an object.
    ///
    /// # Errors
    /// As [`Bus::call`].
    pub async fn property<T>(&self, of: &Proxy<'_>, name: &str) -> Outcome<T>
    where
        T: TryFrom<OwnedVariant>,
    {
        let path = of.path().to_string();
        let properties = proxy(&self.connection, &path, "org.freedesktop.DBus.Properties").await?;
        let value: OwnedVariant =
            self.call(&properties, "Get", &(of.interface().as_str(), name)).await?;
        T::try_from(value)
            .map_err(|_| Failure::new(Exit::Failed, format!("{name} of {path} is of another type")))
    }

    /// Everything, at one moment: as text, and as what this program reads of it.
    ///
    /// # Errors
    /// As [`Bus::call`].
    pub async fn status(&self) -> Outcome<(String, Document)> {
        let text: String = self.call(&self.manager, "GetStatus", &()).await?;
        let document = serde_json::from_str(&text).map_err(|err| {
            let message = format!("the daemon's status cannot be read ({err})");
            Failure::new(Exit::Failed, message)
                .fix("install the same version of hostler and hostlerd, and restart hostler")
        })?;
        Ok((text, document))
    }
}

/// There is no daemon.
pub fn not_running(user: bool) -> Failure {
    let (who, ctl) = if user { ("your own", "systemctl --user") } else { ("the", "systemctl") };
    Failure::new(Exit::NotRunning, format!("{who} daemon does not run")).fix(format!(
        "{ctl} start hostler; if that fails, {ctl} status hostler says why, and hostler doctor what mends it"
    ))
}

/// An error reply as a failure.
pub fn failure(err: &zbus::Error, user: bool) -> Failure {
    if let zbus::Error::MethodError(name, message, _) = err {
        return named(name.as_str(), message.as_deref().unwrap_or_default(), user);
    }
    // The bus's own errors come as a type of their own.
    if let zbus::Error::FDO(own) = err {
        return named(own.name().as_str(), own.description().unwrap_or_default(), user);
    }
    if matches!(err, zbus::Error::InputOutput(_)) {
        return not_running(user);
    }
    Failure::new(Exit::Failed, format!("the bus failed ({err})"))
}

/// An error by its name.
pub fn named(name: &str, message: &str, user: bool) -> Failure {
    if let Some(kind) = name.strip_prefix(OWN) {
        let exit = match kind {
            "UnknownModel" | "UnknownJob" | "NoLog" => Exit::NotFound,
            "InvalidArgument" => Exit::Usage,
            "NeverFits" | "NoRoom" => Exit::NoRoom,
            "ConfigInvalid" => Exit::Config,
            "ShuttingDown" => Exit::NotRunning,
            _ => Exit::Failed,
        };
        let fix = match kind {
            "UnknownModel" => "hostler list shows those that are configured",
            "NeverFits" | "NoRoom" => "hostler why MODEL shows who holds the memory",
            "LoadFailed" => "hostler show MODEL has what its engine wrote last",
            "NoLog" if user => {
                "hostler show MODEL has what an engine that failed wrote last; of earlier ones: journalctl --user -u hostler HOSTLER_MODEL=MODEL HOSTLER_KIND=failed"
            }
            "NoLog" => {
                "hostler show MODEL has what an engine that failed wrote last; of earlier ones: journalctl -u hostler HOSTLER_MODEL=MODEL HOSTLER_KIND=failed"
            }
            "ConfigInvalid" => "correct the files; the daemon goes on with what it has",
            "QueueFull" => {
                "hostler unload MODEL ends the loads that wait; unloads and sleeps end with the requests that they wait for"
            }
            _ => "",
        };
        return Failure::new(exit, message).fix(fix);
    }
    match name.strip_prefix(BUS).unwrap_or(name) {
        "AccessDenied" | "InteractiveAuthorizationRequired" => {
            let message = if message.is_empty() { "not allowed" } else { message };
            let fix = "as root; or join the group hostler-admin and log in again";
            Failure::new(Exit::Denied, message).fix(fix)
        }
        "ServiceUnknown" | "NameHasNoOwner" | "NoReply" | "Disconnected" | "TimedOut"
        | "Timeout" => not_running(user),
        kind if kind.starts_with("Spawn.") || kind.starts_with("org.freedesktop.systemd1.") => {
            start::not_started(kind, message, user)
        }
        _ => Failure::new(Exit::Failed, format!("{message} ({name})")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A bus on which whoever is called first is started, by a command of the shell.
    pub struct Private {
        pub address: String,
        pub bus: Bus,
        daemon: Child,
        _dir: tempfile::TempDir,
    }

    impl Private {
        /// `patience`: how long a service may take to come, in milliseconds.
        pub async fn open(command: &str, patience: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let services = dir.path().join("services");
            std::fs::create_dir_all(&services).unwrap();
            let service =
                format!("[D-BUS Service]\nName={SERVICE}\nExec=/bin/sh -c \"{command}\"\n");
            std::fs::write(services.join("org.hostler1.service"), service).unwrap();
            let config = format!(
                "<busconfig><type>session</type><listen>unix:dir={0}</listen><servicedir>{0}/services</servicedir>\
                 <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>\
                 <limit name=\"service_start_timeout\">{patience}</limit></busconfig>",
                dir.path().display()
            );
            let file = dir.path().join("bus.conf");
            std::fs::write(&file, config).unwrap();
            let mut daemon = Command::new("dbus-daemon")
                .args(["--nofork", "--nopidfile", "--print-address", "--config-file"])
                .arg(&file)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|err| panic!("dbus-daemon: {err}; run tests/host/prereqs.sh"));
            let mut address = String::new();
            BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
            let address = address.trim().to_owned();
            let connection =
                zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
            let manager = proxy(&connection, ROOT, MANAGER).await.unwrap();
            let bus = Bus { connection, manager, user: true };
            Self { address, bus, daemon, _dir: dir }
        }
    }

    impl Drop for Private {
        fn drop(&mut self) {
            self.daemon.kill().unwrap();
            self.daemon.wait().unwrap();
        }
    }

    #[test]
    fn errors_have_their_exit_status() {
        let exit = |name: &str| named(name, "m", false).exit;
        assert_eq!(exit("org.hostler1.Error.UnknownModel"), Exit::NotFound);
        assert_eq!(exit("org.hostler1.Error.NoRoom"), Exit::NoRoom);
        assert_eq!(exit("org.hostler1.Error.LoadFailed"), Exit::Failed);
        assert_eq!(exit("org.hostler1.Error.New"), Exit::Failed);
        assert_eq!(exit("org.freedesktop.DBus.Error.AccessDenied"), Exit::Denied);
        assert_eq!(exit("org.freedesktop.DBus.Error.ServiceUnknown"), Exit::NotRunning);
        let denied = named("org.freedesktop.DBus.Error.AccessDenied", "polkit says no", false);
        assert!(denied.to_string().starts_with("polkit says no\n  fix: "), "{denied}");
        let fdo = fdo::Error::AccessDenied("polkit says no".into());
        assert_eq!(failure(&zbus::Error::FDO(Box::new(fdo)), false), denied);
        assert!(named("org.hostler1.Error.QueueFull", "m", false).fix.contains("unload MODEL"));
        assert!(not_running(true).fix.contains("systemctl --user start"));
        assert_eq!(named("org.freedesktop.DBus.Error.TimedOut", "m", false), not_running(false));
        let masked = named("org.freedesktop.systemd1.UnitMasked", "Unit is masked.", false);
        assert_eq!(masked.exit, Exit::NotRunning);
        assert!(masked.fix.contains("systemctl unmask hostler"), "{masked}");
        let spawned = named("org.freedesktop.DBus.Error.Spawn.ChildExited", "status 1", true);
        assert!(
            spawned.message.contains("status 1") && spawned.fix.contains("doctor"),
            "{spawned}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_only_looks_starts_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("started");
        // One that fails is told of at once; one that ends well is waited for, as for a daemon that goes on in the background.
        let private = Private::open(&format!("touch '{}'; exit 1", mark.display()), 25_000).await;
        let bus = &private.bus;
        assert_eq!(bus.status().await.unwrap_err(), not_running(true));
        assert_eq!(bus.model("m").await.unwrap_err(), not_running(true));
        let state = bus.property::<String>(&bus.manager, "State").await;
        assert_eq!(state.unwrap_err(), not_running(true));
        assert!(!mark.exists(), "a look has started it");
        let failed = bus.model_started("m").await.unwrap_err();
        assert!(mark.exists(), "a deed starts it");
        assert_eq!((failed.exit, failed.fix), (Exit::NotRunning, not_running(true).fix));
    }
}
