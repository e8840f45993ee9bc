//! Super experts: a few experts with outputs so large that a model breaks without them
//! (2507.23279).

use std::collections::BTreeMap;

/// The share of experts below the threshold.
const PERCENTILE: f64 = 0.995;
/// A super expert's largest output is above this share of the model's largest.
const SHARE_OF_LARGEST: f64 = 0.1;

/// The experts, by layer, whose largest |output| is above both the 99.5th percentile of all experts
/// and a tenth of the largest.
///
/// `largest` holds the largest |output| of each expert, by the layer's index; dense layers count in
/// that index.
pub(crate) fn super_experts(largest: &BTreeMap<usize, Vec<f64>>) -> BTreeMap<usize, Vec<usize>> {
    let mut all: Vec<f64> = largest.values().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    let Some(greatest) = all.last() else { return BTreeMap::new() };
    let threshold = percentile(&all).max(SHARE_OF_LARGEST * greatest);
    let layers = largest.iter().map(|(layer, values)| {
        let above = (0..values.len()).filter(|e| values[*e] > threshold);
        (*layer, above.collect::<Vec<_>>())
    });
    layers.filter(|(_, experts)| !experts.is_empty()).collect()
}

/// The percentile of ascending values, with numpy's linear interpolation.
fn percentile(ascending: &[f64]) -> f64 {
    let position = PERCENTILE * (ascending.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    ascending[below] + (ascending[above] - ascending[below]) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_giant_is_found_in_its_own_layer() {
        // Layers 3 and 7 are sparse. Two of 400 experts are giants, and one of these is too small
        // beside the other.
        let mut largest = BTreeMap::from([(3, vec![1.0; 200]), (7, vec![1.0; 200])]);
        largest.get_mut(&3).unwrap()[5] = 900.0;
        largest.get_mut(&7).unwrap()[0] = 80.0;
        assert_eq!(super_experts(&largest), BTreeMap::from([(3, vec![5])]));
        largest.get_mut(&7).unwrap()[0] = 95.0;
        assert_eq!(super_experts(&largest), BTreeMap::from([(3, vec![5]), (7, vec![0])]));
    }

    #[test]
    fn equal_experts_are_not_super() {
        assert!(super_experts(&BTreeMap::from([(0, vec![2.0; 64])])).is_empty());
        assert!(super_experts(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile(range(101), 99.5) is 99.5.
        assert!((percentile(&(0..101).map(f64::from).collect::<Vec<_>>()) - 99.5).abs() < 1e-12);
    }
}
