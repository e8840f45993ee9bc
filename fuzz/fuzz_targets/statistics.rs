//! What a file of statistics says it is about, beside the sums of a layer of two experts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moe_checkpoint::{Dtype, Entry, encode_header};
use moe_fuzz::{accepted, write};
use moe_math::statistics::{MixtureSizes, Quantity};
use moe_passes::LayerStatistics;
use moe_pipeline::StatisticsFile;

const SIZES: MixtureSizes = MixtureSizes { experts: 2, hidden: 3, width: 1 };

/// A file with `about`, and sums for two groups of tokens.
fn file(about: &[u8]) -> Vec<u8> {
    let mut end = about.len() as u64;
    let mut entries = vec![Entry {
        name: "about".into(),
        dtype: Dtype::U8,
        shape: vec![about.len()],
        start: 0,
        end,
    }];
    for quantity in Quantity::ALL {
        let shape = [vec![2], quantity.shape(SIZES)].concat();
        let start = end;
        end += shape.iter().product::<usize>() as u64 * 8;
        entries.push(Entry {
            name: format!("layers.1.{}", quantity.name()),
            dtype: Dtype::F64,
            shape,
            start,
            end,
        });
    }
    [encode_header(&entries), about.to_vec(), vec![0; end as usize - about.len()]].concat()
}

fuzz_target!(|about: &[u8]| {
    let Some(statistics) = accepted(StatisticsFile::open(&write("statistics", &file(about))))
    else {
        return;
    };
    for (index, sizes) in &statistics.about().layers {
        let sums = statistics.layer(*index).expect("they are finite").expect("it has the layer");
        assert_eq!(sums.len(), statistics.groups().len());
        assert!(sums.iter().all(|sums| sums.sizes() == *sizes));
    }
});
