//! The interfaces: what is served is what `units/dbus-1/interfaces` ships. `UPDATE=1` writes what is served.

use std::fs;
use std::path::PathBuf;

use crate::house::{House, status};

/// Interfaces with an object that serves each.
const SERVED: [(&str, &str); 4] = [
    ("org.hostler1.Manager", "/org/hostler1"),
    ("org.hostler1.Model", "/org/hostler1/model/org_2fm"),
    ("org.hostler1.Gpu", "/org/hostler1/gpu/GPU_2d1"),
    ("org.hostler1.Job", "/org/hostler1/job/1"),
];

const HEAD: &str =
    "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"
 \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">
<!-- As served; written by `UPDATE=1 cargo nextest run --test bus surface`. -->
<node>
";

/// An interface's part of an introspection.
fn part<'a>(xml: &'a str, interface: &str) -> &'a str {
    let start = xml.find(&format!("<interface name=\"{interface}\">")).unwrap();
    let end = xml[start..].find("</interface>").unwrap();
    let line = xml[..start].rfind('\n').map_or(0, |at| at + 1);
    &xml[line..start + end + "</interface>".len()]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_what_is_shipped() {
    let house = House::open(status()).await;
    house.manager(&["Load", "sa{sv}", "org/m", "0"]).await.unwrap();
    let client = house.client().await;
    for (interface, object) in SERVED {
        let introspectable = Some("org.freedesktop.DBus.Introspectable");
        let call =
            client.call_method(Some("org.hostler1"), object, introspectable, "Introspect", &());
        let xml: String = call.await.unwrap().body().deserialize().unwrap();
        let served = format!("{HEAD}{}\n</node>\n", part(&xml, interface));
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("units/dbus-1/interfaces/{interface}.xml"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &served).unwrap();
        }
        let shipped = fs::read_to_string(&file).unwrap_or_default();
        let file = file.display();
        assert!(served == shipped, "{file} is not what is served; UPDATE=1 writes it:\n{served}");
    }
}

/// Whoever keeps what it was told, as most clients do, keeps it for good where a promised signal does not come.
#[test]
fn every_change_that_is_promised_is_said() {
    let read = |path: &str| {
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    };
    let (sync, jobs) = (read("src/control/sync.rs"), read("src/control/jobs.rs"));
    let mut promised = 0;
    for (interface, _) in SERVED {
        let xml = read(&format!("units/dbus-1/interfaces/{interface}.xml"));
        for property in xml.split("<property name=\"").skip(1) {
            let (name, rest) = property.split_once('"').unwrap();
            let (head, more) = rest.split_once('>').unwrap();
            // Without an annotation it is the value that is promised.
            let stale = match more.split("</property>").next().unwrap() {
                _ if head.ends_with('/') => false,
                more if more.contains("value=\"invalidates\"") => true,
                _ => continue,
            };
            let said = match (interface, stale) {
                ("org.hostler1.Job", _) => {
                    jobs.contains(&format!(".{}_changed(", name.to_lowercase()))
                }
                (_, true) => sync.contains(&format!("stale(\"{name}\"")),
                (_, false) => {
                    sync.contains(&format!("value(\"{name}\""))
                        || sync.contains(&format!("        \"{name}\": |"))
                }
            };
            assert!(said, "{interface}.{name} promises a signal that is never sent");
            promised += 1;
        }
    }
    assert!(promised > 20, "{promised}");
}

#[test]
fn the_status_has_its_schema() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/status.schema.json");
    let mut schema = serde_json::to_string_pretty(&hostler::control::document::schema()).unwrap();
    schema.push('\n');
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &schema).unwrap();
    }
    let shipped = fs::read_to_string(&file).unwrap_or_default();
    assert!(schema == shipped, "{} is not what is served; UPDATE=1 writes it", file.display());
}
