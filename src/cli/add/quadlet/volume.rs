//! A unit's volumes. PURE.

use std::path::{Path, PathBuf};

use crate::cli::add::unit_file::words;
use crate::cli::add::volumes::Volume;

/// `Volume=HOST:INSIDE:OPTIONS`.
pub fn volume(value: &str, home: Option<&Path>) -> Volume {
    // A specifier in front of the colon does not hide what is behind it.
    let raw = || value.split(':').nth(1).map(|inside| inside.trim_matches('"').to_owned());
    let (parts, wrong): (Vec<String>, _) = match words(value, home) {
        Ok(words) => {
            (words.iter().flat_map(|word| word.split(':')).map(str::to_owned).collect(), None)
        }
        Err(why) => (std::iter::once(String::new()).chain(raw()).collect(), Some(why)),
    };
    let (host, inside) = match parts.as_slice() {
        [host, inside, ..] => (Some(host), inside.as_str()),
        [inside] => (None, inside.as_str()),
        [] => (None, ""),
    };
    let host = host.filter(|host| host.starts_with('/')).map(PathBuf::from);
    let not =
        || "is a named or anonymous volume; Hostler mounts paths of the host, or images".to_owned();
    Volume {
        inside: place(inside),
        host: wrong.map_or_else(|| host.ok_or_else(not), Err),
        said: format!("Volume={value}"),
    }
}

/// `Mount=type=bind,source=HOST,target=INSIDE`.
pub fn mount(value: &str, home: Option<&Path>) -> Volume {
    let (text, wrong) = match words(value, home) {
        Ok(words) => (words.concat(), None),
        Err(why) => (value.to_owned(), Some(why)),
    };
    let part = |names: &[&str]| {
        let mut parts = text.split(',').filter_map(|part| part.split_once('='));
        parts.find(|(name, _)| names.contains(&name.trim())).map(|(_, value)| value.trim())
    };
    let bind = part(&["type"]) == Some("bind");
    let source = part(&["source", "src"]).filter(|path| bind && path.starts_with('/'));
    let not =
        || "is no directory of the host; an engine gets its weights, /tmp and /dev/shm".to_owned();
    Volume {
        inside: place(part(&["target", "destination", "dst"]).unwrap_or_default()),
        host: wrong.map_or_else(|| source.map(PathBuf::from).ok_or_else(not), Err),
        said: format!("Mount={value}"),
    }
}

/// Where the container has a volume; anywhere, if that is not known.
fn place(inside: &str) -> PathBuf {
    if inside.starts_with('/') && !inside.contains('%') { inside.into() } else { "/".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_that_are_read_and_those_that_are_not() {
        let home = Some(Path::new("/home/me"));
        // What stands there, whose home is known, where the container has it, where the host has it or why that is not known.
        let table = [
            ("Volume=/srv/m:/m:ro,z", None, "/m", Ok("/srv/m")),
            ("Volume=%h/m:/m", home, "/m", Ok("/home/me/m")),
            ("Volume=%h/m:/m:ro", None, "/m", Err("%h")),
            ("Volume=\"%h/m:/m\"", None, "/m", Err("%h")),
            ("Volume=/srv/%i:/m/%i", home, "/", Err("%i")),
            ("Volume=m.volume:/m", None, "/m", Err("named")),
            ("Volume=/m", None, "/m", Err("anonymous")),
            ("Volume=", None, "/", Err("anonymous")),
            ("Mount=type=bind,source=/srv/m,target=/m,ro=true", None, "/m", Ok("/srv/m")),
            ("Mount=type=bind,src=%h/m,dst=/m", home, "/m", Ok("/home/me/m")),
            ("Mount=type=bind,src=%h/m,dst=/m", None, "/m", Err("%h")),
            ("Mount=type=volume,source=/srv/m,destination=/m", None, "/m", Err("no directory")),
            ("Mount=type=tmpfs", None, "/", Err("no directory")),
        ];
        for (said, home, inside, host) in table {
            let (key, value) = said.split_once('=').unwrap();
            let got = if key == "Mount" { mount(value, home) } else { volume(value, home) };
            assert_eq!((got.inside.as_path(), got.said.as_str()), (Path::new(inside), said));
            match (got.host, host) {
                (Ok(got), Ok(host)) => assert_eq!(got, Path::new(host), "{said}"),
                (Err(why), Err(word)) => assert!(why.contains(word), "{said}: {why}"),
                (got, _) => panic!("{said}: {got:?}"),
            }
        }
    }
}
