//! How Nomad spells a service's name inside a variable's name.

/// `name` as Nomad writes it where only letters, digits, `_` and `.` may stand: everything else,
/// and a digit at the very front, becomes `_`, a byte at a time. The same for several names:
/// `count-api` and `count_api` meet in `count_api`.
pub fn clean_name(name: &str) -> String {
    let clean = |(index, byte): (usize, u8)| {
        let kept =
            byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'.') || (index > 0 && byte.is_ascii_digit());
        if kept { char::from(byte) } else { '_' }
    };
    name.bytes().enumerate().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::clean_name;

    #[test]
    fn names_are_spelled_as_nomad_spells_them() {
        for (name, clean) in [
            ("count-api", "count_api"),
            ("my-app_v2", "my_app_v2"),
            ("2048-game", "_048_game"),
            ("a.b", "a.b"),
            ("é", "__"),
            ("", ""),
        ] {
            assert_eq!(clean_name(name), clean);
        }
    }
}
