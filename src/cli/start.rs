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
                let begun = begins;
                begins = is_beginning(bus).await;
                // It may have begun meanwhile.
                if !begins && (begun || late) {
                    return if bus.is_owned().await? { Ok(()) } else { Err(not_running(bus.user)) };
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

/// Whether systemd says that the unit begins, and not that it will try again after a failure. Without systemd nobody says so.
async fn is_beginning(bus: &Bus) -> bool {
    let states = async {
        let manager = object(bus, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        let unit: OwnedObjectPath = manager.await?.call("GetUnit", &("hostler.service",)).await?;
        let unit = object(bus, unit.as_str(), "org.freedesktop.DBus.Properties").await?;
        let mut states = Vec::new();
        for property in ["ActiveState", "SubState"] {
            let value: OwnedVariant =
                unit.call("Get", &("org.freedesktop.systemd1.Unit", property)).await?;
            states.push(String::try_from(value)?);
        }
        Ok::<_, zbus::Error>(states)
    };
    let states = states.await.unwrap_or_default();
    matches!(states.as_slice(), [active, sub] if active == "activating" && !sub.starts_with("auto-restart"))
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
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_systemd_the_bus_is_right() {
        let private = Private::open("exec sleep 5 >/dev/null 2>&1", 300).await;
        let begun = private.bus.begin("Load", &("m",)).await;
        assert_eq!(begun.unwrap_err(), not_running(true));
    }
}
