//! `selftest`: every family and pass beside its golden. On the CPU, or on the device that MOE_TEST_DEVICE names.

use moe_math::{Compute, open_device};
use moe_pipeline::{Quiet, selftest};

#[test]
fn all_is_as_in_the_goldens() {
    let name = std::env::var("MOE_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let compute = Compute { device: open_device(name.parse().unwrap()).unwrap(), ..Compute::cpu() };
    let checks = selftest(&compute, &Quiet).unwrap();
    for check in &checks {
        assert!(check.passed(), "{check:?}");
    }
    let cases = |start: &str| checks.iter().filter(|c| c.name.starts_with(start)).map(|c| c.cases).sum::<usize>();
    let least =
        [("forward", 30), ("upcycle", 3), ("observe", 50), ("prune: experts", 18), ("merge", 3), ("quantize", 40)];
    for (start, least) in least {
        assert!(cases(start) >= least, "{start}: {}", cases(start));
    }
}
