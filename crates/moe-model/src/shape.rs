//! The sizes that determine the shapes of a model's tensors.

use crate::Result;
use crate::codec::Config;
use crate::family::LatentRule;
use crate::rope::{Rope, RopeShape};

/// The sizes that determine the shapes of a model's tensors.
pub(crate) struct ModelShape {
    pub hidden: usize,
    pub vocab: usize,
    pub heads: Heads,
}

impl ModelShape {
    pub fn read(config: Config<'_>) -> Result<Self> {
        let hidden = config.positive("hidden_size")?;
        Ok(Self {
            hidden,
            vocab: config.positive("vocab_size")?,
            heads: Heads::read(config, hidden)?,
        })
    }
}

/// Heads and their widths.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    pub fn read(config: Config<'_>, hidden: usize) -> Result<Self> {
        let heads = config.positive("num_attention_heads")?;
        let kv_heads = config.optional_usize("num_key_value_heads")?.unwrap_or(heads);
        let rule = &config.family.attention;
        if let Some(latent) = &rule.latent {
            let head_dim = latent_head_dim(config, latent, [heads, kv_heads])?;
            return Ok(Self { heads, kv_heads, head_dim });
        }
        let head_dim = config.optional_usize("head_dim")?.unwrap_or(hidden / heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let what = format!("is {kv_heads}, which doesn't divide {heads} heads");
            return Err(config.error("num_key_value_heads", &what));
        }
        if head_dim == 0 || (head_dim % 2 == 1 && !rule.partial_rotary) {
            let what = format!("is {head_dim}; rotary embeddings need an even number");
            return Err(config.error("head_dim", &what));
        }
        Ok(Self { heads, kv_heads, head_dim })
    }

    pub fn rope(self, config: Config<'_>) -> Result<Rope> {
        let rule = &config.family.attention;
        let width = match &rule.latent {
            Some(latent) => config.positive(&latent.rope)?,
            None => self.head_dim,
        };
        let shape = RopeShape {
            width,
            partial: rule.partial_rotary,
            interleaved: config.flag(&rule.interleaved)?,
        };
        Rope::decode(config, shape)
    }
}

/// Reads the width of queries and keys of latent attention, which needs as many key heads as query
/// heads.
fn latent_head_dim(
    config: Config<'_>,
    rule: &LatentRule,
    [heads, kv_heads]: [usize; 2],
) -> Result<usize> {
    if kv_heads != heads {
        let what = format!("is {kv_heads}, but there are {heads} heads");
        return Err(config.error("num_key_value_heads", &what));
    }
    Ok(config.usize(&rule.nope)? + config.positive(&rule.rope)?)
}
