//! Who listens on the endpoint's ports.
//!
//! Invariant: nothing is connected to and nothing stays bound: the kernel's tables say who listens, and a port that nobody
//! listens on is free.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::Outcome;

/// Programs whose listening is right: systemd holds the sockets, or hands them to the daemon.
const OURS: [&str; 3] = ["systemd", "hostlerd", "init"];
/// TCP_LISTEN in the kernel's tables.
const LISTEN: &str = "0A";

/// One socket that listens.
#[derive(Debug, PartialEq, Eq)]
struct Listening {
    address: SocketAddr,
    inode: u64,
}

pub(super) fn judge(addresses: &[SocketAddr]) -> (Outcome, String) {
    let mut listening = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => listening.extend(text.lines().filter_map(parse)),
            Err(error) if table.ends_with("tcp") => {
                return (Outcome::Warn, format!("{table}: {error}"));
            }
            Err(_) => {}
        }
    }
    // Where the kernel has no IPv6 there is no such file.
    let six = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let (mut worst, mut words) = (Outcome::Pass, Vec::new());
    for address in addresses {
        let Some(socket) = listening.iter().find(|l| covers(&l.address, address)) else {
            words.push(if exists(address, &six) {
                format!("{address} is free")
            } else {
                format!("{address} is no address here: this host has no IPv6")
            });
            continue;
        };
        let holders = holders(Path::new("/proc"), socket.inode);
        let (outcome, word) = if holders.is_empty() {
            (Outcome::Warn, "is taken by a process that only root can see".to_owned())
        } else if holders.iter().any(|h| OURS.contains(&h.as_str())) {
            (Outcome::Pass, "is listened on by systemd or the daemon".to_owned())
        } else {
            let names: Vec<&str> = holders.iter().map(String::as_str).collect();
            (Outcome::Fail, format!("is taken by {}", names.join(", ")))
        };
        worst = worst.max(outcome);
        words.push(format!("{address} {word}"));
    }
    (worst, words.join("; "))
}

/// Whether the host has the address, as far as that is about IPv6 being there at all; `interfaces` is `/proc/net/if_inet6`.
fn exists(address: &SocketAddr, interfaces: &str) -> bool {
    let loopback = format!("{:032x}", u128::from(Ipv6Addr::LOCALHOST));
    let has = |ip: &str| interfaces.lines().any(|line| line.split(' ').next() == Some(ip));
    address.ip() != IpAddr::V6(Ipv6Addr::LOCALHOST) || has(&loopback)
}

/// Whether who listens on `held` keeps others from `wanted`.
fn covers(held: &SocketAddr, wanted: &SocketAddr) -> bool {
    held.port() == wanted.port()
        && (held.ip() == wanted.ip()
            || (held.ip().is_unspecified() && (held.is_ipv6() || wanted.is_ipv4())))
}

/// A line of the kernel's tables: `0: 0100007F:2207 00000000:0000 0A … inode …`.
fn parse(line: &str) -> Option<Listening> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(3) != Some(&LISTEN) {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of four bytes is a number in the machine's own order.
    let groups: Option<Vec<[u8; 4]>> = (0..ip.len() / 8)
        .map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    let ip = match groups?.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [a, b, c, d] => {
            let mut bytes = [0_u8; 16];
            for (to, from) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                to.copy_from_slice(from);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(Listening { address: SocketAddr::new(ip, port), inode: fields.get(9)?.parse().ok()? })
}

/// Names of the processes that hold a socket, as far as this process may see them.
fn holders(proc: &Path, inode: u64) -> BTreeSet<String> {
    let wanted = format!("socket:[{inode}]");
    let mut names = BTreeSet::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()));
        if holds && let Ok(name) = fs::read_to_string(process.path().join("comm")) {
            names.insert(name.trim().to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines() {
        let line = "   0: 0100007F:2207 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        let parsed = parse(line).unwrap();
        assert_eq!(parsed, Listening { address: "127.0.0.1:8711".parse().unwrap(), inode: 4242 });
        assert_eq!(parse(&line.replace(" 0A ", " 01 ")), None);
        let six = "1: 00000000000000000000000001000000:2207 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1";
        assert_eq!(parse(six).unwrap().address, "[::1]:8711".parse().unwrap());
    }

    #[test]
    fn a_listener_is_found_with_its_name() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (outcome, text) = judge(&[address]);
        assert_eq!(outcome, Outcome::Fail, "{text}");
        drop(socket);
        assert_eq!(judge(&[address]), (Outcome::Pass, format!("{address} is free")));
    }

    #[test]
    fn ipv6_may_be_switched_off() {
        let lo = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let (six, four) = ("[::1]:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        assert!(exists(&six, lo) && exists(&four, lo) && exists(&four, ""));
        assert!(!exists(&six, ""));
        assert!(!exists(&six, "fe80000000000000000000000000000a 02 40 20 80     eth0\n"));
    }

    #[test]
    fn an_address_for_all_covers_each() {
        let covers = |a: &str, b: &str| covers(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(covers("0.0.0.0:1", "127.0.0.1:1"));
        assert!(covers("[::]:1", "127.0.0.1:1"));
        assert!(!covers("0.0.0.0:1", "[::1]:1"));
        assert!(!covers("127.0.0.1:2", "127.0.0.1:1"));
    }
}
