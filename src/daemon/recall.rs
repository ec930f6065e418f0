//! What an earlier daemon learned, and what the models' images are now.
//!
//! Purpose: the start of what the core knows. Invariant: nothing here fails a start; what is lost is said, and learned again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::adapters::state_file::StateFile;
use crate::config::Config;
use crate::plan::Book;
use crate::supervisor::ports::Containers;
use crate::types::{ImageRef, ModelName};

/// Name of the file with the footprints.
const FOOTPRINTS: &str = "footprints";
/// Where a system service keeps its state when systemd does not say where.
const SYSTEM_DIR: &str = "/var/lib/hostler/state";

/// What the core begins with.
#[derive(Debug)]
pub struct Recalled {
    /// What was measured earlier.
    pub book: Book,
    /// IDs of the models' images.
    pub images: BTreeMap<ModelName, String>,
}

/// The file with the footprints: in systemd's `$STATE_DIRECTORY`, or where that would be.
pub fn footprints(user: bool) -> StateFile {
    let given = std::env::var_os("STATE_DIRECTORY");
    // Several directories would be separated by colons; the units have one.
    let given = given.and_then(|dirs| std::env::split_paths(&dirs).next());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let own = || std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    let dir = match given {
        Some(dir) => dir,
        None if user => own().unwrap_or_default().join("hostler"),
        None => PathBuf::from(SYSTEM_DIR),
    };
    StateFile::new(dir, FOOTPRINTS)
}

/// The footprints in it.
pub fn book(file: &StateFile) -> Book {
    let (book, trouble) = file.load(Book::decode).into_parts();
    if let Some(why) = trouble {
        tracing::warn!("what was measured earlier: {why}");
    }
    let book = book.unwrap_or_default();
    tracing::info!("{} footprints in {}", book.len(), file.path().display());
    book
}

/// What the models' image references mean now, as far as podman knows them.
pub async fn images(config: &Config, containers: &dyn Containers) -> BTreeMap<ModelName, String> {
    let mut images = BTreeMap::new();
    // Models share images: podman is asked once for each.
    let mut asked: BTreeMap<&ImageRef, Option<String>> = BTreeMap::new();
    for (name, spec) in &config.models {
        let id = match asked.get(&spec.image) {
            Some(id) => id.clone(),
            None => {
                let found = containers.image_id(spec.image.clone()).await;
                let id = found.unwrap_or_else(|fault| {
                    let image = &spec.image;
                    tracing::warn!(%image, "the image {image} is not known, ignoring: {fault}");
                    None
                });
                asked.insert(&spec.image, id.clone());
                id
            }
        };
        images.extend(id.map(|id| (name.clone(), id)));
    }
    images
}
