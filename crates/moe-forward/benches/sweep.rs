//! What statistics cost: a sweep over the built-in MoE that watches nothing, and sweeps that fill
//! statistics in.
//!
//! `cargo bench -p moe-forward --bench sweep`

use std::path::Path;

use divan::Bencher;
use divan::counter::ItemsCount;
use moe_forward::{Batch, ObserverOptions, Silent, StatisticsObserver, Storage, Sweep};
use moe_math::{Compute, sampling};
use moe_model::Model;

const SEQUENCES: usize = 16;
const LENGTH: usize = 256;

fn main() {
    divan::main();
}

fn model() -> Model {
    Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/moe"))
        .expect("a built-in model")
}

fn batch(model: &Model) -> Batch {
    let ids = sampling::token_ids(SEQUENCES * LENGTH, model.vocab, &mut sampling::generator(0, 0));
    Batch::new(ids.chunks(LENGTH))
}

#[divan::bench]
fn forward(bencher: Bencher<'_, '_>) {
    let (model, compute) = (model(), Compute::cpu());
    let batch = batch(&model);
    bencher.counter(ItemsCount::new(batch.tokens())).bench(|| {
        let mut sweep =
            Sweep::stored(&model, &batch, &compute, &Storage::default()).expect("embedded");
        sweep.run(&mut Silent).expect("a sweep");
    });
}

#[divan::bench(args = ["sums", "sums and experts left out"])]
fn statistics(bencher: Bencher<'_, '_>, what: &str) {
    let (model, compute) = (model(), Compute::cpu());
    let batch = batch(&model);
    bencher.counter(ItemsCount::new(batch.tokens())).bench(|| {
        let options = ObserverOptions {
            groups: 1,
            group_of: vec![0; batch.tokens()].into(),
            left_out: what != "sums",
            sample_every: 0,
        };
        let mut observer = StatisticsObserver::new(&model, options);
        let mut sweep =
            Sweep::stored(&model, &batch, &compute, &Storage::default()).expect("embedded");
        for index in 0..model.layers.len() {
            sweep.layer(index, &mut observer).expect("a layer");
            divan::black_box(observer.take().expect("sums"));
        }
    });
}
