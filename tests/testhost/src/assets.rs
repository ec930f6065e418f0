//! Engines and models, made by the scripts of `contrib/engines/` and `tests/fake-engine/`, cached outside the tree. Owner:
//! those scripts; each prints the path of what it made, or found made.

use crate::{Result, place};
use std::path::PathBuf;

/// An image archive with the real llama-server: `localhost/hostler/llama-server:latest`.
pub fn llama_server_image() -> Result<PathBuf> {
    place::script("contrib/engines/llama-server/build.sh", &[]).map(PathBuf::from)
}

/// An image archive with the stand-in engine: `localhost/hostler/fake-engine:latest`. It is built anew where its sources have
/// changed since.
pub fn fake_engine_image() -> Result<PathBuf> {
    let archive = place::cache().join("engines/fake-engine.tar");
    place::script("tests/fake-engine/image.sh", &[&archive.to_string_lossy()]).map(PathBuf::from)
}

/// A model that, asked greedily for anything, says exactly " 1 2 3 … 512": a lost, doubled or reordered piece shows at once.
pub fn count_512() -> Result<PathBuf> {
    place::script("contrib/engines/models/count.sh", &[]).map(PathBuf::from)
}

/// SmolLM2-135M-Instruct, the demo's model.
pub fn smollm2() -> Result<PathBuf> {
    place::script("contrib/engines/models/smollm2.sh", &[]).map(PathBuf::from)
}

/// An image archive that holds nothing but a model file, `/models/NAME.gguf`, to be mounted read-only into an engine:
/// `localhost/hostler/model-NAME:latest`.
pub fn model_image(model: &std::path::Path, name: &str) -> Result<PathBuf> {
    let model = model.to_string_lossy();
    place::script("contrib/engines/models/image.sh", &[&model, name]).map(PathBuf::from)
}
