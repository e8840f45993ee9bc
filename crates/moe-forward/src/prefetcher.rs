//! Reads the weights that are needed next while earlier ones are used.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;

use moe_checkpoint::Result;
use moe_math::encoding::Encoded;
use moe_model::{Encoding, Weight};

use crate::context::{Context, tensor_label};
use crate::dtypes::candle_dtype;

/// Number of matrices that are read in advance: those of an expert.
const AHEAD: usize = 3;

/// Weights that are being read, in the order in which they will be needed.
pub(crate) struct Prefetcher {
    coming: RefCell<VecDeque<Weight>>,
    read: Receiver<Result<Encoded>>,
}

impl Prefetcher {
    /// Runs `work` while another thread reads those of `weights` whose bytes in files are used
    /// unchanged.
    pub fn reading<T>(weights: impl Iterator<Item = Weight>, work: impl FnOnce(&Self) -> T) -> T {
        let coming: VecDeque<Weight> = weights.filter(lies_plain).collect();
        let (send, read) = sync_channel(AHEAD);
        std::thread::scope(|scope| {
            let mut coming = coming;
            if !coming.is_empty() {
                let weights = coming.clone();
                let reader = Builder::new().spawn_scoped(scope, move || read_all(&weights, &send));
                if reader.is_err() {
                    // Without a thread, each weight is read when it is needed.
                    coming.clear();
                }
            }
            let prefetcher = Self { coming: RefCell::new(coming), read };
            work(&prefetcher)
        })
    }

    /// Returns the bytes of `weight` if it is the next one; None otherwise.
    pub fn take(&self, weight: &Weight) -> Option<Result<Encoded>> {
        self.coming.borrow_mut().pop_front_if(|next| next.same_source(weight))?;
        self.read.recv().ok()
    }
}

/// Reads the bytes of a plain weight.
pub(crate) fn read(weight: &Weight) -> Result<Encoded> {
    let mut values = Encoded::zeros(candle_dtype(weight)?, weight.elements())
        .context(|| tensor_label(weight))?;
    weight.read_into(values.bytes_mut())?;
    Ok(values)
}

/// Reads `weights` in order, and stops at an error or when the channel closes.
fn read_all(weights: &VecDeque<Weight>, send: &SyncSender<Result<Encoded>>) {
    for weight in weights {
        let found = read(weight);
        let failed = found.is_err();
        if send.send(found).is_err() || failed {
            return;
        }
    }
}

/// Returns whether the bytes in the file can be used unchanged. Weights that are computed or
/// decoded may need the device, and this thread's tensors.
fn lies_plain(weight: &Weight) -> bool {
    weight.stored().is_some() && matches!(weight.encoding(), Encoding::Plain)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use moe_model::Model;

    use super::*;

    fn weights(model: &Model) -> Vec<Weight> {
        let (_, moe) = model.moes().next().unwrap();
        moe.experts
            .iter()
            .flat_map(|expert| expert.linears())
            .map(|linear| linear.weight.clone())
            .collect()
    }

    fn model() -> Model {
        Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/moe")).unwrap()
    }

    #[test]
    fn prefetched_bytes_are_those_of_the_file() {
        let all = weights(&model());
        Prefetcher::reading(all.iter().cloned(), |prefetcher| {
            for weight in &all {
                let mut found = prefetcher.take(weight).unwrap().unwrap();
                assert_eq!(found.bytes_mut(), weight.read().unwrap(), "{}", weight.name());
            }
            assert!(prefetcher.take(&all[0]).is_none());
        });
    }

    /// A weight out of order is read by its user, and weights that nobody takes don't block.
    #[test]
    fn weights_out_of_order_are_read_by_their_user() {
        let all = weights(&model());
        Prefetcher::reading(all.iter().cloned(), |prefetcher| {
            assert!(prefetcher.take(&all[5]).is_none());
            assert!(prefetcher.take(&all[0]).unwrap().is_ok());
        });
    }
}
