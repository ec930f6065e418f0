//! The software bill of materials: valid, the same twice, and of exactly what the binaries are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{output, tree};

type Crate = (String, String);

fn bill() -> String {
    output(Command::new(tree().join("packaging/sbom.py")).env_remove("SOURCE_DATE_EPOCH"))
}

fn components(bill: &str) -> BTreeMap<Crate, Value> {
    let bill: Value = serde_json::from_str(bill).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = bill["components"].as_array().unwrap().iter();
    all.map(|c| ((text(&c["name"]), text(&c["version"])), c.clone())).collect()
}

/// The crates whose files a binary of this test's profile names in its line tables: those that have code in it.
fn compiled(binary: &str) -> BTreeSet<Crate> {
    let bytes = std::fs::read(binary).unwrap();
    let mut found = BTreeSet::new();
    for at in memchr::memmem::find_iter(&bytes, b"/registry/src/") {
        let path: Vec<u8> =
            bytes[at..].iter().take(300).copied().take_while(|b| *b > b' ').collect();
        let path = String::from_utf8_lossy(&path).into_owned();
        // /registry/src/INDEX/NAME-VERSION/…
        let Some(folder) = path.split('/').nth(4) else { continue };
        let cut = folder.char_indices().find(|(i, c)| {
            *c == '-' && folder[i + 1..].starts_with(|next: char| next.is_ascii_digit())
        });
        if let Some((cut, _)) = cut {
            found.insert((folder[..cut].to_owned(), folder[cut + 1..].to_owned()));
        }
    }
    found
}

/// The crates that are linked into tests.
fn by_tests() -> BTreeSet<Crate> {
    let edges = ["--edges", "normal,dev,no-proc-macro", "--prefix", "none", "--format", "{p}"];
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--locked", "--package", "hostler"]).args(edges).current_dir(tree());
    let all = output(&mut command);
    let of = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
    };
    all.lines().filter_map(of).collect()
}

#[test]
fn it_is_valid_cyclonedx() {
    let test = "packages::it_is_valid_cyclonedx";
    let env = Command::new(tree().join("tests/clients/env.sh")).arg("cyclonedx").output().unwrap();
    let Some(dir) = testhost::fetched(test, "env.sh cyclonedx", &env) else { return };
    let mut judge = Command::new(format!("{dir}/bin/python"))
        .arg(tree().join("tests/packages/valid.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bill = bill();
    judge.stdin.take().unwrap().write_all(bill.as_bytes()).unwrap();
    let said = judge.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(said.status.success(), "{}{}", text(&said.stdout), text(&said.stderr));
    assert_eq!(text(&said.stdout).trim(), format!("{} components", components(&bill).len()));
}

#[test]
fn it_names_what_the_binaries_are_made_of_and_nothing_else() {
    let text = bill();
    assert_eq!(text, bill(), "the same tree gives another bill");
    let named = components(&text);

    // Whatever has code in the binaries is named.
    let mut inside = compiled(env!("CARGO_BIN_EXE_hostlerd"));
    inside.append(&mut compiled(env!("CARGO_BIN_EXE_hostler")));
    assert!(inside.len() > 80, "the look into the binaries sees little: {inside:?}");
    // A test's build turns on features that tests need; the few crates that come by them are not in a release.
    let tests = by_tests();
    let unnamed = |of: &&Crate| !named.contains_key(of) && !tests.contains(of);
    let missing: Vec<_> = inside.iter().filter(unnamed).collect();
    assert!(missing.is_empty(), "not in the bill: {missing:?}");

    // Whatever is named is locked, by the checksum that it is named with.
    let lock = std::fs::read_to_string(tree().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let locked = lock["package"].as_array().unwrap().iter().filter_map(|package| {
        let field = |name: &str| Some(package.get(name)?.as_str()?.to_owned());
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    let locked: BTreeMap<Crate, String> = locked.collect();
    for (of, component) in &named {
        assert_eq!(component["hashes"][0]["content"].as_str(), locked.get(of).map(String::as_str));
        assert!(component["licenses"][0]["expression"].is_string(), "{of:?} has no licence");
    }
    // What runs in the compiler or in tests only is not.
    for not in ["serde_derive", "zbus_macros", "proptest", "shuttle", "jsonschema", "testhost"] {
        assert!(!named.keys().any(|(name, _)| name == not), "{not} is in the bill");
        assert!(lock.to_string().contains(not), "{not} is not in Cargo.lock any more");
    }
}

#[test]
fn a_list_in_a_binary_that_lacks_a_crate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let names = components(&bill());
    // As `cargo auditable` embeds it: deflated JSON in a section of its own.
    let carrying = |skip: usize| {
        let packages: Vec<Value> = names
            .keys()
            .skip(skip)
            .map(|(name, version)| serde_json::json!({"name": name, "version": version}))
            .chain([serde_json::json!({"name": "hostler", "version": env!("CARGO_PKG_VERSION")})])
            .chain([serde_json::json!({"name": "cc", "version": "1.0.0", "kind": "build"})])
            .collect();
        let list = dir.path().join("list");
        std::fs::write(&list, serde_json::json!({"packages": packages}).to_string()).unwrap();
        let deflate = "import sys, zlib; p = sys.argv[1]; d = open(p, 'rb').read(); open(p, 'wb').write(zlib.compress(d))";
        output(Command::new("python3").args(["-c", deflate]).arg(&list));
        let binary = dir.path().join("binary");
        let section = format!("--add-section=.dep-v0={}", list.display());
        output(Command::new("objcopy").args([&section, "/bin/true"]).arg(&binary));
        let mut command = Command::new(tree().join("packaging/sbom.py"));
        command.arg("--compare").arg(binary).output().unwrap()
    };
    let whole = carrying(0);
    assert!(whole.status.success(), "{whole:?}");
    let lacking = carrying(1);
    let (first, _) = names.keys().next().unwrap();
    let said = String::from_utf8_lossy(&lacking.stderr).into_owned();
    assert!(!lacking.status.success() && said.contains(first), "{said}");
    // A binary that was built without.
    let none =
        Command::new(tree().join("packaging/sbom.py")).args(["--compare", "/bin/true"]).output();
    let said = String::from_utf8_lossy(&none.unwrap().stderr).into_owned();
    assert!(said.contains("carries no list"), "{said}");
}
