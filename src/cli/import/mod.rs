//! `hostler import`: another program's configuration, as Hostler's.
//!
//! ```text
//!  node       YAML, untyped (pure)       llama_swap  the whole: text in, text and what was left out (pure)
//!  macros     ${NAME} (pure)             settings, routing, peers   its parts beside the models (pure)
//!  command    what a cmd starts (pure)   model       one model; container, weights, params: its parts (pure)
//!  left       what was not taken over    document    the new file's text (pure)
//! ```
//! Invariant: nothing is written that Hostler's own configuration would refuse, and nothing in place of another file that nobody
//! said may go.

mod command;
mod container;
mod document;
mod left;
mod llama_swap;
mod macros;
mod model;
mod node;
mod params;
mod peers;
mod routing;
mod settings;
mod weights;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use self::left::Why;
use self::llama_swap::{Imported, Told};
use super::Context;
use super::add::file;
use super::exit::{Exit, Failure, Outcome};
use super::output::warn;

/// Translates the configuration of another program into a hostler.toml.
#[derive(Debug, Args)]
pub struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// Translate a llama-swap configuration. What is not taken over is listed, with the reason and what to do instead.
    ///
    /// The result is checked by Hostler's own rules before it is written. It needs no daemon and changes none.
    LlamaSwap(LlamaSwap),
}

/// The options of `hostler import llama-swap`.
#[derive(Debug, Args)]
struct LlamaSwap {
    /// llama-swap's config.yaml.
    #[arg(value_name = "CONFIG.YAML")]
    file: PathBuf,

    /// Write the result there instead of printing it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the file that --output names.
    #[arg(long, requires = "output")]
    force: bool,

    /// Where models are, which llama-swap does not say. Default: nvml, and it is listed.
    #[arg(long, value_enum)]
    backend: Option<Backend>,

    /// The image with llama-server, for models whose cmd starts it as a program of the host.
    #[arg(long, value_name = "IMAGE")]
    llamacpp_image: Option<String>,

    /// The image with vLLM, for models whose cmd starts it as a program of the host.
    #[arg(long, value_name = "IMAGE")]
    vllm_image: Option<String>,
}

/// Where memory is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// NVIDIA GPUs.
    Nvml,
    /// The host's RAM.
    Host,
}

/// What is said of a key that nobody here knows.
fn unknown_key() -> Why {
    Why::new(
        "it is not known here: newer than this program, or misspelt",
        "look whether docs/hostler.toml.example has the like",
    )
}

/// Why a key is not taken over that no part of the import reads. `no_place`: keys that are known, why, and what to do instead.
fn unread(no_place: &[(&str, &str, &str)], key: &str) -> Why {
    let known = no_place.iter().find(|(known, ..)| *known == key);
    known.map_or_else(unknown_key, |(_, why, instead)| Why::new(*why, *instead))
}

impl Import {
    pub fn run(self, context: &Context) -> Outcome {
        let From::LlamaSwap(it) = self.from;
        it.run(context)
    }
}

impl LlamaSwap {
    fn told(&self) -> Told {
        let backend = self.backend.map(|backend| match backend {
            Backend::Nvml => "nvml",
            Backend::Host => "host",
        });
        let images = [("llamacpp", &self.llamacpp_image), ("vllm", &self.vllm_image)];
        let images =
            images.into_iter().filter_map(|(engine, image)| Some((engine, image.clone()?)));
        Told { backend, images: images.collect::<BTreeMap<_, _>>() }
    }

    fn run(self, context: &Context) -> Outcome {
        let shown = self.file.display();
        let text = std::fs::read_to_string(&self.file).map_err(|err| {
            Failure::new(Exit::NotFound, format!("{shown} cannot be read: {err}"))
        })?;
        if let Some(output) = self.output.as_ref().filter(|path| path.exists() && !self.force) {
            let message = format!("{} is there already", output.display());
            return Err(
                Failure::new(Exit::Failed, message).fix("--force replaces it; nothing was written")
            );
        }
        let variable = |name: &str| std::env::var(name).ok();
        let Imported { text, left } =
            llama_swap::import(&text, &self.told(), &variable).map_err(|failure| Failure {
                message: format!("{shown}: {}", failure.message),
                ..failure
            })?;
        if let Some(output) = &self.output {
            file::write(output, &text)?;
        }
        if context.out.json {
            return context.out.document(&serde_json::json!({
                "text": text, "file": self.output, "not_taken_over": left,
            }));
        }
        // Warnings are no messages: --quiet keeps them.
        for line in left::lines(&left) {
            warn(line);
        }
        match &self.output {
            Some(output) => {
                context.out.say(&format!("wrote {}", output.display()));
                context.out.say(&format!("next: hostler config check --file {}", output.display()));
                Ok(())
            }
            None => context.out.text(&text),
        }
    }
}
