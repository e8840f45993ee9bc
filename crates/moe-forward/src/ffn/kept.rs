//! Keeps outputs of experts until all have run.

use candle_core::Tensor;
use moe_math::routing::Routing;

/// Outputs of experts in the order in which these ran, and the row of each (token, choice).
pub(super) struct KeptOutputs {
    pub outputs: Vec<Tensor>,
    pub place: Vec<u32>,
    top_k: u32,
    rows: u32,
}

impl KeptOutputs {
    pub fn new(routing: &Routing) -> Self {
        Self {
            outputs: Vec::new(),
            place: vec![0; routing.selected.len()],
            top_k: routing.top_k as u32,
            rows: 0,
        }
    }

    pub fn push(&mut self, output: &Tensor) {
        self.outputs.push(output.clone());
    }

    /// Records the rows of an expert's outputs, which were pushed for `tokens`, at the positions
    /// `slots`.
    pub fn place(&mut self, slots: &[u32], tokens: &[u32]) {
        for slot in slots {
            let row =
                tokens.binary_search(&(slot / self.top_k)).expect("every slot's token is there");
            self.place[*slot as usize] = self.rows + row as u32;
        }
        self.rows += tokens.len() as u32;
    }
}
