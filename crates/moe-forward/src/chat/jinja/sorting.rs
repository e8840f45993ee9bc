//! Sorts by an order that can fail, since a list may hold values that aren't ordered. The standard
//! library's sort doesn't support this.

use std::cmp::Ordering;

use super::Fallible;

/// Sorts `items` by `order`. As in Python, equal elements keep their order. The first comparison
/// that fails ends the sort.
pub(super) fn sorted<T>(
    mut items: Vec<T>,
    order: &mut impl FnMut(&T, &T) -> Fallible<Option<Ordering>>,
) -> Fallible<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = items.split_off(items.len() / 2);
    let (left, right) = (sorted(items, order)?, sorted(right, order)?);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        // Python only ever asks whether the later one is less.
        let next = if order(b, a)? == Some(Ordering::Less) { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::super::Fail;
    use super::*;

    #[test]
    fn equal_items_keep_their_places() {
        let items: Vec<(u32, u32)> = (0..1000).map(|index| (index * 7919 % 31, index)).collect();
        let found = sorted(items.clone(), &mut |a, b| Ok(Some(a.0.cmp(&b.0)))).unwrap();
        let mut wanted = items;
        wanted.sort_by_key(|(key, _)| *key);
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_comparison_that_fails_ends_the_sort() {
        let mut compared = 0;
        let mut order = |a: &u32, b: &u32| {
            compared += 1;
            if a * b == 0 { Err(Fail::new("no order")) } else { Ok(Some(a.cmp(b))) }
        };
        assert!(sorted(vec![0, 3, 2, 1, 5, 4, 9, 8, 7], &mut order).is_err());
        assert_eq!(compared, 1);
    }
}
