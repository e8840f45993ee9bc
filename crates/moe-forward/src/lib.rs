//! Runs models: one generic decoder, driven by the typed layers, which are streamed one by one.
//!
//! A layer's weights are loaded, used and dropped. Hidden states of all tokens stay in memory or,
//! under a memory budget, in a scratch file. There is no code for a family here: what a layer does
//! follows from its type.

#![deny(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod attention;
mod batch;
mod calibration;
mod chat;
mod context;
mod corpus;
mod difference;
mod dtypes;
mod evaluate;
mod ffn;
mod finite;
mod guarded;
mod latent;
mod loader;
mod memory_limit;
mod observe;
mod observer;
mod overlap;
mod overrides;
mod parity;
mod prefetcher;
mod prompts;
mod quantized;
mod rotary;
mod router;
mod scores;
mod states;
mod sweep;
mod text;
mod text_read;
mod tokenizer;
pub mod train;
mod work;

pub use batch::Batch;
pub use calibration::{Calibration, Group, group_factors, labels};
pub use chat::Clock;
pub use corpus::{Corpus, DataSpec, Domain, TokenizeOptions};
pub use difference::{Difference, logit_difference};
pub use dtypes::{candle_dtype, float_dtype};
pub use evaluate::{Comparison, DomainReport, EvalReport, LayerLoad, check_vocabularies, evaluate};
pub use ffn::{ExpertsOn, expert_output, experts_on, neuron_activations, router_scores};
pub use finite::not_finite;
pub use guarded::panic_is_caught;
pub use loader::to_f32;
pub use memory_limit::{allocated, freed};
pub use observe::{GroupIndex, ObserverOptions, StatisticsObserver, UNCOUNTED};
pub use observer::{ExpertRun, LeftOut, Observer, Silent, Wants};
pub use overlap::overlap;
pub use parity::{Parity, max_difference, parity};
pub use prompts::{Prompts, load_prompts};
pub use quantized::quantized_values;
pub use router::LoadedRouter;
pub use states::Storage;
pub use sweep::{
    Converted, Converter, Forcing, Inputs, LOGIT_BYTES, LayerChange, LmHead, Role, Sweep, embed,
};
pub use text::{HELD_BYTES_A_TOKEN, Room};
pub use text_read::{TextRead, digests_of};
pub use tokenizer::{
    TOKENIZER_FILE, TextTokenizer, special_tokens, tokenizer_files, tokens_beyond_vocabulary,
};
pub use work::ForwardWork;
