//! The trailing `a{sv}` of methods. PURE.
//!
//! Invariants: a key that the method does not know is refused, and so is a value of another type: an option with a typing error must
//! not be an option that was not given.

use std::collections::HashMap;

use zbus::OwnedVariant;

use super::error::Error;
use crate::types::{Evict, GpuId, Haste, Wish};

/// As it comes from the bus.
pub type Options = HashMap<String, OwnedVariant>;

/// The options of `Load` and `Plan`: `pin` b, `evict` s, `gpus` as.
///
/// # Errors
/// For unknown keys, types and words, each by name.
pub fn wish(options: &Options) -> Result<Wish, Error> {
    known(options, &["pin", "evict", "gpus"])?;
    let gpus: Vec<String> = take(options, "gpus", "as")?.unwrap_or_default();
    Ok(Wish {
        pin: take(options, "pin", "b")?.unwrap_or_default(),
        evict: take::<String>(options, "evict", "s")?.map(|word| evict(&word)).transpose()?,
        gpus: gpus.iter().map(|id| GpuId::new(id)).collect(),
    })
}

fn evict(word: &str) -> Result<Evict, Error> {
    Evict::parse(word)
        .ok_or_else(|| Error::invalid(format!("evict is none, idle or any, not {word:?}")))
}

/// The mode of `Unload`.
///
/// # Errors
/// For any other word.
pub fn haste(word: &str) -> Result<Haste, Error> {
    Haste::parse(word)
        .ok_or_else(|| Error::invalid(format!("the mode is drain or now, not {word:?}")))
}

/// How much of a log is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The last so many; `None`: all.
    pub lines: Option<usize>,
    /// And what comes.
    pub follow: bool,
}

/// The options of `OpenLogWith`: `lines` t, `follow` b.
///
/// # Errors
/// For unknown keys and types, each by name.
pub fn log(options: &Options) -> Result<LogOptions, Error> {
    known(options, &["lines", "follow"])?;
    let lines: Option<u64> = take(options, "lines", "t")?;
    Ok(LogOptions {
        lines: lines.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        follow: take(options, "follow", "b")?.unwrap_or_default(),
    })
}

fn known(options: &Options, keys: &[&str]) -> Result<(), Error> {
    let mut unknown: Vec<&str> =
        options.keys().map(String::as_str).filter(|k| !keys.contains(k)).collect();
    unknown.sort_unstable();
    match unknown.first() {
        None => Ok(()),
        Some(key) => {
            let short: String = key.chars().take(100).collect();
            let there = keys.join(", ");
            Err(Error::invalid(format!("there is no option {short:?}; there are: {there}")))
        }
    }
}

fn take<T: TryFrom<OwnedVariant>>(
    options: &Options,
    key: &str,
    signature: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = options.get(key) else { return Ok(None) };
    let wrong = || {
        let given = value.value_signature();
        Error::invalid(format!("option {key} has type {signature}, not {given}"))
    };
    let value = value.try_clone().map_err(|_| wrong())?;
    T::try_from(value).map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::Variant;

    fn options(pairs: &[(&str, Variant<'static>)]) -> Options {
        let owned = |v: &Variant<'static>| OwnedVariant::try_from(v.try_clone().unwrap()).unwrap();
        pairs.iter().map(|(k, v)| ((*k).to_owned(), owned(v))).collect()
    }

    #[test]
    fn a_wish() {
        assert_eq!(wish(&options(&[])).unwrap(), Wish::default());
        let all = options(&[
            ("pin", true.into()),
            ("evict", "any".into()),
            ("gpus", vec!["GPU-a", "GPU-b"].into()),
        ]);
        let gpus = vec![GpuId::new("GPU-a"), GpuId::new("GPU-b")];
        assert_eq!(wish(&all).unwrap(), Wish { pin: true, evict: Some(Evict::Any), gpus });
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let message =
            |pairs: &[(&str, Variant<'static>)]| wish(&options(pairs)).unwrap_err().message;
        assert_eq!(
            message(&[("pim", true.into())]),
            "there is no option \"pim\"; there are: pin, evict, gpus"
        );
        assert_eq!(message(&[("pin", "yes".into())]), "option pin has type b, not s");
        assert_eq!(message(&[("gpus", "GPU-a".into())]), "option gpus has type as, not s");
        assert_eq!(message(&[("evict", "all".into())]), "evict is none, idle or any, not \"all\"");
        assert!(haste("later").unwrap_err().message.contains("drain or now"));
        assert!(log(&options(&[("follow", 1_u32.into())])).is_err());
    }
}
