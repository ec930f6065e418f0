//! What images are in podman's storage, asked for many models.
//!
//! Purpose: a podman that hangs costs its deadline once, and not once for each image. Invariants: a
//! podman that does not answer is asked no more, and what was left out gets the same reason.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};

use crate::supervisor::ports::PortFuture;
use crate::types::{Fault, FaultCode, ImageRef};

/// So many are asked for at a time.
const AT_ONCE: usize = 8;

/// The ID of an image, `None` for one that is not there, or why that is not known.
pub type Answer = Result<Option<String>, Fault>;

/// What podman says of each of these images.
pub async fn ids<'a>(
    images: BTreeSet<ImageRef>,
    ask: impl Fn(ImageRef) -> PortFuture<'a, Answer>,
) -> BTreeMap<ImageRef, Answer> {
    let each = images.iter().cloned().map(|image| {
        let id = ask(image.clone());
        async move { (image, id.await) }
    });
    let each: Vec<_> = each.collect();
    let mut asked = stream::iter(each).buffer_unordered(AT_ONCE);
    let mut known = BTreeMap::new();
    let mut away = None;
    while let Some((image, id)) = asked.next().await {
        away = id.as_ref().err().filter(|f| f.code == FaultCode::PodmanUnreachable).cloned();
        known.insert(image, id);
        if away.is_some() {
            break;
        }
    }
    drop(asked);
    if let Some(fault) = away {
        for image in images {
            known.entry(image).or_insert_with(|| Err(fault.clone()));
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn images() -> BTreeSet<ImageRef> {
        (0..20).map(|n| ImageRef::parse(&format!("localhost/m{n}:1")).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_podman_that_hangs_costs_one_deadline() {
        let (began, deadline) = (Instant::now(), Duration::from_secs(15));
        let away = Fault::new(FaultCode::PodmanUnreachable, "no answer within 15 s");
        let ids = ids(images(), |_| {
            let away = away.clone();
            Box::pin(async move {
                tokio::time::sleep(deadline).await;
                Err(away)
            })
        })
        .await;
        assert_eq!(began.elapsed(), deadline);
        assert_eq!(ids.len(), 20);
        assert!(ids.values().all(|id| id.as_ref() == Err(&away)), "{ids:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_of_one_image() {
        let refused = images().first().unwrap().clone();
        let ids = ids(images(), |image| {
            let why = Fault::new(FaultCode::Internal, "podman refused");
            let id = if image == refused { Err(why) } else { Ok(Some(image.to_string())) };
            Box::pin(std::future::ready(id))
        })
        .await;
        assert_eq!(ids.len(), 20);
        assert_eq!(ids.values().filter(|id| id.is_ok()).count(), 19);
    }
}
