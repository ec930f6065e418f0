//! Files and directories as model hubs and converters leave them, whole and damaged.

use super::gguf::tests::llama;
use super::*;
use crate::types::{CacheLayers, Reach};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn look(&self) -> Result<Anatomy, String> {
        look(&Weights::Path(self.0.path().into()), None)
    }
}

fn file(path: &Path) -> Anatomy {
    look(&Weights::Path(path.into()), None).unwrap()
}

/// One tensor of so many bytes, of which `there` are in the file.
fn tensors(bytes: usize, there: usize) -> Vec<u8> {
    let json = format!(r#"{{"w":{{"dtype":"BF16","shape":[1],"data_offsets":[0,{bytes}]}}}}"#);
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json.as_bytes());
    out.resize(out.len() + there, 0);
    out
}

const CONFIG: &[u8] =
    br#"{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "hidden_size": 512, "max_position_embeddings": 2048}"#;

#[test]
fn a_gguf_file_with_all_its_parts() {
    let dir = Dir::new();
    let header = llama();
    let single = file(&dir.write("a.gguf", &header));
    assert_eq!(single.weights, Bytes(header.len() as u64));
    assert_eq!(single.cache.unwrap().context_max, Some(8192));
    dir.write("g-00002-of-00002.gguf", &[0; 7]);
    let first = dir.write("g-00001-of-00002.gguf", &header);
    let split = file(&first);
    assert_eq!(split.weights, Bytes(header.len() as u64 + 7));
    assert!(split.cache.is_some());
    let projector = dir.write("mmproj-f16.gguf", &[0; 9]);
    let seeing = look(&Weights::Path(first.clone()), Some(&projector)).unwrap();
    assert_eq!((seeing.weights, seeing.projector), (split.weights, Bytes(9)));
    let why = look(&Weights::Path(first), Some(&dir.0.path().join("none"))).unwrap_err();
    assert!(why.contains("/none"), "{why}");
    std::fs::remove_file(projector).unwrap();
    let lonely = dir.write("h-00001-of-00002.gguf", &header);
    let why = look(&Weights::Path(lonely), None).unwrap_err();
    assert!(why.contains("h-00002-of-00002.gguf"), "{why}");
    // Of a directory the largest model counts, its later parts not alone.
    dir.write("z-00002-of-00002.gguf", &[0; 5000]);
    std::fs::remove_file(dir.0.path().join("h-00001-of-00002.gguf")).unwrap();
    assert_eq!(dir.look().unwrap().weights, split.weights);
}

#[test]
fn a_header_beyond_the_first_step_is_found() {
    let dir = Dir::new();
    let mut long = gguf::tests::Builder::new(3);
    long.text("general.architecture", "llama");
    long.strings("tokenizer.ggml.tokens", 200_000);
    for (key, value) in [
        ("llama.block_count", 2),
        ("llama.attention.head_count", 4),
        ("llama.embedding_length", 256),
    ] {
        long.number(key, value);
    }
    let bytes = long.bytes();
    assert!(bytes.len() > 1 << 20);
    assert!(file(&dir.write("a.gguf", &bytes)).cache.is_some());
    // Cut off within the header: the size is all that is left.
    let cut = file(&dir.write("b.gguf", &bytes[..2 << 20]));
    assert_eq!((cut.weights, cut.cache), (Bytes(2 << 20), None));
    assert!(cut.source.contains("ends within its header"), "{}", cut.source);
}

#[test]
fn no_file_steers_a_terminal_by_what_is_said_of_it() {
    let dir = Dir::new();
    let mut header = gguf::tests::Builder::new(3);
    header.text("general.architecture", "\x1b]52;c;bGw=\x07\x1b[2J");
    let plain = file(&dir.write("a.gguf", &header.bytes()));
    assert!(plain.source.contains("its architecture is no name"), "{}", plain.source);
    let odd = file(&dir.write("b\x1b[2J\n.gguf", &header.bytes()));
    for source in [plain.source, odd.source] {
        assert!(!source.contains(char::is_control), "{source:?}");
    }
    let why = look(&Weights::Path(dir.0.path().join("\x1b[2J")), None).unwrap_err();
    assert!(!why.contains(char::is_control), "{why:?}");
}

#[test]
fn a_directory_of_safetensors() {
    let dir = Dir::new();
    dir.write("config.json", CONFIG);
    dir.write("m-00001-of-00002.safetensors", &tensors(100, 100));
    dir.write("m-00002-of-00002.safetensors", &tensors(50, 50));
    dir.write("old.bin", &[0; 900]);
    let found = dir.look().unwrap();
    assert_eq!(found.weights, Bytes(150), "{}", found.source);
    let shape = found.cache.unwrap();
    let layer = CacheLayers { count: 4, heads: 2, key: 64, value: 64, reach: Reach::Whole };
    assert_eq!(shape.layers, [layer]);
    assert_eq!(shape.element_bytes, Some(2), "from the tensors");
    // The same weights in another format do not count twice.
    dir.write("consolidated.safetensors", &tensors(150, 150));
    assert_eq!(dir.look().unwrap().weights, Bytes(150));
    let index = br#"{"metadata": {}, "weight_map": {"a": "m-00001-of-00002.safetensors"}}"#;
    dir.write("model.safetensors.index.json", index);
    assert_eq!(dir.look().unwrap().weights, Bytes(100));
    dir.write("model.safetensors.index.json", b"{");
    assert_eq!(dir.look().unwrap().weights, Bytes(150), "a broken index is none");
}

#[test]
fn one_safetensors_file_without_an_index_and_by_a_link() {
    let (cache, snapshot) = (Dir::new(), Dir::new());
    let blob = cache.write("0123", &tensors(64, 64));
    std::os::unix::fs::symlink(&blob, snapshot.0.path().join("model.safetensors")).unwrap();
    let config = cache.write("4567", CONFIG);
    std::os::unix::fs::symlink(&config, snapshot.0.path().join("config.json")).unwrap();
    let found = snapshot.look().unwrap();
    assert_eq!(found.weights, Bytes(64));
    assert!(found.cache.is_some());
    assert_eq!(file(&snapshot.0.path().join("model.safetensors")), found);
}

#[test]
fn what_is_damaged_counts_with_what_is_known() {
    let dir = Dir::new();
    dir.write("model.safetensors", &tensors(1000, 10));
    let short = dir.look().unwrap();
    assert_eq!(short.weights, Bytes(1000), "the size that it should have");
    assert!(short.source.contains("shorter than its header says"), "{}", short.source);
    assert!(short.source.contains("cannot open"), "no config.json: {}", short.source);
    dir.write("model.safetensors", &[0xff; 20]);
    dir.write("config.json", b"{}");
    let odd = dir.look().unwrap();
    assert_eq!((odd.weights, odd.cache), (Bytes(20), None));
    assert!(odd.source.contains("config.json has no num_hidden_layers"), "{}", odd.source);
    let foreign = file(&dir.write("x.gguf", &[0; 10]));
    assert_eq!((foreign.weights, foreign.cache), (Bytes(10), None));
    assert!(foreign.source.contains("no GGUF file"), "{}", foreign.source);
    assert_eq!(file(&dir.write("x.bin", &[0; 11])).weights, Bytes(11));
}

#[test]
fn what_cannot_be_seen_has_a_reason() {
    let dir = Dir::new();
    assert!(dir.look().unwrap_err().contains("holds no weights"));
    let gone = look(&Weights::Path("/nonexistent/x".into()), None).unwrap_err();
    assert!(gone.contains("cannot see /nonexistent/x"), "{gone}");
    assert!(look(&Weights::Path("/dev/null".into()), None).is_err());
    assert!(look(&Weights::Builtin, None).is_err());
    // A directory or a pipe where a file should be holds nobody up.
    std::fs::create_dir(dir.0.path().join("config.json")).unwrap();
    let fifo = dir.0.path().join("model.safetensors");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(dir.look().unwrap_err().contains("empty"));
}
