//! Units as people have them, and what becomes of each of their settings.

use super::*;
use crate::config::{Defaults, Source};

fn import(text: &str, stem: &str, engine: Option<EngineKind>) -> Result<Imported, String> {
    super::import(text, &Told { stem, engine, ..Told::default() })
}

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
    let error = |text: &str| import(text, "x", None).unwrap_err();
    assert!(error("[Container]\nExec=x\n").contains("no Image="));
    assert!(error("[Container]\nImage=example/x\n").contains("--engine"));
    let ollama =
        error("[Container]\nImage=registry.example/ollama/ollama\nVolume=o:/root/.ollama\n");
    assert!(ollama.contains("Ollama") && ollama.contains("docs/coming-from.md"), "{ollama}");
    assert!(error("[Container]\nImage=example/vllm\nExec=sh -c x\n").contains("a shell"));
    let fetches = "[Container]\nImage=example/vllm\nExec=--model org/name\n";
    assert!(error(fetches).contains("hostler add org/name"));
    let llama = |lines: &str| error(&format!("[Container]\nImage=example/llama.cpp\n{lines}\n"));
    for (lines, word) in [
        ("Volume=%h/m:/m\nExec=-m /m/a.gguf", "in Volume=%h/m:/m, which holds the specifier %h"),
        ("Volume=m.volume:/m\nExec=-m /m/a.gguf", "in Volume=m.volume:/m, which is a named"),
        (
            "Mount=type=volume,source=m,target=/m\nEnvironment=LLAMA_ARG_MODEL=/m/a.gguf",
            "in Mount=",
        ),
        ("Volume=/srv/%i:/%i\nExec=-m /m/a.gguf", "holds the specifier %i"),
        ("Exec=-m /m/%i.gguf", "has an Exec= that holds the specifier %i"),
        ("Image=llama.image", "Image=llama.image that names another unit"),
    ] {
        assert!(llama(lines).contains(word), "{lines}: {}", llama(lines));
    }
}

#[test]
fn what_is_told_is_above_the_unit() {
    let text = "[Container]\nImage=llama.image\nContainerName=c\nVolume=%h/m:/m\nExec=-m /m/a.gguf --alias a\n";
    let unit = Path::new("/home/me/.config/containers/systemd/apps/llama.container");
    let told = Told {
        name: Some("n"),
        image: Some("example/llama.cpp:1"),
        home: home(unit),
        ..Told::default()
    };
    let imported = super::import(text, &told).unwrap();
    assert_eq!(check(&imported), "valid");
    assert_eq!(
        whole(&imported),
        "engine = \"llamacpp\"\nimage = \"example/llama.cpp:1\"\n\
         weights = { path = \"/home/me/m/a.gguf\" }\naliases = [\"a\"]\n"
    );
    assert_eq!(home(Path::new("/etc/containers/systemd/llama.container")), None);
}

#[test]
fn what_clients_call_it_stays_a_name() {
    let unit = |name: &str, exec: &str| {
        let text = format!("[Container]\nImage=example/vllm\n{name}\nExec=--model /m {exec}\n");
        let imported = import(&text, "stem", None).unwrap();
        let definition = &imported.definition;
        let names = [vec![definition.name.clone()], definition.texts("aliases")].concat().join(" ");
        (names, imported.left.len())
    };
    let served = "--served-model-name org/a b c";
    assert_eq!(unit("ContainerName=c", served), ("c org/a b".to_owned(), 0));
    assert_eq!(unit("", served), ("org/a b c".to_owned(), 0));
    assert_eq!(unit("", ""), ("stem".to_owned(), 0));
    assert_eq!(unit("ContainerName=c", "--served-model-name /m"), ("c".to_owned(), 1));
}

#[test]
fn files_that_do_not_come_along_are_left() {
    let text = "[Container]\nImage=example/llama.cpp\nVolume=/srv/m:/m:ro\nVolume=/fast:/m/fast\n\
                Exec=-m /m/fast/vl.gguf --mmproj /m/mmproj.gguf --chat-template-file /m/t.jinja --jinja\n";
    let imported = import(text, "x", None).unwrap();
    let said = imported.definition.lines();
    assert!(
        said.contains(
            "weights = { path = \"/fast/vl.gguf\" }\nprojector = \"/srv/m/mmproj.gguf\"\nargs = [\"--jinja\"]"
        ),
        "{said}"
    );
    let left: Vec<(usize, &str)> =
        imported.left.iter().map(|l| (l.line, l.setting.as_str())).collect();
    assert_eq!(left, [(3, "Volume=/srv/m:/m:ro"), (5, "--chat-template-file")]);
    assert!(imported.left[1].why.contains("/m/t.jinja"));
    let text = text
        .replace("llama.cpp", "vllm")
        .replace("-m /m", "--model /m")
        .replace("/vl.gguf", "")
        .replace("/m/t", "/m/fast/t");
    let said = import(&text, "x", None).unwrap().definition.lines();
    assert!(said.contains("\"--chat-template-file\", \"/models/fast/t.jinja\""), "{said}");
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

#[test]
fn a_program_that_is_named_behind_the_image_is_said() {
    let module = "python3 -m vllm.entrypoints.openai.api_server";
    let text =
        format!("[Container]\nImage=example/vllm\nVolume=/srv/m:/m\nExec={module} --model /m\n");
    let imported = import(&text, "x", None).unwrap();
    assert_eq!(imported.definition.get("args"), None);
    assert_eq!((imported.left[0].line, imported.left[0].setting.as_str()), (4, module));
}

#[test]
fn devices_are_counted_where_each_is_named() {
    let count = |lines: &str, exec: &str| {
        let text = format!("[Container]\nImage=example/llama.cpp\n{lines}Exec={exec}\n");
        let imported = import(&text, "x", None).unwrap();
        assert_eq!(check(&imported), "valid");
        imported.definition.get("gpu_count").and_then(Value::as_integer)
    };
    let gpu = |name: &str| format!("AddDevice=nvidia.com/gpu={name}\n");
    let uuid = |n: u8| gpu(&format!("GPU-8a3f6c1e-0000-0000-0000-00000000000{n}"));
    assert_eq!(count(&(uuid(1) + &uuid(2)), ""), Some(2));
    assert_eq!(count(&(gpu("0") + &gpu("1") + &gpu("2")), "-ngl 9"), Some(3));
    assert_eq!(count(&uuid(1), ""), None);
    assert_eq!(count(&gpu("all"), ""), None);
    assert_eq!(count("", "-ts 1,1"), Some(2));
    assert_eq!(count("Environment=LLAMA_ARG_DEVICE=CUDA0,CUDA1\n", ""), Some(2));
}
