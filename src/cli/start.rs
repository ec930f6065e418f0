//! A deed where no daemon runs: it is started, and waited for.
//!
//! Invariants: it is waited for as long as systemd says that it begins. The bus's own patience is shorter (25 s with dbus-daemon) than a
//! start may take that waits for a driver or for podman, and what was asked for is dropped when it ends. One that cannot begin is said as
//! soon as systemd says so, or has to try once more.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::interval;
use zbus::{DBusError as _, OwnedObjectPath, OwnedVariant, Proxy, fdo};

use super::bus::{Bus, SERVICE, failure, not_running};
use super::exit::{Exit, Failure, Outcome};

/// Between two looks at the unit.
const LOOK: Duration = Duration::from_millis(500);
const SYSTEMD: &str = "org.freedesktop.systemd1";

/// Sees that there is a daemon.
///
/// # Errors
/// [`Exit::NotRunning`] where it does not begin, with the reason where the bus has one.
pub async fn start(bus: &Bus) -> Outcome {
    if bus.is_owned().await? {
        return Ok(());
    }
    let failed = |err: zbus::Error| failure(&err, bus.user);
    let mut owner = bus.manager.receive_owner_changed().await.map_err(failed)?;
    let names = fdo::DBusProxy::new(&bus.connection).await.map_err(failed)?;
    let name = SERVICE.try_into().map_err(failed)?;
    let asked = names.start_service_by_name(name, 0);
    tokio::pin!(asked);
    let (mut look, mut begins, mut late) = (interval(LOOK), false, false);
    loop {
        tokio::select! {
            answer = &mut asked, if !late => match answer {
                Ok(_) => return Ok(()),
                Err(fdo::Error::ZBus(err)) => return Err(failed(err)),
                Err(err) if is_late(&err) => late = true,
                Err(err) => return Err(failed(zbus::Error::FDO(Box::new(err)))),
            },
            owner = owner.next() => match owner {
                Some(Some(_)) => return Ok(()),
                Some(None) => {}
                None => return Err(not_running(bus.user)),
            },
            _ = look.tick() => {
                let (begun, unit) = (begins, Unit::look(bus).await);
                begins = unit.begins();
                // It may have begun meanwhile, or be back on a bus that it had lost.
                if !begins && (begun || late) {
                    return if bus.is_owned().await? { Ok(()) } else { Err(unit.absent(bus.user)) };
                }
            }
        }
    }
}

/// Whether the bus is no longer waiting, and nothing more.
fn is_late(err: &fdo::Error) -> bool {
    let name = err.name();
    ["TimedOut", "Timeout", "NoReply"].iter().any(|late| name.ends_with(&format!(".{late}")))
}

/// Why nobody is on the bus who could be asked: there is no daemon, as long as systemd does not say otherwise.
pub async fn absent(bus: &Bus) -> Failure {
    Unit::look(bus).await.absent(bus.user)
}

/// Whether systemd has, or tries to have, a daemon that is not on the bus now: one that begins, one that is to begin again after a failure,
/// or one that has lost the bus.
pub async fn goes_on(bus: &Bus) -> bool {
    loop {
        let unit = Unit::look(bus).await;
        if unit.active != "deactivating" {
            return unit.runs() || unit.active == "activating";
        }
        // Only its end says whether another follows.
        tokio::time::sleep(LOOK).await;
    }
}

/// The daemon's unit, in systemd's words; empty ones without systemd.
#[derive(Debug, Default)]
struct Unit {
    active: String,
    sub: String,
    /// What the daemon itself says.
    text: String,
}

impl Unit {
    async fn look(bus: &Bus) -> Self {
        let look = async {
            let manager = "org.freedesktop.systemd1.Manager";
            let manager = object(bus, "/org/freedesktop/systemd1", manager).await?;
            let unit: OwnedObjectPath = manager.call("GetUnit", &("hostler.service",)).await?;
            let unit = object(bus, unit.as_str(), "org.freedesktop.DBus.Properties").await?;
            let get = async |kind: &str, property: &str| {
                let kind = format!("org.freedesktop.systemd1.{kind}");
                let value: OwnedVariant = unit.call("Get", &(kind, property)).await?;
                String::try_from(value)
            };
            Ok::<_, zbus::Error>(Self {
                active: get("Unit", "ActiveState").await?,
                sub: get("Unit", "SubState").await?,
                text: get("Service", "StatusText").await.unwrap_or_default(),
            })
        };
        look.await.unwrap_or_default()
    }

    /// It begins, and will not only try again after a failure.
    fn begins(&self) -> bool {
        self.active == "activating" && !self.sub.starts_with("auto-restart")
    }

    fn runs(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading")
    }

    fn absent(&self, user: bool) -> Failure {
        let known = not_running(user);
        let (own, ctl) = if user { ("your own", "systemctl --user") } else { ("the", "systemctl") };
        let (message, fix) = if self.begins() {
            let text =
                if self.text.is_empty() { String::new() } else { format!(": {}", self.text) };
            let fix = format!("hostler wait returns when it has begun; {ctl} status hostler");
            (format!("{own} daemon is starting{text}"), fix)
        } else if self.runs() {
            let own_too = if user { "--user " } else { "" };
            let dbus = if user { "" } else { "systemctl status dbus; " };
            let fix = format!(
                "{dbus}it comes back to the bus within some seconds; journalctl {own_too}-u hostler has why it went"
            );
            (format!("{own} daemon runs, but is not on the bus"), fix)
        } else {
            return known;
        };
        Failure::new(known.exit, message).fix(fix)
    }
}

async fn object(bus: &Bus, path: &str, interface: &'static str) -> zbus::Result<Proxy<'static>> {
    Proxy::new(&bus.connection, SYSTEMD, path.to_owned(), interface).await
}

/// The bus, or systemd for it, could not start the daemon.
pub fn not_started(kind: &str, message: &str, user: bool) -> Failure {
    let ctl = if user { "systemctl --user" } else { "systemctl" };
    let known = not_running(user);
    let message = format!("{}, and cannot be started ({message})", known.message);
    let failure = Failure::new(Exit::NotRunning, message);
    if kind.ends_with("Masked") {
        return failure.fix(format!("{ctl} unmask hostler, then {ctl} start hostler"));
    }
    failure.fix(known.fix)
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "the macro of D-Bus interfaces names HashMap")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::cli::bus::tests::Private;

    /// A unit of systemd's, in a state.
    struct Unit(Arc<Mutex<(&'static str, &'static str)>>);

    #[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
    impl Unit {
        #[zbus(property)]
        fn active_state(&self) -> String {
            self.0.lock().unwrap().0.to_owned()
        }

        #[zbus(property)]
        fn sub_state(&self) -> String {
            self.0.lock().unwrap().1.to_owned()
        }
    }

    struct Service;

    #[zbus::interface(name = "org.freedesktop.systemd1.Service")]
    impl Service {
        #[zbus(property)]
        fn status_text(&self) -> String {
            "Waiting for gpu_memory".to_owned()
        }
    }

    struct Units;

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl Units {
        fn get_unit(&self, _name: String) -> OwnedObjectPath {
            OwnedObjectPath::try_from("/unit").unwrap()
        }
    }

    struct Daemon;

    #[zbus::interface(name = "org.hostler1.Manager")]
    impl Daemon {
        fn load(&self, _name: String) -> OwnedObjectPath {
            OwnedObjectPath::try_from("/org/hostler1/job/1").unwrap()
        }
    }

    type States = Arc<Mutex<(&'static str, &'static str)>>;

    /// A bus that gives a service 300 ms, and one that takes no name by itself; systemd beside it.
    async fn slow() -> (Private, zbus::Connection, States) {
        let private = Private::open("exec sleep 5 >/dev/null 2>&1", 300).await;
        let states = States::new(Mutex::new(("activating", "start")));
        let systemd = zbus::connection::Builder::address(private.address.as_str())
            .serve_at("/org/freedesktop/systemd1", Units)
            .serve_at("/unit", Unit(states.clone()))
            .serve_at("/unit", Service)
            .name(SYSTEMD)
            .build()
            .await
            .unwrap();
        (private, systemd, states)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_daemon_is_waited_for_longer_than_the_bus_does() {
        let (private, _systemd, _states) = slow().await;
        let address = private.address.clone();
        let begun = private.bus.begin("Load", &("m",));
        let daemon = async {
            // The bus has given up by then, and somebody asks systemd on.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            zbus::connection::Builder::address(address.as_str())
                .serve_at("/org/hostler1", Daemon)
                .name(SERVICE)
                .build()
                .await
                .unwrap()
        };
        let (begun, _daemon) = tokio::join!(begun, daemon);
        assert_eq!(begun.unwrap().as_str(), "/org/hostler1/job/1");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_cannot_begin_does_not_run() {
        let (private, _systemd, states) = slow().await;
        let begun = private.bus.begin("Load", &("m",));
        let fails = async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            *states.lock().unwrap() = ("activating", "auto-restart");
        };
        let (begun, ()) = tokio::join!(begun, fails);
        assert_eq!(begun.unwrap_err(), not_running(true));
        assert!(goes_on(&private.bus).await, "and is tried again");
        *states.lock().unwrap() = ("failed", "failed");
        assert!(!goes_on(&private.bus).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_begins_or_has_lost_the_bus_is_not_said_to_be_down() {
        let (private, _systemd, states) = slow().await;
        let said = absent(&private.bus).await;
        assert_eq!(said.message, "your own daemon is starting: Waiting for gpu_memory");
        assert!(said.exit == Exit::NotRunning && said.fix.contains("hostler wait"), "{said}");
        *states.lock().unwrap() = ("active", "running");
        let said = absent(&private.bus).await;
        assert_eq!(said.message, "your own daemon runs, but is not on the bus");
        assert!(!said.fix.contains("start hostler"), "{said}");
        // Nor to whoever would have it started.
        assert_eq!(private.bus.begin("Load", &("m",)).await.unwrap_err(), said);
        for dead in [("activating", "auto-restart"), ("failed", "failed"), ("deactivating", "stop")]
        {
            *states.lock().unwrap() = dead;
            assert_eq!(absent(&private.bus).await, not_running(true));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_systemd_the_bus_is_right() {
        let private = Private::open("exec sleep 5 >/dev/null 2>&1", 300).await;
        let begun = private.bus.begin("Load", &("m",)).await;
        assert_eq!(begun.unwrap_err(), not_running(true));
    }
}
