//! Bodies of the few messages whose content the proxy reads.

/// The columns of a DataRow in text form; NULL reads as empty. Whatever is malformed ends the row.
pub fn text_columns(body: &[u8]) -> Vec<String> {
    let Some((count, mut rest)) = body.split_first_chunk::<2>() else {
        return Vec::new();
    };
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let Some((length, after)) = rest.split_first_chunk::<4>() else { break };
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let Some((value, after)) = after.split_at_checked(length) else { break };
        columns.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_up_to_the_first_lie() {
        assert_eq!(text_columns(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"), ["a", ""]);
        assert_eq!(text_columns(b"\0\x02\0\0\0\x09a"), Vec::<String>::new());
        assert_eq!(text_columns(b"\xff"), Vec::<String>::new());
    }
}
