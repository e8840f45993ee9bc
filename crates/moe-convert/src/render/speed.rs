//! Tables of times, rates and errors on a machine.

use candle_core::DeviceLocation;
use moe_pipeline::{
    BenchReport, BenchedPass, BenchedStage, ByteSize, Check, Overlap, Stage, Timings,
    peak_live_bytes, process_peak_memory_bytes,
};

use super::table::{facts, table};

/// Formats the output of `bench`.
pub fn bench(report: &BenchReport) -> String {
    let BenchReport { like, layers: [layers, all], tokens, bytes, peaks, passes } = report;
    let mut text = facts(vec![
        ("model", format!("random, {layers} of {all} layers like {like}: {}", ByteSize(*bytes))),
        ("tokens", tokens.to_string()),
        ("product", format!("{:.1} GFLOP/s", peaks.flops / 1e9)),
        ("copy", format!("{}/s read and written", ByteSize(peaks.bytes as u64))),
    ]);
    let share = |stage: &BenchedStage| {
        stage.of_peak.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share))
    };
    for BenchedPass { pass, seconds, whole_model_seconds, stages } in passes {
        let rows =
            stages.iter().map(|s| stage_row(&s.stage).into_iter().chain([share(s)]).collect());
        text += &format!(
            "\n{pass}: {seconds:.1} s; {whole_model_seconds:.0} s for {all} such layers\n"
        );
        text += &table(&["stage", "time", "rate", "of peak"], rows);
    }
    text
}

/// Formats the output of `selftest`.
pub fn selftest(compute: &moe_math::Compute, checks: &[Check]) -> String {
    let rows = checks.iter().map(|c| {
        vec![
            c.name.clone(),
            c.cases.to_string(),
            format!("{:.2e}", c.error),
            format!("{:.0e}", c.tolerance),
            c.differing.to_string(),
            if c.passed() { "ok" } else { "FAILED" }.to_owned(),
        ]
    });
    let device = match compute.device.location() {
        DeviceLocation::Cpu => "the CPU".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    };
    let header = ["check", "cases", "max error", "tolerance", "other choices", ""];
    format!("selftest on {device} in {}\n{}", compute.dtype.as_str(), table(&header, rows))
}

/// Formats the output of --timings.
pub fn timings(timings: &Timings) -> String {
    let memory = |stage: &Stage| {
        stage.peak_live_bytes.map_or(String::new(), |bytes| ByteSize(bytes).to_string())
    };
    let rows =
        timings.0.iter().map(|stage| stage_row(stage).into_iter().chain([memory(stage)]).collect());
    let peaks =
        [("peak memory", process_peak_memory_bytes()), ("peak live memory", peak_live_bytes())];
    let peaks = peaks
        .into_iter()
        .filter_map(|(name, bytes)| Some(format!("  {name} {}\n", ByteSize(bytes?))));
    table(&["stage", "time", "rate", "live memory"], rows) + &peaks.collect::<String>()
}

/// Returns the name, time and rate of a stage.
fn stage_row(s: &Stage) -> Vec<String> {
    let rate = match (s.bytes, s.flops, s.overlap) {
        (Some(bytes), ..) => format!("{}/s", ByteSize((bytes as f64 / s.seconds.max(1e-9)) as u64)),
        (_, Some(flops), _) => format!("{:.1} GFLOP/s", flops / s.seconds.max(1e-9) / 1e9),
        (_, _, Overlap::BesideNext) => "beside the next".to_owned(),
        _ => String::new(),
    };
    let times = s.calls.map_or(String::new(), |calls| format!(" (× {calls})"));
    let name = match s.overlap {
        Overlap::WithinNext => format!("· {}{times}", s.name),
        _ => s.name.clone(),
    };
    vec![name, format!("{:.3} s", s.seconds), rate]
}
