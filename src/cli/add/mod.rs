//! `hostler add`: from a file, a hub's ID, an image or a Quadlet unit to a model that the daemon knows.
//!
//! ```text
//!  source     what is meant (pure)        quadlet    a .container unit → definition (pure)
//!  keys       keys as options (pure)      exec       an engine's command line → keys (pure)
//!  file       the models.d file           unit_file  systemd's unit files (pure)
//!  hub        weights from a hub          volumes    a container's paths, seen from the host (pure)
//!  weights    weights on this host        container  what units and command lines share (pure)
//!  closed     weights that an engine would not see
//! ```
//! Invariant: nothing is written before the whole configuration, the new file included, was checked by the daemon's own rules.

mod closed;
pub mod container;
pub mod exec;
pub mod file;
mod hub;
mod keys;
pub mod quadlet;
pub mod source;
mod unit_file;
pub mod volumes;
mod weights;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::file::Definition;
use self::keys::Keys;
use self::quadlet::{Left, Told};
use self::source::Source;
use self::weights::{Harmony, called, doubts, harmony, lacks, look};
use super::Context;
use super::change::{self, Applied, Before};
use super::exit::{Exit, Failure, Outcome};
use super::output::{tell, warn};
use crate::config::{self, Config};
use crate::daemon::{self, Options};
use crate::types::EngineKind;

/// Defines a model: writes its file in models.d, after having checked it together with all other files, and applies it.
///
/// SOURCE is a path (a GGUF file, or a directory with safetensors), a hub's ID (org/name, or org/name:Q4_K_M for one of several
/// GGUF files), or an OCI image with the weights (registry.example/name:tag).
#[derive(Debug, Args)]
pub struct Add {
    /// Path, hub ID or OCI image; hub: and oci: in front decide between the latter two.
    #[arg(required_unless_present = "quadlet", conflicts_with = "quadlet")]
    source: Option<String>,

    /// Read a Quadlet unit (.container) instead; what is not taken over is listed.
    #[arg(long, value_name = "FILE")]
    quadlet: Option<PathBuf>,

    /// What clients write in "model". Default: after the source.
    #[arg(long)]
    name: Option<String>,

    /// The engine. Default: llamacpp for GGUF, else vllm.
    #[arg(long, value_enum)]
    engine: Option<Engine>,

    /// The engine's image. Default: that of the other models with the same engine, if they all have the same.
    #[arg(long)]
    image: Option<String>,

    /// Of an OCI image with weights: the file or directory in it.
    #[arg(long, value_name = "PATH")]
    inside: Option<String>,

    /// Of a hub: branch, tag or commit.
    #[arg(long, default_value = "main")]
    revision: String,

    /// Of a hub: a file with the token. Default: the environment variable HF_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Of a hub: where models are kept. Default: /var/lib/hostler/models, or below your own data directory.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,

    /// Of a hub, llamacpp: leave out the file by which the model sees images (mmproj). Default: it comes along where there is one.
    #[arg(long)]
    no_projector: bool,

    #[command(flatten)]
    keys: Keys,

    /// Replace the file of a model of that name.
    #[arg(long)]
    force: bool,

    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,

    /// Do not apply it to the running daemon.
    #[arg(long)]
    no_reload: bool,
}

/// What came of it.
struct Done<'a> {
    definition: &'a Definition,
    path: &'a Path,
    text: &'a str,
    left: &'a [Left],
    /// What it is estimated to need.
    expected: Option<String>,
}

/// The engines, as words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// llama.cpp's llama-server.
    Llamacpp,
    /// vLLM.
    Vllm,
}

impl From<Engine> for EngineKind {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Llamacpp => Self::Llamacpp,
            Engine::Vllm => Self::Vllm,
        }
    }
}

impl Add {
    pub async fn run(self, context: &Context) -> Outcome {
        let options = Options::of(context.is_user().await, None);
        let config = options.load().map_err(|errors| {
            let message = format!("the configuration is wrong already:\n{errors}");
            Failure::new(Exit::Config, message).fix("correct that first; nothing was written")
        })?;
        let (mut definition, left) = match (&self.quadlet, &self.source) {
            (Some(unit), _) => self.quadlet(unit)?,
            (None, source) => {
                let source = source.as_deref().unwrap_or_default();
                (self.defined(context, &config, &options, source).await?, Vec::new())
            }
        };
        self.keys.apply(&mut definition);
        let path = place(&options, &definition.name, self.force)?;
        let text = definition.text(&path);
        let checked = check(&options, &path, &text)?;
        let model = checked.models.values().find(|model| model.name.as_str() == definition.name);
        model.and_then(|model| model.image.doubt()).into_iter().for_each(warn);
        let expected = daemon::expected(&checked, &definition.name);
        let done =
            Done { definition: &definition, path: &path, text: &text, left: &left, expected };
        if self.dry_run {
            return self.report(context, &done);
        }
        let before = Before::of(&path).await.map_err(|err| file::not_written(&path, &err))?;
        file::write(&path, &text)?;
        let show = || self.report(context, &done);
        // Text is read as it comes; a document says what came of it.
        let shown = if context.out.json { Ok(()) } else { show() };
        if !self.no_reload {
            match change::apply(context, before).await? {
                Applied::Now => context.out.say(&format!("next: hostler load {}", definition.name)),
                Applied::Later(absent) => {
                    let Failure { message, fix, .. } = absent;
                    context
                        .out
                        .say(&format!("{message}; this is applied when it is there\nnext: {fix}"));
                }
            }
        }
        if context.out.json { show() } else { shown }
    }

    fn report(&self, context: &Context, done: &Done<'_>) -> Outcome {
        let Done { definition, path, text, left, expected } = done;
        if context.out.json {
            return context.out.document(&serde_json::json!({
                "model": definition.name, "file": path, "text": text, "written": !self.dry_run,
                "not_taken_over": left, "estimate": expected,
            }));
        }
        for left in *left {
            let Left { line, setting, why } = left;
            tell(format_args!("line {line}: {setting} is not taken over: {why}"));
        }
        let word = if self.dry_run { "would write" } else { "wrote" };
        context.out.say(&format!("{word} {}:", path.display()));
        context.out.text(text)?;
        expected.iter().for_each(|need| context.out.say(need));
        Ok(())
    }

    fn quadlet(&self, unit: &Path) -> Outcome<(Definition, Vec<Left>)> {
        let text = std::fs::read_to_string(unit).map_err(|err| {
            Failure::new(Exit::NotFound, format!("{} cannot be read: {err}", unit.display()))
        })?;
        let stem = unit.file_stem().unwrap_or_default().to_string_lossy();
        let whole = std::path::absolute(unit)?;
        let told = Told {
            stem: &stem,
            engine: self.engine.map(EngineKind::from),
            name: self.name.as_deref(),
            image: self.image.as_deref(),
            home: quadlet::home(&whole),
        };
        let imported = quadlet::import(&text, &told)
            .map_err(|why| Failure::new(Exit::Failed, format!("{} {why}", unit.display())))?;
        let mut definition = imported.definition;
        definition.comments.push(format!("From the Quadlet unit {}.", unit.display()));
        Ok((definition, imported.left))
    }

    async fn defined(
        &self,
        context: &Context,
        config: &Config,
        options: &Options,
        text: &str,
    ) -> Outcome<Definition> {
        let source = Source::parse(text)
            .map_err(|why| Failure::new(Exit::Usage, format!("{text:?} {why}")))?;
        match &source {
            Source::Path(path) => {
                let (path, gguf) = look(path)?;
                doubts(&path, self.engine(gguf), hub::service(options.user)).for_each(warn);
                self.on_disk(config, called(&path), gguf, &path)
            }
            Source::Image(image) => {
                let inside = self.inside.clone().ok_or_else(|| {
                    Failure::new(Exit::Usage, format!("where in {image} are the weights?"))
                        .fix("--inside /model.gguf, or the directory")
                })?;
                let gguf = inside.ends_with(".gguf");
                let last = image.as_str().rsplit('/').next().unwrap_or_default();
                let name = last.split([':', '@']).next().unwrap_or_default().to_owned();
                let weights = [("image", image.to_string()), ("path", inside)];
                self.definition(config, name, gguf, &weights)
            }
            Source::Hub { .. } if Path::new(text).exists() => {
                let why =
                    format!("{text} is a file or directory here, and has the form of a hub's ID");
                let fix = format!("./{text} for what is here, hub:{text} for the hub's");
                Err(Failure::new(Exit::Usage, why).fix(fix))
            }
            Source::Hub { repo, pattern } => {
                self.fetched(context, config, options, repo, pattern.as_deref()).await
            }
        }
    }

    /// A model of a hub, with its weights; of a dry run without.
    async fn fetched(
        &self,
        context: &Context,
        config: &Config,
        options: &Options,
        repo: &str,
        pattern: Option<&str>,
    ) -> Outcome<Definition> {
        self.foresee(config, options, repo, pattern.is_some())?;
        let models = self.models_dir.clone().unwrap_or_else(|| models_dir(options.user));
        let models = hub::models_dir(&models, options.user, !self.dry_run)?;
        let wanted = hub::Wanted {
            repo,
            pattern,
            engine: self.engine.map(EngineKind::from),
            // Its own arguments may bring one in, or a draft model, beside which none works.
            blind: self.no_projector || self.keys.sees_by_itself(),
            revision: &self.revision,
            token_file: self.token_file.as_deref(),
            models: &models,
            list: self.dry_run,
        };
        let fetched = hub::fetch(context, &config.podman, &wanted).await?;
        fetched.left_out(repo).into_iter().for_each(warn);
        let (path, gguf) = (fetched.path(&models), fetched.main.is_some());
        let mut definition = self.on_disk(config, repo.to_owned(), gguf, &path)?;
        definition.comments.push(format!("{repo} at commit {}", fetched.commit));
        if let Some(projector) = fetched.projector(&models) {
            definition.set("projector", projector.display().to_string());
            let said = "it sees images by its projector; --no-projector leaves that out, and what it needs";
            context.out.say(&format!("{repo}: {said}"));
        }
        Ok(definition)
    }

    /// What is wrong with a hub's model whatever its weights are is said before gigabytes of them are fetched. Where nobody says whether
    /// they are GGUF, one of both will do.
    fn foresee(&self, config: &Config, options: &Options, repo: &str, gguf: bool) -> Outcome {
        let tried = |gguf| {
            let weights = [("path", format!("/to-be-fetched/{repo}"))];
            let mut definition = self.definition(config, repo.to_owned(), gguf, &weights)?;
            self.keys.apply(&mut definition);
            let path = place(options, &definition.name, self.force)?;
            check(options, &path, &definition.text(&path)).map(drop)
        };
        tried(true).or_else(|why| if gguf { Err(why) } else { tried(false).map_err(|_| why) })
    }

    fn engine(&self, gguf: bool) -> EngineKind {
        let guessed = if gguf { EngineKind::Llamacpp } else { EngineKind::Vllm };
        self.engine.map_or(guessed, EngineKind::from)
    }

    /// A model of weights on this host. What they lack is said.
    fn on_disk(
        &self,
        config: &Config,
        name: String,
        gguf: bool,
        path: &Path,
    ) -> Outcome<Definition> {
        lacks(path).into_iter().for_each(warn);
        let weights = [("path", path.display().to_string())];
        let mut definition = self.definition(config, name, gguf, &weights)?;
        let reads = self.engine(gguf) == EngineKind::Vllm;
        if let Some(Harmony { env, missing }) = harmony(path).filter(|_| reads) {
            missing.into_iter().for_each(warn);
            definition.set_texts("env", &[env].into());
        }
        Ok(definition)
    }

    fn definition(
        &self,
        config: &Config,
        name: String,
        gguf: bool,
        weights: &[(&str, String)],
    ) -> Outcome<Definition> {
        let engine = self.engine(gguf);
        let name = self.name.clone().unwrap_or(name);
        let mut definition = Definition { name, ..Definition::default() };
        definition.set("engine", engine.as_str());
        definition.set("image", self.image_of(config, engine)?);
        let weights = weights.iter().map(|(key, text)| ((*key).to_owned(), text.clone()));
        definition.set_texts("weights", &weights.collect());
        Ok(definition)
    }

    /// The engine's image: as told, or as all others have it.
    fn image_of(&self, config: &Config, engine: EngineKind) -> Outcome<String> {
        if let Some(image) = &self.image {
            return Ok(image.clone());
        }
        let others = config.models.values().filter(|spec| spec.engine == engine);
        let mut images: Vec<&str> = others.map(|spec| spec.image.as_str()).collect();
        images.sort_unstable();
        images.dedup();
        let why = match images.as_slice() {
            [one] => return Ok((*one).to_owned()),
            [] => format!("no other model uses {}, so its image is not known", engine.as_str()),
            more => format!(
                "the models of {} have different images: {}",
                engine.as_str(),
                more.join(", ")
            ),
        };
        Err(Failure::new(Exit::Usage, why)
            .fix("--image IMAGE, the engine's image as podman takes it"))
    }
}

/// Where models of a hub are kept unless somebody says otherwise.
fn models_dir(user: bool) -> PathBuf {
    if !user {
        return PathBuf::from("/var/lib/hostler/models");
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
    data.unwrap_or_default().join("hostler/models")
}

/// Where the file goes. One that is there stays, unless it is to be replaced.
fn place(options: &Options, name: &str, force: bool) -> Outcome<PathBuf> {
    let Some(dir) = options.dirs().all.into_iter().next() else {
        return Err(Failure::new(Exit::Failed, "there is no configuration directory"));
    };
    let (path, taken) = file::place(&dir.join("models.d"), name);
    if taken && !force {
        let message = format!("{} is there already", path.display());
        return Err(Failure::new(Exit::Failed, message)
            .fix("--force replaces it, --name chooses another name"));
    }
    Ok(path)
}

/// Checks the new file together with all others, as the daemon will.
fn check(options: &Options, path: &Path, text: &str) -> Outcome<Config> {
    let sources = config::read(Path::new("/"), &options.dirs());
    let sources = change::with_model(sources, path, text);
    change::check(options, &sources).map_err(|errors| {
        let message = format!("the definition is wrong:\n{errors}\nin:\n{text}");
        Failure::new(Exit::Config, message).fix("nothing was written")
    })
}
