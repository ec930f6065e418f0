//! Which projector belongs to a GGUF model: what makes images part of its prompts. PURE.

use super::select::{File, Repo, base};

/// The projector that llama.cpp itself would fetch with a model (`find_best_mmproj`): beside it or further up, as near as there is one; of
/// several the one whose numbers are about as wide as the model's; of equals the first.
pub(super) fn projector<'r>(repo: &'r Repo, main: &str) -> Option<&'r File> {
    let dir =
        |path: &str| path.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    let home = dir(main);
    let near = repo.siblings.iter().filter(|file| {
        file.ends(".gguf") && file.path.contains("mmproj") && home.starts_with(&dir(&file.path))
    });
    near.min_by_key(|file| {
        let further = home.len() - dir(&file.path).len();
        (further, bits(&file.path).abs_diff(bits(base(main))))
    })
}

/// How many bits the last part of a name says: 4 of `m-Q4_K_M.gguf`, 16 of `mmproj-BF16.gguf`, 0 where it says none.
fn bits(path: &str) -> u32 {
    let stem = path.strip_suffix(".gguf").unwrap_or(path);
    let last = stem.rsplit(['-', '.', '/']).next().unwrap_or_default();
    let digits = last.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fetch::select::select;

    fn repo(paths: &[&str]) -> Repo {
        let file = |path: &&str| File { path: (*path).into(), size: 1, lfs: None };
        Repo { sha: "s".into(), siblings: paths.iter().map(file).collect() }
    }

    /// What is chosen, as llama.cpp chooses it.
    #[test]
    fn a_gguf_model_comes_with_its_projector() {
        let paths = [
            "BF16/mmproj-F32.gguf",
            "BF16/vl-BF16.gguf",
            "mmproj-BF16.gguf",
            "mmproj-F16.gguf",
            "mmproj-F32.gguf",
            "vl-Q4_K_M.gguf",
            "vl-Q8_0-00001-of-00002.gguf",
            "vl-Q8_0-00002-of-00002.gguf",
            "mtp-vl-Q4_K_M.gguf",
        ];
        let of = |paths: &[&str], pattern, engine, blind| {
            let chosen = select(&repo(paths), Some(pattern), engine, blind).unwrap();
            let there =
                chosen.files.iter().any(|file| Some(&file.path) == chosen.projector.as_ref());
            assert_eq!(there, chosen.projector.is_some(), "what is named is fetched");
            assert!(chosen.main.unwrap().contains(pattern));
            chosen.projector
        };
        let seen = |paths: &[&str], pattern| of(paths, pattern, None, false).unwrap();
        assert_eq!(
            seen(&paths, "Q4_K_M"),
            "mmproj-BF16.gguf",
            "half as wide as F32, and the first"
        );
        assert_eq!(seen(&paths, "Q8_0"), "mmproj-BF16.gguf");
        assert_eq!(seen(&paths, "vl-BF16"), "BF16/mmproj-F32.gguf", "the nearest");
        let narrow = ["mmproj-m-F16.gguf", "mmproj-m-Q8_0.gguf", "m-Q4_K_M.gguf"];
        assert_eq!(seen(&narrow, "Q4_K_M"), "mmproj-m-Q8_0.gguf");
        assert_eq!(
            seen(&["mmproj-model-f16.gguf", "m-Q4_0.gguf"], "Q4_0"),
            "mmproj-model-f16.gguf"
        );
        assert_eq!(of(&paths, "Q4_K_M", Some("llamacpp"), true), None, "it is to know text alone");
        assert_eq!(of(&paths, "Q4_K_M", Some("vllm"), false), None, "it has no use for it");
        assert_eq!(
            of(&["x/mmproj-F16.gguf", "m-Q4_0.gguf"], "Q4_0", None, false),
            None,
            "another's"
        );
    }
}
