//! Units as people have them, and what becomes of each of their settings.

use super::*;
use crate::config::{Defaults, Source};

fn check(imported: &Imported) -> String {
    let settings = Source::settings("/h.toml", "[gpu]\nbackend = \"nvml\"\n");
    let model = Source::model("/m.toml", imported.definition.text(Path::new("/m.toml")));
    config::parse(&[settings, model], &Defaults::system())
        .map_or_else(|errors| errors.to_string(), |_| "valid".to_owned())
}

fn whole(imported: &Imported) -> String {
    let definition = &imported.definition;
    let mut text = definition.text(Path::new(&crate::cli::add::file::file_name(&definition.name)));
    for left in &imported.left {
        text += &format!("{}: {}: {}\n", left.line, left.setting, left.why);
    }
    text
}

#[test]
fn a_llama_server() {
    let text = include_str!("../../tests/llama.container");
    let imported = import(text, "llama", None).unwrap();
    assert_eq!(check(&imported), "valid");
    crate::cli::tests::compare("llama.expected", &whole(&imported));
}

#[test]
fn a_vllm() {
    let text = include_str!("../../tests/vllm.container");
    let imported = import(text, "vllm", None).unwrap();
    assert_eq!(check(&imported), "valid");
    assert!(!whole(&imported).contains("sk-very-secret"), "a token was shown");
    crate::cli::tests::compare("vllm.expected", &whole(&imported));
}

#[test]
fn what_cannot_become_a_model_says_why() {
    let error = |text| import(text, "x", None).unwrap_err();
    assert!(error("[Container]\nExec=x\n").contains("no Image="));
    assert!(error("[Container]\nImage=example/x\n").contains("--engine"));
    let fetches = "[Container]\nImage=example/vllm\nExec=--model org/name\n";
    assert!(error(fetches).contains("hostler add org/name"));
}

#[test]
fn an_engines_own_variables_are_keys_or_left() {
    let text = "[Container]\nImage=example/llama.cpp\nVolume=/srv/models:/models:ro\n\
                Environment=LLAMA_ARG_MODEL=/models/a.gguf LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_PORT=8080\n\
                Environment=LLAMA_ARG_N_PARALLEL=2 LLAMA_ARG_CACHE_TYPE_K=q8_0\nExec=-c 8192\n";
    let imported = import(text, "x", None).unwrap();
    assert_eq!(check(&imported), "valid");
    let definition = &imported.definition;
    let (path, number) = (r#"{ path = "/srv/models/a.gguf" }"#, |n: i64| Value::from(n));
    let said = definition.lines();
    assert!(said.contains(&format!("weights = {path}\n")), "{said}");
    assert!(said.contains("env = { LLAMA_ARG_CACHE_TYPE_K = \"q8_0\" }\n"), "{said}");
    assert_eq!(definition.get("context"), Some(&number(8192)), "a flag is above a variable");
    assert_eq!(definition.get("parallel"), Some(&number(2)));
    let left: Vec<(usize, &str)> =
        imported.left.iter().map(|l| (l.line, l.setting.as_str())).collect();
    assert_eq!(left, [(4, "Environment=LLAMA_ARG_PORT=…")]);
}

#[test]
fn nothing_is_lost() {
    let text = "[Container]\nImage=example/vllm:1\nPodmanArgs=--x\nNew=1\n[Kube]\nYaml=y\n[Unit]\nAfter=a\n";
    let imported = import(text, "x", None).unwrap();
    let lines: Vec<usize> = imported.left.iter().map(|left| left.line).collect();
    assert_eq!(lines, [3, 4, 6, 8]);
}
