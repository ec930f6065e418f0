//! What somebody who adds a model points at. PURE.

use std::path::PathBuf;

use crate::types::ImageRef;

/// Where a model's weights are to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or directory of this host.
    Path(PathBuf),
    /// A repository of the hub: `org/name`, and what follows a colon: which of its files.
    Hub {
        /// `org/name`.
        repo: String,
        /// A part of the file's name, such as `Q4_K_M`.
        pattern: Option<String>,
    },
    /// An OCI image that holds the weights.
    Image(ImageRef),
}

impl Source {
    /// Tells them apart by their form: paths begin with `/`, `./`, `../` or `~/`; images name a registry with a dot or a port, or
    /// `localhost`, before the first slash; what is left of the form `org/name` is the hub's. `hub:` and `oci:` in front decide
    /// it.
    ///
    /// # Errors
    /// With the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("oci:") {
            return image(rest.trim_start_matches("//"));
        }
        if let Some(rest) = text.strip_prefix("hub:").or_else(|| text.strip_prefix("hf:")) {
            return hub(rest);
        }
        if ["/", "./", "../", "~/"].iter().any(|p| text.starts_with(p)) || text == "." {
            return path(text);
        }
        let registry = text.split_once('/').map_or("", |(first, _)| first);
        if registry == "localhost" || registry.contains(['.', ':']) {
            return image(text);
        }
        hub(text)
    }
}

fn path(text: &str) -> Result<Source, String> {
    if text.starts_with("~/") {
        return Err("the shell knows ~, this program does not; write the whole path".to_owned());
    }
    Ok(Source::Path(PathBuf::from(text)))
}

fn image(text: &str) -> Result<Source, String> {
    ImageRef::parse(text).map(Source::Image).map_err(|why| format!("an image {why}"))
}

fn hub(text: &str) -> Result<Source, String> {
    let (repo, pattern) = match text.split_once(':') {
        Some((repo, pattern)) => (repo, Some(pattern)),
        None => (text, None),
    };
    let word = |part: &str| {
        let ok = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && part.len() <= 96 && part.chars().all(ok) && !part.starts_with('.')
    };
    let parts: Vec<&str> = repo.split('/').collect();
    if parts.len() != 2 || !parts.iter().all(|part| word(part)) {
        return Err(
            "is no path (/…, ./…), no image (registry.example/name:tag) and no hub ID (org/name)"
                .to_owned(),
        );
    }
    if pattern.is_some_and(|p| p.is_empty() || p.contains('/')) {
        return Err("what follows the colon is a part of a file's name, such as Q4_K_M".to_owned());
    }
    Ok(Source::Hub { repo: repo.to_owned(), pattern: pattern.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(text).unwrap()
    }

    #[test]
    fn forms() {
        let hub = |repo: &str, pattern: Option<&str>| Source::Hub {
            repo: repo.into(),
            pattern: pattern.map(str::to_owned),
        };
        assert_eq!(parse("/srv/m.gguf"), Source::Path("/srv/m.gguf".into()));
        assert_eq!(parse("./m"), Source::Path("./m".into()));
        assert_eq!(parse("org/model-1.5B"), hub("org/model-1.5B", None));
        assert_eq!(parse("org/m:Q4_K_M"), hub("org/m", Some("Q4_K_M")));
        assert_eq!(parse("hf:org/m"), hub("org/m", None));
        for image in ["localhost/models/m:1", "registry.example/m:1", "host:5000/m"] {
            assert_eq!(parse(image), Source::Image(ImageRef::parse(image).unwrap()), "{image}");
        }
        assert_eq!(parse("oci:org/m"), Source::Image(ImageRef::parse("org/m").unwrap()));
        for bad in
            ["", "m", "a/b/c", "org/", "org/..", "org/m:", "-x/y z", "~/m", "oci:", "org/m:a/b"]
        {
            assert!(Source::parse(bad).is_err(), "{bad:?}");
        }
    }
}
