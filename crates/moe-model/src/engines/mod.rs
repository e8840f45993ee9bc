//! Decides which engines load a quantized mixture of experts.
//!
//! The rules were read in the sources of the versions that they name (files are cited at each), and
//! those of transformers tried as well (`golden/quantize/exact-config.md`,
//! `scripts/interop/quantized.py`). A case that no rule covers gets the answer "not known".

mod experts;
mod projections;
mod sglang;
mod sizes;
mod transformers;
mod verdict;
mod vllm;

use crate::assembly::Model;

use self::experts::QuantizedExperts;
use self::verdict::EngineAnswer;
pub use self::verdict::{Answer, Verdict};

impl Model {
    /// Says what vLLM, SGLang and transformers do with this model's quantized experts. Empty for a
    /// model without any.
    pub fn engines(&self) -> Vec<Verdict> {
        let Some(experts) = QuantizedExperts::of(self) else { return Vec::new() };
        vec![
            verdict(vllm::VERSION, vllm::takes(&experts)),
            verdict(sglang::VERSION, sglang::takes(&experts)),
            verdict(transformers::NEWER, transformers::newer(&experts)),
            verdict(transformers::OLDER, transformers::older(&experts)),
        ]
    }
}

fn verdict(engine: &str, found: EngineAnswer) -> Verdict {
    let (answer, says) = match found {
        Ok(says) => (Answer::Takes, says),
        Err((answer, says)) => (answer, says),
    };
    Verdict { engine: engine.to_owned(), answer, says }
}
