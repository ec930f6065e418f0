//! What a model's files say about the memory it will need.

use super::Bytes;

/// A model as its files describe it, before it ever ran.
///
/// Read once per configuration by the weights adapter; the estimate of a model's need is computed from it. What the
/// files do not say is `None`, never 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anatomy {
    /// Size of the weights: files on disk, which is also what an engine keeps in memory.
    pub weights: Bytes,
    /// Size of what makes images part of the prompt (llama.cpp's projector), which is a file of its own; zero: there is none.
    pub projector: Bytes,
    /// The key-value cache; `None` where no file describes it in a way that is understood.
    pub cache: Option<CacheShape>,
    /// Which files said so, and why `cache` is absent where it is: for people.
    pub source: String,
}

/// What a model remembers of each token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheShape {
    /// Its layers, equal ones together. Empty: the model holds no cache (an encoder for embeddings).
    pub layers: Vec<CacheLayers>,
    /// Tokens that the model was made for; `None`: not said.
    pub context_max: Option<u32>,
    /// Bytes of one number in the model's own type (2 for bf16 and f16): what vLLM's cache type `auto` means.
    pub element_bytes: Option<u32>,
    /// What one layer that keeps a state keeps of one sequence, on all devices together; `None`: not said, or there is none.
    pub state: Option<Bytes>,
}

/// Layers with caches of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLayers {
    /// How many.
    pub count: u32,
    /// Key-value heads; 1 where all heads share a compressed cache (MLA).
    pub heads: u32,
    /// Numbers in the key of one head and token.
    pub key: u32,
    /// Numbers in the value of one head and token; 0 where it is made from the key (MLA).
    pub value: u32,
    /// How far back these layers look.
    pub reach: Reach,
}

/// How much of a sequence a layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All of it.
    Whole,
    /// So many of the last tokens (sliding or chunked attention).
    Window(u32),
    /// A state that does not grow with the sequence (linear attention, Mamba).
    State,
    /// What an encoder made of the input, and nothing of what is written (the cross attention of Whisper).
    Encoded,
}

impl CacheShape {
    /// Adds one layer to the equal ones.
    pub fn push(&mut self, layer: CacheLayers) {
        let equal = |l: &&mut CacheLayers| CacheLayers { count: layer.count, ..**l } == layer;
        match self.layers.iter_mut().find(equal) {
            Some(known) => known.count = known.count.saturating_add(layer.count),
            None => self.layers.push(layer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_layers_are_counted_together() {
        let layer = CacheLayers { count: 1, heads: 8, key: 128, value: 128, reach: Reach::Whole };
        let mut shape = CacheShape::default();
        shape.push(layer);
        shape.push(CacheLayers { reach: Reach::Window(512), ..layer });
        shape.push(layer);
        let counts: Vec<u32> = shape.layers.iter().map(|l| l.count).collect();
        assert_eq!(counts, [2, 1]);
    }
}
