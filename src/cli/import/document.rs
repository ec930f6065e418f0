//! The text of the new `hostler.toml`. PURE.

use super::left::{Left, comments};
use super::model::Model;
use super::weights::Origin;
use crate::cli::add::file::{Definition, plain};

/// The whole file: what was not taken over stands as a comment beside what it belongs to.
pub fn document(backend: &str, level: Option<&str>, left: &[Left], models: &[Model]) -> String {
    let mut text = String::from(
        "# Made by `hostler import llama-swap`. What was not taken over is said where it would be.\n",
    );
    text += &comments(left.iter());
    text += &format!("\n[gpu]\nbackend = \"{backend}\"\n");
    if let Some(level) = level {
        text += &format!("\n[log]\nlevel = \"{level}\"\n");
    }
    for model in models {
        text.push('\n');
        match &model.made {
            Err(why) => {
                let line =
                    format!("Model {} is not here: it {}; {}.", model.id, why.why, why.instead);
                text += &format!("# {}\n", plain(&line));
            }
            Ok((definition, Origin::Here)) => {
                text += &comments(model.left.iter());
                text += &definition.table();
            }
            Ok((definition, Origin::Hub(id))) => {
                text += &format!("# {}\n", plain(&hub(&model.id)));
                text += &format!("#   {}\n", plain(&command(definition, id)));
                let rest = rest(definition);
                if !rest.is_empty() {
                    text += "# and then add to the file that it writes:\n";
                }
                for line in rest {
                    text += &format!("#   {}\n", plain(&line));
                }
                text += &comments(model.left.iter());
            }
        }
    }
    text
}

fn hub(id: &str) -> String {
    format!(
        "Model {id} is not here: its weights come from a hub, and an engine has no network. This fetches and defines it:"
    )
}

/// Keys that options of `hostler add` have, in the order of the command.
const OPTIONS: [(&str, &str); 8] = [
    ("engine", "--engine"),
    ("image", "--image"),
    ("context", "--context"),
    ("parallel", "--parallel"),
    ("gpu_count", "--gpu-count"),
    ("idle_timeout", "--idle-timeout"),
    ("aliases", "--alias"),
    ("args", "--arg"),
];

/// The command that fetches the weights of a hub, and defines the model.
pub fn command(definition: &Definition, hub: &str) -> String {
    let mut words = vec!["hostler".to_owned(), "add".to_owned(), hub.to_owned()];
    words.extend(["--name".to_owned(), definition.name.clone()]);
    for (key, option) in OPTIONS {
        let values: Vec<String> = match definition.get(key) {
            Some(toml::Value::Array(list)) => {
                list.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
            }
            Some(toml::Value::String(text)) => vec![text.clone()],
            Some(value) => vec![value.to_string()],
            None => continue,
        };
        for value in values {
            // Arguments begin with a dash.
            if value.starts_with('-') {
                words.push(format!("{option}={value}"));
            } else {
                words.extend([option.to_owned(), value]);
            }
        }
    }
    for (name, value) in definition.get("env").and_then(|env| env.as_table()).into_iter().flatten()
    {
        words
            .extend(["--env".to_owned(), format!("{name}={}", value.as_str().unwrap_or_default())]);
    }
    if definition.get("pin").is_some() {
        words.push("--pin".to_owned());
    }
    // Only a NUL cannot be quoted, and no YAML holds one.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}

/// The keys that no option has.
fn rest(definition: &Definition) -> Vec<String> {
    let known = |key: &str| OPTIONS.iter().any(|(k, _)| *k == key) || ["env", "pin"].contains(&key);
    let mut rest = definition.clone();
    rest.keys.retain(|(key, _)| !known(key));
    rest.lines().lines().map(str::to_owned).collect()
}
