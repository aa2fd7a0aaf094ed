//! Field names and values: legal bytes, white space, tokens in a list (RFC 9110 section 5).

/// Optional white space is SP and HTAB, nothing else (RFC 9110 5.6.3).
fn is_ows(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// `value` without optional white space around it, which is not part of it (RFC 9110 5.5).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = value
        && is_ows(*first)
    {
        value = rest;
    }
    while let [rest @ .., last] = value
        && is_ows(*last)
    {
        value = rest;
    }
    value
}

/// RFC 9110 5.6.2: `tchar`.
const TCHAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    table
};

/// How many bytes at the start of `input` can be in a token.
pub(crate) fn token_length(input: &[u8]) -> usize {
    input.iter().position(|b| !TCHAR[usize::from(*b)]).unwrap_or(input.len())
}

/// Where a field line ends: the first CR, LF or NUL, none of which can be in a value (RFC 9110 5.5).
pub(crate) fn line_end(input: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    let stops = |b: u8| matches!(b, b'\r' | b'\n' | 0);
    let mut at = 0;
    // Eight bytes at a time: most have none below 14, and then the subtraction borrows nowhere.
    let (eights, rest) = input.as_chunks::<8>();
    for eight in eights {
        let word = u64::from_le_bytes(*eight);
        // One bit for each byte below 14, and perhaps for some behind the first of them.
        let mut low = word.wrapping_sub(ONES * 14) & !word & (ONES * 0x80);
        while low != 0 {
            let found = low.trailing_zeros() as usize / 8;
            if stops(eight[found]) {
                return Some(at + found);
            }
            low &= low - 1;
        }
        at += 8;
    }
    rest.iter().position(|b| stops(*b)).map(|found| at + found)
}

/// Whether `name` is a token, as field names and methods are (RFC 9110 5.1, 9.1).
pub(crate) fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| TCHAR[usize::from(*b)])
}

/// Whether `value` may stand in a head. CR, LF and NUL are "invalid and dangerous" (RFC 9110 5.5);
/// what else is wrong with a value can't end the field, so it is the sender's business.
pub(crate) fn is_value(value: &[u8]) -> bool {
    !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
}

/// Whether a field's name is `known` (RFC 9110 5.1: in any case). Nearly everybody writes it as the RFC
/// does, which is found out much faster.
#[inline]
pub(crate) fn is_name(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len() && (name == known || name.eq_ignore_ascii_case(known))
}

/// Whether both may stand in a head.
pub fn is_field(name: &[u8], value: &[u8]) -> bool {
    is_token(name) && is_value(value)
}

/// Whether the comma-separated `list` has `token` among its elements, in any case
/// (RFC 9110 7.6.1: connection options).
pub(crate) fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|element| trim(element).eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_space_and_tab_only() {
        assert_eq!(trim(b" \t a b\t "), b"a b");
        assert_eq!(trim(b" \t "), b"");
        assert_eq!(trim(b"\x0ba"), b"\x0ba");
    }

    #[test]
    fn line_ends_are_found_everywhere() {
        for length in 0..40 {
            assert_eq!(line_end(&vec![b'\t'; length]), None);
            for at in 0..length {
                for stop in [b'\r', b'\n', 0] {
                    for filler in [b'a', b'\t', 0x0e, 0x80, 0xff] {
                        let mut line = vec![filler; length];
                        line[at] = stop;
                        assert_eq!(line_end(&line), Some(at));
                    }
                }
            }
        }
    }

    #[test]
    fn tokens() {
        assert!(is_token(b"X-Forwarded-For"));
        assert!(is_token(b"!#$%&'*+-.^_`|~09az"));
        for bad in [&b""[..], b"a b", b"a:", b"a\r", b"\xe4", b"a\"", b"(a)"] {
            assert!(!is_token(bad), "{bad:?}");
        }
    }

    #[test]
    fn connection_options_are_found_in_any_case_and_place() {
        assert!(has_token(b"keep-alive , CLOSE", b"close"));
        assert!(!has_token(b"closed, keep-alive", b"close"));
        assert!(!has_token(b"", b"close"));
    }
}
