//! The process's exit codes, in one table that the help text, the binary and the tests share.
//!
//! The numbers above 2 are those of BSD's `sysexits.h`, so that a supervisor can tell "start me
//! again" (69) from "a person must change something" (2, 78).

/// Ended as asked: a drain that finished, `--help`, `--version`.
pub const OK: u8 = 0;
/// The command line cannot be understood.
pub const USAGE: u8 = 2;
/// Something that is needed is held by somebody else or cannot be had: an address is taken.
pub const UNAVAILABLE: u8 = 69;
/// A fault of Attaché itself.
pub const INTERNAL: u8 = 70;
/// Arguments, environment or files are missing, wrong or contradict each other.
pub const CONFIG: u8 = 78;

/// Every exit code with what it means, in ascending order.
pub const TABLE: &[(u8, &str)] = &[
    (OK, "ended as asked"),
    (USAGE, "the command line cannot be understood"),
    (
        UNAVAILABLE,
        "something needed is not to be had, such as an address that is taken",
    ),
    (INTERNAL, "a fault of attache itself: please report it"),
    (
        CONFIG,
        "arguments, environment or files are missing, wrong or contradictory",
    ),
];

/// The table as the end of a help text.
pub(crate) fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in TABLE {
        text.push_str(&format!("  {code:>2}  {meaning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{TABLE, help};

    #[test]
    fn the_table_is_ascending_and_wholly_in_the_help() {
        assert!(TABLE.is_sorted_by_key(|(code, _)| *code));
        let help = help();
        for (_, meaning) in TABLE {
            assert!(help.contains(meaning));
        }
    }
}
