//! Reading ahead: the bytes of the weights that come next, while those before them are at work.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;

use moe_checkpoint::Result;
use moe_math::encoding::Encoded;
use moe_model::{Encoding, Weight};

use crate::context::Context;
use crate::dtypes::candle_dtype;

/// Matrices that are read before anyone asks for them: an expert's.
const AHEAD: usize = 3;

/// Weights on their way, in the order in which they will be asked for.
pub(crate) struct Prefetcher {
    coming: RefCell<VecDeque<Weight>>,
    read: Receiver<Result<Encoded>>,
}

impl Prefetcher {
    /// Runs `work` while another thread reads those of `weights` that lie in files as they are
    /// computed with.
    pub fn reading<T>(weights: impl Iterator<Item = Weight>, work: impl FnOnce(&Self) -> T) -> T {
        let coming: VecDeque<Weight> = weights.filter(lies_plain).collect();
        let (send, read) = sync_channel(AHEAD);
        std::thread::scope(|scope| {
            let mut coming = coming;
            if !coming.is_empty() {
                let weights = coming.clone();
                let reader = Builder::new().spawn_scoped(scope, move || read_all(&weights, &send));
                if reader.is_err() {
                    // Where no thread can start, each weight is read when it is needed.
                    coming.clear();
                }
            }
            let ahead = Self { coming: RefCell::new(coming), read };
            work(&ahead)
        })
    }

    /// What was read of `weight`, if it is the next one.
    pub fn take(&self, weight: &Weight) -> Option<Result<Encoded>> {
        self.coming.borrow_mut().pop_front_if(|next| next.same_source(weight))?;
        self.read.recv().ok()
    }
}

/// The bytes of a plain weight.
pub(crate) fn read(weight: &Weight) -> Result<Encoded> {
    let of = || format!("the tensor {}", weight.name());
    let mut values = Encoded::zeros(candle_dtype(weight)?, weight.elements()).context(of)?;
    weight.read_into(values.bytes_mut())?;
    Ok(values)
}

/// Ends where nobody wants more.
fn read_all(weights: &VecDeque<Weight>, send: &SyncSender<Result<Encoded>>) {
    for weight in weights {
        let found = read(weight);
        let failed = found.is_err();
        if send.send(found).is_err() || failed {
            return;
        }
    }
}

/// What is made, or decoded, may need the device, and this thread's tensors.
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
    fn what_was_read_ahead_is_what_is_read_now() {
        let all = weights(&model());
        Prefetcher::reading(all.iter().cloned(), |ahead| {
            for weight in &all {
                let mut found = ahead.take(weight).unwrap().unwrap();
                assert_eq!(found.bytes_mut(), weight.read().unwrap(), "{}", weight.name());
            }
            assert!(ahead.take(&all[0]).is_none());
        });
    }

    /// Neither one that comes later, nor all that nobody asks for, keep anyone waiting.
    #[test]
    fn another_order_is_read_by_whoever_asks() {
        let all = weights(&model());
        Prefetcher::reading(all.iter().cloned(), |ahead| {
            assert!(ahead.take(&all[5]).is_none());
            assert!(ahead.take(&all[0]).unwrap().is_ok());
        });
    }
}
