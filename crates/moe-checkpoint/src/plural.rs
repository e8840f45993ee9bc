//! Counts of things in sentences.

/// `count` and `thing`, whose plural ends in s: "1 step", "4 steps".
pub fn counted(count: u64, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        let all = [counted(0, "step"), counted(1, "step"), counted(2, "file")];
        assert_eq!(all, ["0 steps", "1 step", "2 files"]);
    }
}
