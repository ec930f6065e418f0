//! The files that the rules are about.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file of the tree.
#[derive(Debug)]
pub struct File {
    /// From the root, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// The root of the tree.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file, in the order of the paths; what git or cargo made is left out.
pub fn files() -> Vec<File> {
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn walk(dir: &Path, found: &mut Vec<File>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let kind = path.symlink_metadata().unwrap().file_type();
        if ["target", ".git"].contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            walk(&path, found);
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push(File { path, text });
        }
    }
}

/// The lines of a Rust file that are shipped, numbered from 1: without what is for tests alone, which is the module that closes most files
/// and a declaration or a helper in some.
pub fn shipped(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut tests = false;
    text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(move |(_, line)| {
        if *line == "#[cfg(test)]" {
            tests = true;
            return false;
        }
        // An item ends with a line of its own depth.
        let ends = !line.starts_with(' ') && (line.ends_with(';') || line.ends_with('}'));
        let skipped = tests;
        tests &= !ends;
        !skipped
    })
}

#[test]
fn what_is_for_tests_alone_is_not_shipped() {
    let text = "mod a;\n#[cfg(test)]\nmod tests;\nfn b() {\n}\n#[cfg(test)]\n#[allow(x)]\nfn c() {\n    d();\n}\nfn e() {}\n\
                #[cfg(test)]\nmod tests {\n    use f;\n}\n";
    let lines: Vec<_> = shipped(text).map(|(at, _)| at).collect();
    assert_eq!(lines, [1, 4, 5, 11]);
}
