//! Which files of a repository an engine needs. PURE.

use serde::Deserialize;

use super::projector::projector;

/// A repository at one revision, as the hub describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Repo {
    /// The revision's commit.
    pub sha: String,
    /// Its files.
    pub siblings: Vec<File>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct File {
    /// Its path in the repository.
    #[serde(rename = "rfilename")]
    pub path: String,
    /// In bytes.
    #[serde(default)]
    pub size: u64,
    /// Of large files.
    #[serde(default)]
    pub lfs: Option<Lfs>,
}

/// What the hub knows of a large file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Lfs {
    /// Digest of the content, in hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
    /// In bytes.
    #[serde(default)]
    pub size: u64,
}

impl File {
    /// In bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size, |lfs| lfs.size)
    }

    /// Digest of the content, where the hub has one.
    #[must_use]
    pub fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref())
    }

    pub(super) fn ends(&self, end: &str) -> bool {
        self.path.to_ascii_lowercase().ends_with(end)
    }
}

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The files.
    pub files: Vec<File>,
    /// The GGUF file that is named to the engine, the first of its parts; `None`: the directory is.
    pub main: Option<String>,
    /// Of a GGUF model the file by which it sees images, where there is one.
    pub projector: Option<String>,
    /// Programs of the repository's own, which are not fetched: what `auto_map` in its configuration may name.
    pub code: Vec<String>,
}

/// In the names of GGUF files that are no model: projectors, statistics for quantisation, models that guess for another. As llama.cpp has it
/// (`gguf_filename_is_model`).
const NO_MODELS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// Quantisations to take where nobody says which: good quality for its size first.
const PREFERRED: [&str; 4] = ["q4_k_m", "q4_k_s", "q4_0", "q8_0"];

/// Chooses: one GGUF model (with all its parts) where there are any, by `pattern` in its name; else safetensors with all that
/// belongs to them. For `engine` vllm it is the other way round, and for llamacpp there is GGUF alone. A GGUF model's projector comes
/// along, unless vLLM is to read it, which takes none, or it is to stay `blind`.
///
/// # Errors
/// Where nothing or too much fits, with what there is.
pub fn select(
    repo: &Repo,
    pattern: Option<&str>,
    engine: Option<&str>,
    blind: bool,
) -> Result<Selection, String> {
    if let Some(bad) = repo.siblings.iter().find(|file| !is_safe(&file.path)) {
        return Err(format!(
            "the hub names a file {:?}, which is no path below its directory",
            bad.path
        ));
    }
    let is_model = |file: &&File| {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        file.ends(".gguf") && !NO_MODELS.iter().any(|part| name.contains(part))
    };
    let ggufs: Vec<&File> = repo.siblings.iter().filter(is_model).collect();
    if engine == Some("vllm")
        && pattern.is_none()
        && let Ok(tensors) = tensors(repo)
    {
        return Ok(tensors);
    }
    if ggufs.is_empty() {
        if let Some(pattern) = pattern {
            return Err(format!("there is no GGUF file, so none with {pattern:?} in its name"));
        }
        if engine == Some("llamacpp") {
            return Err("there is no GGUF file, and llama.cpp reads nothing else".to_owned());
        }
        return tensors(repo);
    }
    let mut models: Vec<String> = ggufs.iter().map(|file| base(&file.path).to_owned()).collect();
    models.sort();
    models.dedup();
    let chosen = choose(&models, pattern)?;
    let mut files: Vec<File> =
        ggufs.into_iter().filter(|file| base(&file.path) == chosen).cloned().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let main = files.first().map(|file| file.path.clone());
    let sees = !blind && engine != Some("vllm");
    let projector = main.as_ref().filter(|_| sees).and_then(|main| projector(repo, main));
    files.extend(projector.cloned());
    let projector = projector.map(|file| file.path.clone());
    Ok(Selection { files, main, projector, code: Vec::new() })
}

fn choose<'m>(models: &'m [String], pattern: Option<&str>) -> Result<&'m str, String> {
    let names = || models.join(", ");
    let has =
        |model: &str, part: &str| model.to_ascii_lowercase().contains(&part.to_ascii_lowercase());
    let fitting: Vec<&String> =
        models.iter().filter(|model| pattern.is_none_or(|part| has(model, part))).collect();
    match (fitting.as_slice(), pattern) {
        ([only], _) => Ok(only.as_str()),
        ([], _) => Err(format!(
            "no GGUF file has {:?} in its name; there are: {}",
            pattern.unwrap_or_default(),
            names()
        )),
        (_, Some(part)) => {
            // The one that has nothing more there in its name: Q4_K before Q4_K_M.
            let exact = |model: &&&String| {
                let stem = model.strip_suffix(".gguf").unwrap_or(model);
                let last = stem.rsplit(['-', '.', '/']).next().unwrap_or_default();
                last.eq_ignore_ascii_case(part)
            };
            let exact: Vec<&&String> = fitting.iter().filter(exact).collect();
            match exact.as_slice() {
                [only] => Ok(only.as_str()),
                _ => Err(format!(
                    "several GGUF files have {part:?} in their name; there are: {}",
                    names()
                )),
            }
        }
        (_, None) => PREFERRED
            .iter()
            .find_map(|quant| {
                let mut found = models.iter().filter(|model| has(model, quant));
                found.next().filter(|_| found.next().is_none())
            })
            .map(String::as_str)
            .ok_or_else(|| {
                format!(
                    "there are several GGUF files; choose one with ID:PART of its name: {}",
                    names()
                )
            }),
    }
}

/// A part's name without its number: `m-00001-of-00003.gguf` → `m.gguf`.
pub(super) fn base(path: &str) -> &str {
    let stem = path.strip_suffix(".gguf").unwrap_or(path);
    let Some((head, count)) = stem.rsplit_once("-of-") else { return path };
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    match head.rsplit_once('-') {
        Some((name, number)) if digits(count) && digits(number) => name,
        _ => path,
    }
}

/// Whether a file is part of a module that `modules.json` of an embedding model names (`1_Pooling`, `2_Dense`): its settings, or its
/// weights. Without them vLLM pools as it thinks best, and without the projection, which are other vectors and no error.
fn of_module(path: &str) -> bool {
    let Some((dir, file)) = path.split_once('/') else { return false };
    let Some((number, name)) = dir.split_once('_') else { return false };
    let all = |text: &str, ok: fn(&u8) -> bool| !text.is_empty() && text.as_bytes().iter().all(ok);
    all(number, u8::is_ascii_digit)
        && all(name, u8::is_ascii_alphanumeric)
        && !file.contains('/')
        && (file == "config.json" || file.ends_with(".safetensors"))
}

fn tensors(repo: &Repo) -> Result<Selection, String> {
    let modules = repo.siblings.iter().any(|file| file.path == "modules.json");
    let wanted = |file: &&File| {
        if file.path.contains('/') {
            return modules && of_module(&file.path);
        }
        [".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken"]
            .iter()
            .any(|end| file.ends(end))
    };
    let files: Vec<File> = repo.siblings.iter().filter(wanted).cloned().collect();
    if !files.iter().any(|file| file.ends(".safetensors") && !file.path.contains('/')) {
        return Err("there are neither safetensors nor GGUF files, and other formats can run code of their own".to_owned());
    }
    if !files.iter().any(|file| file.path == "config.json") {
        return Err("there is no config.json, without which no engine knows the model".to_owned());
    }
    let is_code = |file: &&File| file.ends(".py") && !file.path.contains('/');
    let code = repo.siblings.iter().filter(is_code).map(|file| file.path.clone()).collect();
    Ok(Selection { files, main: None, projector: None, code })
}

/// Whether a path stays below the directory that it is put into.
fn is_safe(path: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control)
    };
    !path.is_empty() && path.len() < 512 && path.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(paths: &[&str]) -> Repo {
        let file = |path: &&str| File { path: (*path).into(), size: 1, lfs: None };
        Repo { sha: "s".into(), siblings: paths.iter().map(file).collect() }
    }

    fn main(paths: &[&str], pattern: Option<&str>) -> Result<String, String> {
        select(&repo(paths), pattern, None, false).map(|s| s.main.unwrap())
    }

    #[test]
    fn one_gguf_model_with_all_its_parts() {
        let parts = [
            "m-Q8_0-00001-of-00002.gguf",
            "m-Q8_0-00002-of-00002.gguf",
            "m-Q2_K.gguf",
            "README.md",
        ];
        let selection = select(&repo(&parts), Some("q8_0"), None, false).unwrap();
        assert_eq!(selection.main.as_deref(), Some("m-Q8_0-00001-of-00002.gguf"));
        assert_eq!(selection.files.len(), 2);
        assert_eq!(main(&["a.gguf"], None).unwrap(), "a.gguf");
        assert_eq!(main(&["m-Q4_K_M.gguf", "m-Q8_0.gguf"], None).unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(
            main(&["m-Q4_K.gguf", "m-IQ4_K_M.gguf", "x.gguf"], Some("x")).unwrap(),
            "x.gguf"
        );
        assert!(main(&["a.gguf", "b.gguf"], None).unwrap_err().contains("a.gguf, b.gguf"));
        for (part, model) in
            [("Q6_K", "m-Q6_K.gguf"), ("q6_k_l", "m-Q6_K_L.gguf"), ("f16", "m-f16.gguf")]
        {
            let models = ["m-Q6_K_L.gguf", "m-Q6_K.gguf", "m-bf16.gguf", "m-f16.gguf"];
            assert_eq!(main(&models, Some(part)).unwrap(), model);
        }
        let split = ["m-Q2_K_L-00001-of-00001.gguf", "m-Q2_K-00001-of-00001.gguf"];
        assert_eq!(main(&split, Some("Q2_K")).unwrap(), "m-Q2_K-00001-of-00001.gguf");
        assert!(main(&["m-Q4_K_M.gguf", "m-Q4_K_S.gguf"], Some("Q4_K")).is_err());
        assert!(main(&["a.gguf"], Some("q9")).unwrap_err().contains("there are: a.gguf"));
    }

    #[test]
    fn safetensors_with_what_belongs_to_them() {
        let paths = [
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "x/y.json",
            "modeling_x.py",
            "tools/convert.py",
        ];
        let selection = select(&repo(&paths), None, None, false).unwrap();
        let names: Vec<&str> = selection.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["model.safetensors", "config.json", "tokenizer.json"]);
        assert_eq!(selection.main, None);
        assert_eq!(selection.code, ["modeling_x.py"], "it runs nothing of that, and says so");
        assert!(select(&repo(&["pytorch_model.bin", "config.json"]), None, None, false).is_err());
        assert!(
            select(&repo(&["model.safetensors"]), None, None, false)
                .unwrap_err()
                .contains("config.json")
        );
        assert!(select(&repo(&paths), Some("q4"), None, false).is_err());
    }

    #[test]
    fn the_engine_says_which_of_both_it_is() {
        let both = repo(&["m.gguf", "model.safetensors", "config.json"]);
        let main =
            |repo: &Repo, engine| select(repo, None, engine, false).map(|selected| selected.main);
        let gguf = Ok(Some("m.gguf".to_owned()));
        assert_eq!(main(&both, None), gguf);
        assert_eq!(main(&both, Some("llamacpp")), gguf);
        assert_eq!(main(&both, Some("vllm")), Ok(None));
        assert_eq!(main(&repo(&["m.gguf"]), Some("vllm")), gguf, "vLLM reads it, too");
        let tensors = repo(&["model.safetensors", "config.json"]);
        assert!(main(&tensors, Some("llamacpp")).unwrap_err().contains("no GGUF"));
    }

    #[test]
    fn an_embedding_model_comes_with_its_modules() {
        let paths = [
            "model.safetensors",
            "config.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "2_Dense/x/config.json",
            "onnx/config.json",
            "openvino_1/model.safetensors",
            "modules.json",
        ];
        let names = |paths: &[&str]| -> Vec<String> {
            select(&repo(paths), None, None, false)
                .unwrap()
                .files
                .into_iter()
                .map(|file| file.path)
                .collect()
        };
        let root = ["model.safetensors", "config.json"];
        let modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"];
        assert_eq!(names(&paths), [&root[..], &modules, &["modules.json"]].concat());
        assert_eq!(names(&paths[..9]), root, "nothing names them");
        assert!(
            select(&repo(&paths[1..]), None, None, false).is_err(),
            "a module alone is no model"
        );
    }

    #[test]
    fn a_hub_that_names_files_elsewhere_is_not_followed() {
        for bad in ["../x.gguf", "/etc/x.gguf", "a//b.gguf", "a/../b.gguf", "a\x1b[2J.gguf"] {
            assert!(
                select(&repo(&[bad]), None, None, false).unwrap_err().contains("no path below"),
                "{bad}"
            );
        }
    }
}
