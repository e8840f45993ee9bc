//! Memory budgets: the resident memory that goes with a number of live bytes, whether it fits, and
//! the error where it doesn't.

use moe_checkpoint::{Error, Kind, Result};
use moe_forward::{HELD_BYTES_A_TOKEN, Room};

use crate::live::{limit_resident_memory, live_bytes, resident_bytes};
use crate::resources::{ByteSize, process_peak_memory_bytes};

/// Memory held after text was read, beyond the text itself: mainly its tokenizer, and whatever
/// else stays allocated after reading.
const READING_BYTES: u64 = 1 << 20;
/// Memory that may be handed out beyond the budget between two looks at resident memory.
const BETWEEN_LOOKS_BYTES: u64 = 8 << 20;

/// Resident memory of a run that asks for `live` bytes at once: the allocator keeps to it (see
/// [`crate::resident_limit`]).
pub(crate) fn resident(live: u64) -> ByteSize {
    ByteSize(resident_bytes(live))
}

/// The maximum resident memory of such a run under a budget.
pub(crate) fn most_resident(live: u64) -> ByteSize {
    ByteSize(resident(live).0 + BETWEEN_LOOKS_BYTES)
}

/// Refuses work that doesn't fit in the budget; otherwise keeps resident memory below the budget.
/// `live` gives the bytes that the work asks for at once under a budget, beyond those held now:
/// with a smaller one, hidden states go to a file and graphs aren't kept. Returns these bytes; None
/// without a budget.
///
/// # Errors
/// [`Kind::Usage`] where it doesn't fit, with the smallest budget that works and the alternatives
/// that `ways` finds.
pub(crate) fn check_budget(
    budget: Option<ByteSize>,
    ways: impl FnOnce(ByteSize) -> Option<String>,
    live: impl Fn(ByteSize) -> Result<u64>,
) -> Result<Option<u64>> {
    let Some(budget) = budget else { return Ok(None) };
    let held = live_bytes().unwrap_or(0);
    let resident = |live| most_resident(live + held);
    if let Some(live) = live(budget).ok().filter(|live| resident(*live) <= budget) {
        // Memory that is handed out between two looks isn't resident yet at the first.
        limit_resident_memory(budget.0 - budget.0 / 8);
        return Ok(Some(live));
    }
    let least = least_budget(budget, |budget| live(budget).map_or(ByteSize(u64::MAX), resident));
    let what = format!("this run holds at least about {least} in memory, the budget is {budget}");
    let ways = ways(budget).map_or(String::new(), |ways| format!(", or {ways}"));
    let remedy = format!("give --memory-budget {}MB or more{ways}", with_margin(least));
    Err(Error::new(Kind::Usage, what).remedy(remedy))
}

/// Refuses a command that holds `live` bytes besides the program itself if the budget is too small
/// for it; `ways` says how to lower them, if that is possible.
///
/// # Errors
/// [`Kind::Usage`] where it doesn't fit.
pub fn check_small_budget(budget: Option<ByteSize>, live: u64, ways: Option<&str>) -> Result<()> {
    check_budget(budget, |_| ways.map(str::to_owned), |_| Ok(live)).map(drop)
}

/// The warning for a run that exceeded `budget` by at least a few percent. The run goes on, since
/// all its work would be lost otherwise, but the promise was wrong.
pub fn passed_budget(budget: ByteSize) -> Option<String> {
    let held = ByteSize(process_peak_memory_bytes()?);
    (held.0 > budget.0.saturating_add(budget.0 / 50)).then(|| {
        format!(
            "this run held {held} in memory, more than --memory-budget {budget}: please report its command and model"
        )
    })
}

/// The smallest budget to name, in megabytes: a little more than was found, since the memory held
/// now differs from run to run.
fn with_margin(found: ByteSize) -> u64 {
    (found.0 + found.0 / 100).div_ceil(1_000_000) + 1
}

/// The smallest budget above `too_small` that holds what is `needed` under it, to a megabyte.
fn least_budget(too_small: ByteSize, needed: impl Fn(ByteSize) -> ByteSize) -> ByteSize {
    let holds = |bytes: u64| needed(ByteSize(bytes)) <= ByteSize(bytes);
    let mut enough = too_small.0.max(1_000_000);
    while !holds(enough) && enough < u64::MAX / 2 {
        enough *= 2;
    }
    let mut short = too_small.0;
    while enough - short > 500_000 {
        let middle = short + (enough - short) / 2;
        if holds(middle) { enough = middle } else { short = middle }
    }
    ByteSize(enough)
}

/// Whether a run that asks for `live` bytes at once stays below `budget`.
pub(crate) fn fits(live: u64, budget: ByteSize) -> bool {
    most_resident(live + live_bytes().unwrap_or(0)) <= budget
}

/// Returns how much text fits in `budget`; None without one. `live` gives the bytes that the work
/// on a number of tokens asks for at once; `option` is the option that limits the tokens of a
/// label.
pub(crate) fn room(
    budget: Option<ByteSize>,
    option: &'static str,
    live: impl Fn(usize) -> Result<u64>,
) -> Option<Room> {
    const MAX_TOKENS: usize = 1 << 36;
    let budget = budget?;
    let holds = |tokens: usize| {
        let held = tokens as u64 * HELD_BYTES_A_TOKEN + READING_BYTES;
        // The work must also fit once the text has been read.
        live(tokens + tokens / 16).is_ok_and(|live| fits(live + held, budget))
    };
    let mut too_many = 2;
    while too_many < MAX_TOKENS && holds(too_many) {
        too_many *= 2;
    }
    let mut tokens = too_many / 2;
    while too_many - tokens > 1 + tokens / 128 {
        let middle = tokens + (too_many - tokens) / 2;
        if holds(middle) { tokens = middle } else { too_many = middle }
    }
    let tokens = if tokens > 1 { tokens } else { 0 };
    // Before the work begins there is more room for text than during it. The need of the work is
    // known and reported afterwards.
    let bytes = (tokens as u64 * HELD_BYTES_A_TOKEN).max(budget.0 / 8);
    Some(Room { tokens, bytes, option })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exceeded_budget_is_named_with_the_memory_that_was_held() {
        let held = process_peak_memory_bytes().unwrap();
        assert_eq!(passed_budget(ByteSize(u64::MAX / 2)), None);
        let said = passed_budget(ByteSize(held / 2)).unwrap();
        let budget = format!("more than --memory-budget {}", ByteSize(held / 2));
        assert!(said.contains(&budget) && said.contains("please report"), "{said}");
    }
}
