//! The context that llama-server is told where the configuration says none.
//!
//! Purpose: promise and engine agree. Left to itself, llama-server (from December 2025 on, `--fit`) shrinks its context to what happens to
//! be free on the device while it starts, down to 4,096 tokens: other answers after each load, and no relation to what was promised
//! to it. Owner: nobody. Invariant: it follows from the specification and the device alone, never from the moment or from measurements,
//! so that each load of one specification has the same.

use super::{LLAMACPP_PAD, args, at};
use crate::types::{Bytes, EngineKind, ModelSpec, files};

/// With less llama-server shrinks nothing by itself (`--fit-ctx`); a model that has not even this in its promise is not what the estimate
/// takes it for.
const LEAST: u32 = 4096;
/// What llama-server leaves of a device (`--fit-target`). A model that would leave less takes whole devices, and what it gets of them
/// is better reckoned by the engine, which knows to the byte what it allocates.
pub const LEFT_FREE: Bytes = Bytes::gib(1);
/// How many layers go to the devices.
const LAYERS: &[&str] = &["-ngl", "--gpu-layers", "--n-gpu-layers"];
/// The same as a variable.
const LAYERS_ENV: &str = "LLAMA_ARG_N_GPU_LAYERS";
/// Arguments that say which parts of the weights stay in the host's memory.
const PARTS: &[&str] = &["-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"];
/// The same as variables.
const PARTS_ENV: &[&str] =
    &["LLAMA_ARG_OVERRIDE_TENSOR", "LLAMA_ARG_CPU_MOE", "LLAMA_ARG_N_CPU_MOE"];
/// Arguments after which the estimate is not the model's need, beside those and those for other models.
const UNSEEN: &[&str] =
    &["-nkvo", "--no-kv-offload", "-fit", "--fit", "-fitt", "--fit-target", "-fitc", "--fit-ctx"];
/// The same as variables, and those of other models.
const UNSEEN_ENV: &[&str] = &[
    "LLAMA_ARG_KV_OFFLOAD",
    "LLAMA_ARG_NO_KV_OFFLOAD",
    "LLAMA_ARG_MODEL_DRAFT",
    "LLAMA_ARG_SPEC_DRAFT_MODEL",
    "LLAMA_ARG_MMPROJ",
    "LLAMA_ARG_MMPROJ_URL",
    "LLAMA_ARG_FIT",
    "LLAMA_ARG_FIT_TARGET",
    "LLAMA_ARG_FIT_CTX",
];

/// Whether arguments leave layers in the host's memory. People write 99 for all.
fn leaves_layers(spec: &ModelSpec) -> bool {
    let layers = args::value(spec, LAYERS, LAYERS_ENV);
    layers.is_some_and(|n| n != "all" && n.parse::<u32>().map_or(true, |n| n < 99))
}

/// Whether a variable of these is the model's own.
fn sets(spec: &ModelSpec, names: &[&str]) -> bool {
    names.iter().any(|name| spec.env.contains_key(*name))
}

/// Whether llama-server itself has to find out what of a model its devices hold, and to leave the rest in the host's memory: its weights
/// alone are more than they have, `devices` together, and nobody says which parts stay there.
#[must_use]
pub fn is_fitted(spec: &ModelSpec, devices: Bytes) -> bool {
    let larger = spec.anatomy.as_ref().is_some_and(|anatomy| anatomy.weights > devices);
    let by_args = args::has(spec, LAYERS) || args::has(spec, PARTS);
    let by_env = sets(spec, &[LAYERS_ENV]) || sets(spec, PARTS_ENV);
    spec.engine == EngineKind::Llamacpp && larger && !by_args && !by_env
}

/// Whether it keeps the scores of all tokens, some GiB for a long context, which it does without flash attention.
fn scores(spec: &ModelSpec) -> bool {
    let flash = args::value(spec, &["-fa", "--flash-attn"], "LLAMA_ARG_FLASH_ATTN");
    flash.is_some_and(|said| ["off", "0", "false", "disabled"].contains(&said))
}

/// What to tell an engine on devices of which the smallest has `device_total`: the length that the model was made for, which is what its
/// estimate counts; or, where `vram` is declared and that is too much for it, as much as is estimated to fit. `None`: the engine decides.
#[must_use]
pub fn context(spec: &ModelSpec, device_total: Bytes) -> Option<u32> {
    let anatomy = spec.anatomy.as_ref()?;
    let native = anatomy.cache.as_ref()?.context_max?;
    let decides = spec.engine != EngineKind::Llamacpp || spec.context.is_some();
    let lists = [PARTS, UNSEEN, &files::PROJECTOR_FLAGS, &files::BESIDE_FLAGS];
    let named = lists.iter().any(|flags| args::has(spec, flags));
    let unseen = named || leaves_layers(spec) || scores(spec);
    if decides || unseen || sets(spec, PARTS_ENV) || sets(spec, UNSEEN_ENV) {
        return None;
    }
    let room = spec.vram.unwrap_or(device_total.saturating_sub(LEFT_FREE));
    let fits = |tokens: u32| {
        at(anatomy, spec, Some(tokens)).is_some_and(|need| need.bytes_per_device <= room)
    };
    if fits(native) {
        return Some(native);
    }
    spec.vram?;
    // In steps that the engine pads to anyway. The need grows with the context.
    let step = u32::try_from(LLAMACPP_PAD).unwrap_or(LEAST);
    let (mut fit, mut too_many) = (LEAST / step, native / step + 1);
    if native <= LEAST || !fits(fit * step) {
        return None;
    }
    while too_many - fit > 1 {
        let middle = fit + (too_many - fit) / 2;
        if fits(middle * step) { fit = middle } else { too_many = middle }
    }
    Some(fit * step)
}

/// What a model is told whose declared memory does not hold the context that it was made for, in words; `None`: it is told nothing, or all.
#[must_use]
pub fn shortened(spec: &ModelSpec) -> Option<String> {
    let (vram, native) = (spec.vram?, spec.anatomy.as_ref()?.cache.as_ref()?.context_max?);
    let told = context(spec, vram).filter(|told| *told < native)?;
    let model = &spec.name;
    Some(format!(
        "{model} is told a context of {told} tokens, as much as is estimated to fit into its vram of {vram}, of the {native} that it was made for; context in its configuration says another"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::estimate;
    use super::super::tests::llama_3_8b;
    use super::*;

    fn spec() -> ModelSpec {
        let mut spec = crate::types::test_spec("m");
        let mut anatomy = llama_3_8b();
        anatomy.cache.as_mut().unwrap().context_max = Some(131_072);
        spec.anatomy = Some(anatomy);
        spec
    }

    /// 15 GiB of weights and 16 GiB of cache, and 2.4 GiB beside them.
    #[test]
    fn it_is_what_the_estimate_counts() {
        let spec = spec();
        let need = estimate(spec.anatomy.as_ref().unwrap(), &spec).unwrap().bytes_per_device;
        assert!(need > Bytes::gib(33) && need < Bytes::gib(34), "{need}");
        assert_eq!(context(&spec, Bytes::gib(80)), Some(131_072));
        assert_eq!(context(&spec, need + LEFT_FREE), Some(131_072));
        // It gets the whole device, and takes what it finds there.
        assert_eq!(context(&spec, need), None);
        assert_eq!(context(&spec, Bytes::gib(24)), None);
    }

    #[test]
    fn a_declaration_bounds_it_whatever_the_device_is() {
        let mut spec = spec();
        let need = |spec: &ModelSpec, tokens| {
            at(spec.anatomy.as_ref().unwrap(), spec, Some(tokens)).unwrap().bytes_per_device
        };
        spec.vram = Some(Bytes::gib(20));
        let tokens = context(&spec, Bytes::gib(80)).unwrap();
        assert_eq!(tokens % 256, 0);
        assert!(need(&spec, tokens) <= Bytes::gib(20), "{tokens}");
        assert!(need(&spec, tokens + 256) > Bytes::gib(20), "{tokens}");
        assert_eq!(context(&spec, Bytes::gib(24)), Some(tokens));
        let words = shortened(&spec).unwrap();
        assert!(words.contains(&format!("{tokens} tokens")) && words.contains("131072"), "{words}");
        spec.vram = Some(need(&spec, LEAST));
        assert_eq!(context(&spec, Bytes::gib(80)), Some(LEAST));
        spec.vram = Some(need(&spec, LEAST).saturating_sub(Bytes(1)));
        assert_eq!(context(&spec, Bytes::gib(80)), None, "it is not what it is taken for");
        spec.vram = Some(Bytes::gib(40));
        assert_eq!(
            context(&spec, Bytes::gib(80)),
            Some(131_072),
            "never more than it was made for"
        );
        assert_eq!(shortened(&spec), None);
    }

    #[test]
    fn what_no_device_holds_is_fitted_unless_somebody_says_how() {
        let devices = Bytes::gib(24);
        let mut large = spec();
        assert!(!is_fitted(&large, devices), "its cache can be made smaller");
        large.anatomy.as_mut().unwrap().weights = Bytes::gib(43);
        assert!(is_fitted(&large, devices) && !is_fitted(&large, Bytes::gib(48)));
        for arg in LAYERS.iter().chain(PARTS) {
            let mut said = large.clone();
            said.args = vec![format!("{arg}=40")];
            assert!(!is_fitted(&said, devices), "{arg}");
        }
        for name in PARTS_ENV.iter().chain(&[LAYERS_ENV]) {
            let mut said = large.clone();
            said.env.insert((*name).into(), "40".into());
            assert!(!is_fitted(&said, devices), "{name}");
        }
        large.engine = EngineKind::Vllm;
        assert!(!is_fitted(&large, devices));
        large.anatomy = None;
        assert!(!is_fitted(&large, devices));
    }

    #[test]
    fn who_says_something_is_not_contradicted() {
        let at = Bytes::gib(80);
        let mut said = spec();
        said.context = Some(8192);
        assert_eq!(context(&said, at), None);
        let mut vllm = spec();
        vllm.engine = EngineKind::Vllm;
        assert_eq!(context(&vllm, at), None);
        for (arg, told) in [
            ("--n-cpu-moe=20", None),
            ("--n_gpu_layers=20", None),
            ("-ngl=auto", None),
            ("--model-draft", None),
            ("--fit", None),
            ("--fit-target=64", None),
            ("--flash-attn=off", None),
            ("--flash-attn=on", Some(131_072)),
            ("-ngl=99", Some(131_072)),
            ("-ngl=all", Some(131_072)),
        ] {
            let mut unseen = spec();
            unseen.args = vec![arg.into()];
            assert_eq!(context(&unseen, at), told, "{arg}");
        }
        for name in PARTS_ENV.iter().chain(UNSEEN_ENV) {
            let mut unseen = spec();
            unseen.env.insert((*name).into(), "1".into());
            assert_eq!(context(&unseen, at), None, "{name}");
        }
        let mut unknown = spec();
        unknown.anatomy.as_mut().unwrap().cache = None;
        assert_eq!(context(&unknown, at), None);
        unknown.anatomy = None;
        assert_eq!(context(&unknown, at), None);
    }
}
