//! Sizes as users write them.

/// Reads `"64KiB"`, `"512MiB"`, `"2GiB"`, `"1000B"`.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("1000B", Some(1000)),
            ("64KiB", Some(65_536)),
            ("2GiB", Some(2 << 30)),
            ("64", None),
            ("64kb", None),
            ("-1KiB", None),
            ("99999999999999GiB", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }
}
