//! Sums statistics of experts' activations and outputs on the device that has the tokens.
//!
//! On a CPU every product is added in f64: that is the reference. A GPU adds a few thousand rows in
//! f32, and such parts are read back once for each layer ([`DeferredReadback`]), so that no expert
//! waits for the host.

use candle_core::{DType, Result, Tensor};

use crate::deferred_readback::DeferredReadback;
use crate::statistics::{CalibrationSums, Quantity};

/// Maximum number of rows that a device adds in f32.
const ROWS: usize = 4096;

/// The results of running an expert on some rows of tokens.
pub struct ExpertResults<'a> {
    /// Index of the expert.
    pub expert: usize,
    /// The gate applied to each row.
    pub gates: &'a [f32],
    /// φ, `[rows, width]`.
    pub activations: &'a Tensor,
    /// f, `[rows, hidden]`.
    pub outputs: &'a Tensor,
}

/// Adds to the sums of groups of tokens. Call [`Observed::finish`] before reading the sums.
#[derive(Default)]
pub struct Observed {
    /// Whether rows are added as on a device even on the CPU.
    on_device: bool,
    parts: DeferredReadback<ObservedPart>,
}

/// Identifies a part that is still on the device, and says what it holds.
enum ObservedPart {
    /// ‖f‖² and max |f| of each row, then Σ g f, Σ φ, Σ (g φ)² and max |g φ|.
    Expert { group: usize, expert: usize, gates: Vec<f32> },
    /// Σ z, then Σ zᵢ zⱼ.
    Logits { group: usize },
    /// Σ f
    Sampled { group: usize, expert: usize },
}

impl Observed {
    /// Sums on the CPU as a device would.
    #[cfg(test)]
    fn as_on_device() -> Self {
        Self { on_device: true, ..Self::default() }
    }

    fn queues(&self, rows: &Tensor) -> bool {
        self.on_device || !rows.device().is_cpu()
    }

    /// Adds the results of an expert. `counted` holds the rows to count, ascending, each with the
    /// group whose sums it goes to.
    ///
    /// # Errors
    /// If the device fails.
    pub fn expert(
        &mut self,
        sums: &mut [CalibrationSums],
        ran: &ExpertResults<'_>,
        counted: &[(usize, usize)],
    ) -> Result<()> {
        if !self.queues(ran.outputs) {
            return add_expert(sums, ran, counted);
        }
        for (group, rows) in by_group(counted, sums.len()) {
            let gates: Vec<f32> = rows.iter().map(|row| ran.gates[*row as usize]).collect();
            let sums =
                expert_sums(&pick(ran.activations, &rows)?, &pick(ran.outputs, &rows)?, &gates)?;
            self.parts.push(ObservedPart::Expert { group, expert: ran.expert, gates }, sums);
        }
        Ok(())
    }

    /// Adds the router's `logits`, `[tokens, experts]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(
        &mut self,
        sums: &mut [CalibrationSums],
        logits: &Tensor,
        counted: &[(usize, usize)],
    ) -> Result<()> {
        if !self.queues(logits) {
            return add_logits(sums, logits, counted);
        }
        for (group, rows) in by_group(counted, sums.len()) {
            let z = pick(logits, &rows)?;
            let both = Tensor::cat(&[z.sum(0)?, z.t()?.matmul(&z)?.flatten_all()?], 0)?;
            self.parts.push(ObservedPart::Logits { group }, both);
        }
        Ok(())
    }

    /// Adds `outputs`, `[rows, hidden]`, of an expert that was run on tokens whether or not they
    /// chose it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn sampled(
        &mut self,
        sums: &mut [CalibrationSums],
        expert: usize,
        outputs: &Tensor,
        counted: &[(usize, usize)],
    ) -> Result<()> {
        if !self.queues(outputs) {
            let rows = outputs.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            for (group, row) in counted {
                add(sums[*group].of_mut(Quantity::SampledOutputs, expert), &rows[*row], 1.0);
            }
            return Ok(());
        }
        for (group, rows) in by_group(counted, sums.len()) {
            self.parts.push(ObservedPart::Sampled { group, expert }, pick(outputs, &rows)?.sum(0)?);
        }
        Ok(())
    }

    /// Reads the parts that are still on the device, and adds them.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish(&mut self, sums: &mut [CalibrationSums]) -> Result<()> {
        for (part, values) in self.parts.take()? {
            match part {
                ObservedPart::Expert { group, expert, gates } => {
                    take_expert(&mut sums[group], expert, &gates, &values)
                }
                ObservedPart::Logits { group } => {
                    let experts = sums[group].sizes().experts;
                    add(sums[group].get_mut(Quantity::Logits), &values[..experts], 1.0);
                    add(sums[group].get_mut(Quantity::LogitProducts), &values[experts..], 1.0);
                }
                ObservedPart::Sampled { group, expert } => {
                    add(sums[group].of_mut(Quantity::SampledOutputs, expert), &values, 1.0);
                }
            }
        }
        Ok(())
    }
}

/// The rows of each group that has any, in parts of at most [`ROWS`].
fn by_group(counted: &[(usize, usize)], groups: usize) -> Vec<(usize, Vec<u32>)> {
    let parts = (0..groups).flat_map(|group| {
        let rows: Vec<u32> =
            counted.iter().filter(|(of, _)| *of == group).map(|(_, row)| *row as u32).collect();
        rows.chunks(ROWS).map(|rows| (group, rows.to_vec())).collect::<Vec<_>>()
    });
    parts.collect()
}

/// The given rows in f32.
fn pick(t: &Tensor, rows: &[u32]) -> Result<Tensor> {
    t.index_select(&Tensor::from_slice(rows, rows.len(), t.device())?, 0)?.to_dtype(DType::F32)
}

/// The values of [`ObservedPart::Expert`].
fn expert_sums(activations: &Tensor, outputs: &Tensor, gates: &[f32]) -> Result<Tensor> {
    let gates = Tensor::from_slice(gates, (gates.len(), 1), outputs.device())?;
    let gated = activations.broadcast_mul(&gates)?;
    let parts = [
        outputs.sqr()?.sum(1)?,
        outputs.abs()?.max(1)?,
        outputs.t()?.matmul(&gates)?.flatten_all()?,
        activations.sum(0)?,
        gated.sqr()?.sum(0)?,
        gated.abs()?.max(0)?,
    ];
    Tensor::cat(&parts, 0)
}

fn take_expert(sums: &mut CalibrationSums, expert: usize, gates: &[f32], values: &[f32]) {
    let sizes = sums.sizes();
    let (squares, rest) = values.split_at(gates.len());
    let (largest, rest) = rest.split_at(gates.len());
    let (outputs, rest) = rest.split_at(sizes.hidden);
    let (activations, rest) = rest.split_at(sizes.width);
    let (gated_squares, gated_largest) = rest.split_at(sizes.width);
    for ((gate, square), largest) in gates.iter().zip(squares).zip(largest) {
        add_row(sums, expert, f64::from(*gate), f64::from(*square), f64::from(*largest));
    }
    add(sums.of_mut(Quantity::GatedOutputs, expert), outputs, 1.0);
    add(sums.of_mut(Quantity::Activations, expert), activations, 1.0);
    add(sums.of_mut(Quantity::GatedSquareActivations, expert), gated_squares, 1.0);
    raise(sums.of_mut(Quantity::LargestGatedActivations, expert), gated_largest, 1.0);
}

fn add_expert(
    sums: &mut [CalibrationSums],
    ran: &ExpertResults<'_>,
    counted: &[(usize, usize)],
) -> Result<()> {
    let activations = ran.activations.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let outputs = ran.outputs.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for &(group, row) in counted {
        let sums = &mut sums[group];
        let gate = f64::from(ran.gates[row]);
        let phi = &activations[row];
        let f = &outputs[row];
        let square: f64 = f.iter().map(|f| f64::from(*f).powi(2)).sum();
        let largest = f.iter().fold(0f32, |most, f| most.max(f.abs()));
        add_row(sums, ran.expert, gate, square, f64::from(largest));
        add(sums.of_mut(Quantity::GatedOutputs, ran.expert), f, gate);
        add(sums.of_mut(Quantity::Activations, ran.expert), phi, 1.0);
        let squares = sums.of_mut(Quantity::GatedSquareActivations, ran.expert);
        squares.iter_mut().zip(phi).for_each(|(sum, phi)| *sum += (gate * f64::from(*phi)).powi(2));
        raise(sums.of_mut(Quantity::LargestGatedActivations, ran.expert), phi, gate);
    }
    Ok(())
}

/// Adds the quantities that are one number for each row.
fn add_row(sums: &mut CalibrationSums, expert: usize, gate: f64, square: f64, largest: f64) {
    let mut one = |quantity, value: f64| sums.of_mut(quantity, expert)[0] += value;
    one(Quantity::Tokens, 1.0);
    one(Quantity::Gates, gate);
    one(Quantity::GatedNorms, gate * square.sqrt());
    one(Quantity::Norms, square.sqrt());
    one(Quantity::SquareNorms, square);
    let most = &mut sums.of_mut(Quantity::Largest, expert)[0];
    *most = most.max(largest);
}

fn add_logits(
    sums: &mut [CalibrationSums],
    logits: &Tensor,
    counted: &[(usize, usize)],
) -> Result<()> {
    let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for &(group, token) in counted {
        let (sums, z) = (&mut sums[group], &logits[token]);
        add(sums.get_mut(Quantity::Logits), z, 1.0);
        for (row, factor) in sums.get_mut(Quantity::LogitProducts).chunks_exact_mut(z.len()).zip(z)
        {
            add(row, z, f64::from(*factor));
        }
    }
    Ok(())
}

/// sums += factor · values
fn add(sums: &mut [f64], values: &[f32], factor: f64) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * f64::from(*value));
}

/// sums = max(sums, |factor · values|)
fn raise(sums: &mut [f64], values: &[f32], factor: f64) {
    sums.iter_mut()
        .zip(values)
        .for_each(|(most, value)| *most = most.max((factor * f64::from(*value)).abs()));
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::{generator, normal};
    use crate::statistics::MixtureSizes;

    fn random(rows: usize, columns: usize, stream: u64) -> Tensor {
        let values = normal(rows * columns, 1.0, &mut generator(1, stream));
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    /// Two groups and rows that don't count, in more than one part.
    #[test]
    fn a_device_has_the_sums_of_the_reference() {
        let sizes = MixtureSizes { experts: 3, hidden: 5, width: 7 };
        let rows = 2 * ROWS + 100;
        let counted: Vec<_> =
            (0..rows).filter(|row| row % 5 != 2).map(|row| (row % 2, row)).collect();
        let gates = normal(rows, 1.0, &mut generator(1, 9));
        let observe = |mut observed: Observed| {
            let mut sums = vec![CalibrationSums::new(sizes); 2];
            for expert in [0, 2] {
                let stream = 3 * expert as u64;
                let (activations, outputs) = (random(rows, 7, stream), random(rows, 5, stream + 1));
                let ran = ExpertResults {
                    expert,
                    gates: &gates,
                    activations: &activations,
                    outputs: &outputs,
                };
                observed.expert(&mut sums, &ran, &counted).unwrap();
                observed.sampled(&mut sums, expert, &outputs, &counted[..50]).unwrap();
            }
            observed.logits(&mut sums, &random(rows, 3, 8), &counted).unwrap();
            observed.finish(&mut sums).unwrap();
            sums
        };
        let (device, reference) = (observe(Observed::as_on_device()), observe(Observed::default()));
        for (device, reference) in device.iter().zip(&reference) {
            assert_eq!(device.get(Quantity::Tokens), reference.get(Quantity::Tokens));
            for quantity in Quantity::ALL {
                let size =
                    reference.get(quantity).iter().fold(0f64, |most, value| most.max(value.abs()));
                for (found, expected) in device.get(quantity).iter().zip(reference.get(quantity)) {
                    assert!(
                        (found - expected).abs() <= 1e-5 * size,
                        "{}: {found}, {expected}",
                        quantity.name()
                    );
                }
            }
        }
    }
}
