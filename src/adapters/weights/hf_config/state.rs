//! What a layer of linear attention or Mamba keeps of a sequence.
//!
//! Purpose: its size in bytes, by the formulas of vLLM's `MambaStateShapeCalculator`
//! (`model_executor/layers/mamba/mamba_utils.py`, 0.33). Owner: nobody. Invariants: arithmetic saturates; what is not understood is
//! `None`.

use super::Config;
use crate::types::Bytes;

/// Numbers that a convolution keeps of each token, tokens that it looks at, and numbers of the state proper.
struct Parts {
    convolved: u64,
    kernel: u64,
    state: u64,
}

impl Config<'_> {
    /// Of one layer and sequence, on all devices together.
    pub(super) fn state(&self) -> Option<Bytes> {
        let parts = self
            .delta()
            .or_else(|| self.kimi())
            .or_else(|| self.mamba())
            .or_else(|| self.short())?;
        // The convolution's in the model's type; the state in 4 bytes, which errs upwards where it is in that type too.
        let kept = parts.convolved.saturating_mul(parts.kernel.saturating_sub(1)).saturating_mul(2);
        Some(Bytes(kept.saturating_add(parts.state.saturating_mul(4))))
    }

    /// Qwen3-Next and its successors (`gated_delta_net_state_shape`).
    fn delta(&self) -> Option<Parts> {
        let key = self.number(&["linear_key_head_dim"])?;
        let value = self.number(&["linear_value_head_dim"])?;
        let keys = self.number(&["linear_num_key_heads"])?;
        let values = self.number(&["linear_num_value_heads"])?;
        Some(Parts {
            convolved: product(&[2, keys, key]).saturating_add(product(&[values, value])),
            kernel: self.number(&["linear_conv_kernel_dim"]).unwrap_or(4),
            state: product(&[values, value, key]),
        })
    }

    /// Kimi Linear (`kda_state_shape`).
    fn kimi(&self) -> Option<Parts> {
        let linear = self.get("linear_attn_config")?;
        let number = |key: &str| linear.get(key)?.as_u64();
        let (heads, size) = (number("num_heads")?, number("head_dim")?);
        Some(Parts {
            convolved: product(&[3, heads, size]),
            kernel: number("short_conv_kernel_size").unwrap_or(4),
            state: product(&[heads, size, size]),
        })
    }

    /// Mamba 2 where it has heads (`mamba2_state_shape`), else Mamba 1 (`mamba1_state_shape`).
    fn mamba(&self) -> Option<Parts> {
        let state = self.number(&["ssm_state_size", "mamba_d_state"])?;
        let heads = self.number(&["mamba_num_heads", "mamba_n_heads", "n_mamba_heads"]);
        let size = self.number(&["mamba_head_dim", "mamba_d_head", "mamba_headdim"]);
        let expanded =
            || Some(product(&[self.number(&["mamba_expand"])?, self.number(&["hidden_size"])?]));
        let inner =
            heads.zip(size).map(|(heads, size)| product(&[heads, size])).or_else(expanded)?;
        let groups = self.number(&["n_groups", "mamba_n_groups", "mamba_ngroups"]).unwrap_or(1);
        let grouped = if heads.is_some() { product(&[2, groups, state]) } else { 0 };
        Some(Parts {
            convolved: inner.saturating_add(grouped),
            kernel: self.number(&["conv_kernel", "mamba_d_conv"]).unwrap_or(4),
            state: product(&[inner, state]),
        })
    }

    /// LFM2: a convolution alone (`short_conv_state_shape`).
    fn short(&self) -> Option<Parts> {
        let kernel = self.number(&["conv_L_cache"])?;
        Some(Parts { convolved: self.number(&["conv_dim", "hidden_size"])?, kernel, state: 0 })
    }
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |all, factor| all.saturating_mul(*factor))
}
