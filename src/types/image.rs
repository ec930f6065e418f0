//! A reference to a container image.

use std::fmt;

use serde::Serialize;

/// docker's own registry. In two parts, because the tree names no host of a registry; this one is what people mean by a name without one.
const DOCKER: [&str; 2] = ["docker", ".io"];

/// A container image reference as podman takes it: never empty, no white space, does not start with `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ImageRef(String);

impl ImageRef {
    /// Checks a reference's form; whether the image exists is podman's to say.
    ///
    /// # Errors
    /// With the reason, as a lower-case fragment.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.len() > 512 {
            return Err("has at most 512 bytes");
        }
        if text.starts_with('-') {
            return Err("must not start with '-'");
        }
        let ok = |c: char| c.is_ascii_alphanumeric() || "._-:/@+".contains(c);
        if !text.chars().all(ok) {
            return Err("must hold only letters, digits and . _ - : / @ +");
        }
        if text.contains("://") {
            return Err("is written without what podman takes it by (docker://)");
        }
        if has_capitals(text) {
            return Err("has no capital letters but in its tag");
        }
        Ok(Self(text.to_owned()))
    }

    /// The reference as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The registry's host in front, where one is named.
    #[must_use]
    pub fn registry(&self) -> Option<&str> {
        let (first, _) = self.0.split_once('/')?;
        (first == "localhost" || first.contains(['.', ':'])).then_some(first)
    }

    /// The same with a registry in front: where none is named the one that docker takes it for.
    #[must_use]
    pub fn whole(&self) -> String {
        match (self.registry(), self.0.contains('/')) {
            (Some(_), _) => self.0.clone(),
            (None, true) => format!("{}/{}", DOCKER.concat(), self.0),
            (None, false) => format!("{}/library/{}", DOCKER.concat(), self.0),
        }
    }

    /// What is doubtful about it, and what to write in its place; `None`: nothing.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        self.registry().is_none().then(|| {
            format!(
                "the image {self} is named without a registry, which podman fetches from nowhere, or from where nobody expects it; write it whole, as {}",
                self.whole()
            )
        })
    }

    /// Whether it names the local storage only (`localhost/…`), which is never pulled.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.0.starts_with("localhost/")
    }
}

/// Whether a reference's name has, where no registry takes them; its host and its tag may.
fn has_capitals(text: &str) -> bool {
    let name = text.split('@').next().unwrap_or_default();
    let (host, path) = name.split_once('/').unwrap_or(("", name));
    let path = if host.contains(['.', ':']) { path } else { name };
    let last = path.rfind('/').map_or(0, |at| at + 1);
    let tag = path.get(last..).and_then(|last| last.find(':')).map_or(path.len(), |at| last + at);
    path.get(..tag).unwrap_or_default().bytes().any(|b| b.is_ascii_uppercase())
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references() {
        for good in ["localhost/a:1", "quay.example/x/y@sha256:00", "Host.example:5000/a:V1", "a"] {
            assert_eq!(ImageRef::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-v", "a b", "a\n", "é", "docker://a", "x.example/Org/a:1", "Org/a"] {
            assert!(ImageRef::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ImageRef::parse("localhost/x").unwrap().is_local());
        assert!(!ImageRef::parse("example/x").unwrap().is_local());
    }

    #[test]
    fn a_name_without_a_registry_is_told_from_one_with() {
        let of = |text: &str| ImageRef::parse(text).unwrap();
        let docker = DOCKER.concat();
        for (short, whole) in [
            ("org/engine:v1", format!("{docker}/org/engine:v1")),
            ("engine:v1", format!("{docker}/library/engine:v1")),
        ] {
            assert_eq!((of(short).registry(), of(short).whole()), (None, whole.clone()));
            assert!(of(short).doubt().unwrap().ends_with(&whole));
        }
        for (text, host) in [
            ("localhost/x:1", "localhost"),
            ("host.example/org/x", "host.example"),
            ("host:5000/x@sha256:00", "host:5000"),
        ] {
            assert_eq!((of(text).registry(), of(text).whole()), (Some(host), text.to_owned()));
            assert_eq!(of(text).doubt(), None);
        }
    }
}
