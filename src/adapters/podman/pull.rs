//! Images: are they there, and if not, how far their pull has come.
//!
//! Purpose: what an image is before a launch. Invariants: images of `localhost/` are never pulled; a pull that broke off on its way
//! is tried again, one that was refused or found no space is not; what is told of its progress never goes backwards by more than
//! a layer that begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::Inner;
use super::error::{Cause, PodmanError, image_missing, image_refused};
use super::inspect::Image;
use crate::supervisor::ports::{Progress, Sign};
use crate::types::{Bytes, Fault, FaultCode, ImageRef, Phase, Pulled};

/// How often a pull is tried.
const TRIES: u32 = 3;
/// Between two reports of one pull.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

impl Inner {
    /// An image, and whether it had to be pulled. `thing`: for whom, in messages.
    pub(super) async fn provide_image(
        &self,
        image: &ImageRef,
        thing: &str,
        progress: &Progress,
    ) -> Result<(Image, bool), Fault> {
        let look = async || {
            let found = self.api.image(image).await;
            found.map_err(|e| e.fault(FaultCode::CreateFailed, thing))
        };
        if let Some(found) = look().await? {
            return Ok((found, false));
        }
        if image.is_local() {
            return Err(image_missing(image, "images of localhost/ are never pulled"));
        }
        if !self.pull {
            return Err(image_missing(image, "[podman] pull is false"));
        }
        progress(Sign::Phase(Phase::Pulling));
        tracing::info!(image = %image, "pulling");
        self.pull(image, thing, progress).await?;
        let found = look().await?.ok_or_else(|| {
            let text =
                format!("{thing}: podman pulled {image} without an error, but does not have it");
            Fault::new(FaultCode::PullFailed, text)
        })?;
        Ok((found, true))
    }

    async fn pull(&self, image: &ImageRef, thing: &str, progress: &Progress) -> Result<(), Fault> {
        let mut pause = self.api.deadlines.pull_pause;
        let mut failed = 0;
        loop {
            let mut report = Report { tally: Tally::default(), last: None, progress };
            let Err(error) = self.api.pull(image, &mut |line| report.line(line)).await else {
                return Ok(());
            };
            failed += 1;
            if failed == TRIES || !passing(&error) {
                return Err(fault(image, thing, failed, &error));
            }
            tracing::warn!(image = %image, reason = %error, "the pull of {image} broke off, trying again in {pause:?}");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Whether another try may end otherwise.
fn passing(error: &PodmanError) -> bool {
    match error {
        PodmanError::Refused { cause, .. } => matches!(cause, Cause::Other),
        PodmanError::Lost { .. } | PodmanError::Unreachable { .. } => true,
        // It has taken as long as a pull may take.
        PodmanError::Deadline { .. } | PodmanError::Garbage { .. } => false,
    }
}

fn fault(image: &ImageRef, thing: &str, tries: u32, error: &PodmanError) -> Fault {
    match error.cause() {
        Some(Cause::ImageRefused | Cause::ImageDenied | Cause::ShortName | Cause::ImageUnknown) => {
            image_refused(image, error)
        }
        Some(Cause::StorageFull) => error.fault(FaultCode::PullFailed, thing),
        _ => {
            let often = if tries > 1 { format!(" ({tries} tries)") } else { String::new() };
            Fault::new(FaultCode::PullFailed, format!("{thing}: {error}{often}"))
        }
    }
}

/// What a line of podman's answer says of one layer.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: String,
    #[serde(default, rename = "progressDetail")]
    detail: Option<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default)]
    current: u64,
    #[serde(default)]
    total: u64,
}

/// The layers of one pull: bytes here, and bytes in all.
#[derive(Default)]
struct Tally(BTreeMap<String, (u64, u64)>);

impl Tally {
    /// The sum after a line; `None`: the line tells nothing new.
    fn line(&mut self, line: &[u8]) -> Option<Pulled> {
        let Line { id, detail } = serde_json::from_slice(line).ok()?;
        let Detail { current, total } = detail.filter(|d| d.total > 0)?;
        let layer = (current.min(total), total);
        if id.is_empty() || self.0.insert(id, layer) == Some(layer) {
            return None;
        }
        let sum = |of: fn(&(u64, u64)) -> u64| self.0.values().map(of).fold(0, u64::saturating_add);
        Some(Pulled { done: Bytes(sum(|l| l.0)), total: Bytes(sum(|l| l.1)) })
    }
}

struct Report<'a> {
    tally: Tally,
    last: Option<Instant>,
    progress: &'a Progress,
}

impl Report<'_> {
    fn line(&mut self, line: &[u8]) {
        let Some(pulled) = self.tally.line(line) else { return };
        let due = self.last.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL);
        if due || pulled.done == pulled.total {
            self.last = Some(Instant::now());
            (self.progress)(Sign::Pulled(pulled));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_added_up() {
        let mut tally = Tally::default();
        let mut line = |text: &str| tally.line(text.as_bytes()).map(|p| (p.done.0, p.total.0));
        assert_eq!(line(r#"{"status":"Pulling fs layer","progressDetail":{},"id":"a"}"#), None);
        let a = r#"{"status":"Downloading","progressDetail":{"current":10,"total":100},"id":"a"}"#;
        assert_eq!(line(a), Some((10, 100)));
        assert_eq!(line(a), None, "nothing new");
        let b = r#"{"status":"Downloading","progressDetail":{"current":50,"total":40},"id":"b"}"#;
        assert_eq!(line(b), Some((50, 140)), "more than all of a layer is all of it");
        let huge =
            format!(r#"{{"progressDetail":{{"current":{0},"total":{0}}},"id":"c"}}"#, u64::MAX);
        assert_eq!(line(&huge), Some((u64::MAX, u64::MAX)));
        for nonsense in
            ["", "{}", "[]", "no json", r#"{"id":7}"#, r#"{"progressDetail":{"total":1}}"#]
        {
            assert_eq!(line(nonsense), None, "{nonsense}");
        }
    }
}
