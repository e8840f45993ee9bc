//! Reads groups of experts from a config.

use moe_math::routing::{GroupScore, Groups};
use serde_json::Value;

use crate::Result;
use crate::codec::Config;
use crate::family::GroupsRule;

/// Returns the groups of a mixture of `experts` experts; None if they don't limit the choice.
pub(super) fn groups(
    config: &Config<'_>,
    rule: &GroupsRule,
    experts: usize,
) -> Result<Option<Groups>> {
    if rule
        .when
        .as_ref()
        .is_some_and(|when| config.get(&when.key).and_then(Value::as_str) != Some(&when.is))
    {
        return Ok(None);
    }
    let (count, kept) = (config.positive(&rule.count)?, config.positive(&rule.kept)?);
    let smallest = if rule.score == GroupScore::TopTwoSum { 2 } else { 1 };
    if !experts.is_multiple_of(count) || experts / count < smallest {
        let what = format!(
            "is {count}, but {experts} experts don't make as many equal groups of {smallest} or more"
        );
        return Err(config.error(&rule.count, &what));
    }
    if kept > count {
        return Err(config.error(&rule.kept, &format!("is {kept}, more than the {count} groups")));
    }
    Ok((count > 1).then_some(Groups { count, kept, score: rule.score }))
}
