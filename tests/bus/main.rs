//! Control on a real bus: a private dbus-daemon, the real objects, a scripted supervisor behind them, and the tools that an
//! administrator has (`busctl`, `gdbus`) as clients. What systemd, polkit and the real supervisor make of it is tested on the real host.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod calls;
mod cli;
mod elsewhere;
mod files;
mod gate;
mod house;
mod jobs;
mod properties;
mod schema;
mod shapes;
mod signals;
mod surface;
mod unit;
