//! What an earlier daemon learned, and what the models' images are now.
//!
//! Purpose: the start of what the core knows. Invariant: nothing here fails a start; what is lost is said, and learned again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::sync::watch;

use super::core::Models;
use super::told::Trouble;
use crate::adapters::podman::Left;
use crate::adapters::podman::journal::Record;
use crate::adapters::state_file::StateFile;
use crate::checks::images;
use crate::plan::Book;
use crate::supervisor::ports::Containers;
use crate::supervisor::state;
use crate::types::{ModelName, ModelSpec};

/// Name of the file with the footprints.
const FOOTPRINTS: &str = "footprints";
/// Name of the file with what was begun.
const JOURNAL: &str = "journal";
/// Another at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where a system service keeps its state when systemd does not say where.
const SYSTEM_DIR: &str = "/var/lib/hostler/state";

/// What the daemon begins with.
#[derive(Debug)]
pub struct Recalled {
    /// What the core is told.
    pub core: state::Recalled,
    /// The models with what their files say.
    pub models: Models,
    /// What is wrong with the file of what was begun.
    pub journal: Trouble,
    /// Directories of engines that nobody could remove.
    pub left: watch::Receiver<Left>,
}

/// The file with the footprints.
pub fn footprints(user: bool) -> StateFile {
    StateFile::new(state_dir(user), FOOTPRINTS)
}

/// The file with what was begun.
pub fn journal(user: bool) -> StateFile {
    StateFile::new(state_dir(user), JOURNAL)
}

/// What earlier daemons had begun since the boot and had not ended.
pub fn record(file: &StateFile) -> Record {
    let (record, trouble) = file.load(Record::decode).into_parts();
    if let Some(why) = trouble {
        tracing::warn!("what was begun earlier: {why}");
    }
    // Without it no entry can be told from one of another boot.
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let record = record.unwrap_or_default().of_boot(boot.trim());
    tracing::debug!("{} incarnations open in {}", record.len(), file.path().display());
    record
}

/// systemd's `$STATE_DIRECTORY`, or where that would be.
pub fn state_dir(user: bool) -> PathBuf {
    let given = std::env::var_os("STATE_DIRECTORY");
    // Several directories would be separated by colons; the units have one.
    let given = given.and_then(|dirs| std::env::split_paths(&dirs).next());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let own = || std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    match given {
        Some(dir) => dir,
        None if user => own().unwrap_or_default().join("hostler"),
        None => PathBuf::from(SYSTEM_DIR),
    }
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

/// What these models' image references mean now, as far as podman knows them.
pub async fn images(models: &Models, containers: &dyn Containers) -> BTreeMap<ModelName, String> {
    // Models share images: podman is asked once for each.
    let images = models.values().map(|spec| spec.image.clone()).collect();
    let asked = images::ids(images, |image| containers.image_id(image)).await;
    for (image, id) in &asked {
        if let Err(fault) = id {
            tracing::warn!(%image, "the image {image} is not known, ignoring: {fault}");
        }
    }
    let id = |spec: &ModelSpec| asked.get(&spec.image)?.clone().ok()?;
    models.values().filter_map(|spec| Some((spec.name.clone(), id(spec)?))).collect()
}

/// Models whose containers will be others than those of `earlier` ones: of the rest the core knows the image, and need not know it anew.
pub fn changed(models: &Models, earlier: &Models) -> Models {
    let is_other = |name: &ModelName, spec: &ModelSpec| {
        earlier.get(name).is_none_or(|earlier| earlier.spec_hash() != spec.spec_hash())
    };
    let others = models.iter().filter(|(name, spec)| is_other(name, spec));
    others.map(|(name, spec)| (name.clone(), spec.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::types::test_spec;

    #[test]
    fn images_are_asked_for_where_a_model_is_new_or_another() {
        let models = |specs: Vec<ModelSpec>| -> Models {
            specs.into_iter().map(|spec| (spec.name.clone(), Arc::new(spec))).collect()
        };
        let pinned = ModelSpec { pin: true, ..test_spec("pinned") };
        let longer = ModelSpec { context: Some(4096), ..test_spec("longer") };
        let before = models(["same", "pinned", "longer", "gone"].map(test_spec).to_vec());
        let after = models(vec![test_spec("same"), pinned, longer, test_spec("new")]);
        let names = |models, earlier| -> Vec<String> {
            changed(models, earlier).into_keys().map(|name| name.to_string()).collect()
        };
        assert_eq!(names(&after, &before), ["longer", "new"]);
        assert_eq!(names(&after, &after), [""; 0]);
    }
}
