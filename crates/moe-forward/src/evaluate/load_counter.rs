//! Counts the tokens that were routed to each expert.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::load::Load;
use moe_math::routing::Routing;

use super::report::LayerLoad;
use crate::corpus::Corpus;
use crate::observer::Observer;

/// Counts tokens per layer, domain and expert, and passes events on.
pub(super) struct LoadCounter<'a> {
    /// The domain of each token.
    domain_of: Vec<usize>,
    domains: usize,
    /// For each layer: its index, tokens seen in it, and counts by domain and expert.
    layers: Vec<(usize, usize, Vec<Vec<u64>>)>,
    next: &'a mut dyn Observer,
}

impl<'a> LoadCounter<'a> {
    pub fn new(corpus: &Corpus, next: &'a mut dyn Observer) -> Self {
        let mut domain_of = Vec::new();
        for (index, domain) in corpus.domains.iter().enumerate() {
            let tokens = domain.sequences.iter().map(Vec::len).sum();
            domain_of.extend(std::iter::repeat_n(index, tokens));
        }
        Self { domain_of, domains: corpus.domains.len(), layers: Vec::new(), next }
    }

    pub fn finish(self) -> Vec<LayerLoad> {
        let layers = self.layers.into_iter();
        layers
            .map(|(layer, _, counts_by_domain)| LayerLoad {
                layer,
                load: Load::new(total(&counts_by_domain)),
                counts_by_domain,
            })
            .collect()
    }
}

impl Observer for LoadCounter<'_> {
    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        if self.layers.last().is_none_or(|(last, _, _)| *last != layer) {
            self.layers.push((layer, 0, vec![vec![0; routing.experts]; self.domains]));
        }
        let (_, seen, counts) = self.layers.last_mut().expect("it was just pushed");
        for (token, selected) in routing.selected.chunks_exact(routing.top_k).enumerate() {
            let counts = &mut counts[self.domain_of[*seen + token]];
            selected.iter().for_each(|e| counts[*e as usize] += 1);
        }
        *seen += routing.tokens();
        self.next.routed(layer, logits, routing)
    }

    fn layer_done(&mut self, layer: usize, layers: usize) -> Result<()> {
        self.next.layer_done(layer, layers)
    }
}

/// Adds up counts `[domain][expert]` over the domains.
fn total(by_domain: &[Vec<u64>]) -> Vec<u64> {
    (0..by_domain[0].len())
        .map(|expert| by_domain.iter().map(|counts| counts[expert]).sum())
        .collect()
}
