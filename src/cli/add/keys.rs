//! Keys of a definition that the command line says. PURE.

use clap::Args;

use super::file::Definition;
use crate::types::files;

/// Keys of the definition.
#[derive(Debug, Args)]
#[command(next_help_heading = "Keys of the definition")]
pub struct Keys {
    /// Memory that it needs on each device, such as 12GiB. Default: estimated, then measured.
    #[arg(long, value_name = "SIZE")]
    vram: Option<String>,

    /// Context length in tokens.
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,

    /// Sequences served at once.
    #[arg(long, value_name = "COUNT")]
    parallel: Option<u32>,

    /// Devices that it is spread over.
    #[arg(long, value_name = "COUNT")]
    gpu_count: Option<u32>,

    /// Another name; may be given more than once.
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,

    /// Load it at start-up, and keep it loaded.
    #[arg(long)]
    pin: bool,

    /// Unload it after so long without a request, such as 30m, or never.
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<String>,

    /// A further argument of the engine; may be given more than once: --arg=--embeddings.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    arg: Vec<String>,

    /// A variable of the engine's environment; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Keys {
    /// Whether its arguments name a projector or a draft model.
    pub fn sees_by_itself(&self) -> bool {
        let flags = [&files::PROJECTOR_FLAGS[..], &files::BESIDE_FLAGS].concat();
        self.arg.iter().any(|arg| flags.contains(&arg.split('=').next().unwrap_or_default()))
    }

    /// Puts them into a definition. What may be given more than once comes behind what is there: a unit brings arguments, variables and
    /// names of its own.
    pub fn apply(&self, definition: &mut Definition) {
        if let Some(vram) = &self.vram {
            definition.set("vram", vram.as_str());
        }
        let numbers =
            [("context", self.context), ("parallel", self.parallel), ("gpu_count", self.gpu_count)];
        for (key, number) in numbers {
            number.into_iter().for_each(|number| definition.set(key, i64::from(number)));
        }
        let known = definition.texts("aliases");
        let new = |alias: &&String| !known.contains(alias);
        let aliases: Vec<String> =
            known.iter().chain(self.alias.iter().filter(new)).cloned().collect();
        definition.set_list("aliases", &aliases);
        if self.pin {
            definition.set("pin", true);
        }
        if let Some(time) = &self.idle_timeout {
            definition.set("idle_timeout", time.as_str());
        }
        definition.set_list("args", &[definition.texts("args"), self.arg.clone()].concat());
        let mut env = definition.pairs("env");
        env.extend(self.env.iter().cloned());
        definition.set_texts("env", &env);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        keys: Keys,
    }

    #[test]
    fn what_a_unit_brings_stays() {
        let texts =
            |list: &[&str]| -> Vec<String> { list.iter().map(|t| (*t).to_owned()).collect() };
        let mut definition = Definition { name: "m".into(), ..Definition::default() };
        definition.set("context", 4096);
        definition.set_list("aliases", &texts(&["a"]));
        definition.set_list("args", &texts(&["-ngl", "9"]));
        let pairs =
            [("A", "1"), ("B", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        definition.set_texts("env", &pairs.into());
        let words = "x --arg=--x --env B=2 --env C=3 --alias a --alias b --context 8192";
        Line::parse_from(words.split(' ')).keys.apply(&mut definition);
        assert_eq!(
            definition.lines(),
            "context = 8192\naliases = [\"a\", \"b\"]\nargs = [\"-ngl\", \"9\", \"--x\"]\n\
             env = { A = \"1\", B = \"2\", C = \"3\" }\n"
        );
    }
}
