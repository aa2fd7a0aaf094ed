//! From field lines, or a raw request head, to the fields that the answer depends on.

use super::Request;
use super::fields::{is_name, line_end, token_length, trim};

/// A request, from its field lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// `method` and `http10` are not set.
    pub request: Request<'a>,
    /// Bytes of scratch used.
    pub used: usize,
}

const N: usize = 7;
const NAMES: [&[u8]; N] =
    [b"Connection", b"If-Match", b"If-None-Match", b"If-Modified-Since", b"If-Unmodified-Since", b"If-Range", b"Range"];

/// As a CGI program's environment has them (RFC 3875 4.1), of which the last counts if one is there twice. Without
/// content that has not been read: that is not on the client's connection.
pub(crate) fn from_params<'a>(params: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Request<'a> {
    let mut request = Request::default();
    for (name, value) in params {
        match name {
            b"REQUEST_METHOD" => request.method = value,
            b"SERVER_PROTOCOL" => request.http10 = matches!(value, b"HTTP/1.0" | b"HTTP/0.9"),
            b"HTTP_CONNECTION" => request.connection = Some(value),
            b"HTTP_IF_MATCH" => request.if_match = Some(value),
            b"HTTP_IF_NONE_MATCH" => request.if_none_match = Some(value),
            b"HTTP_IF_MODIFIED_SINCE" => request.if_modified_since = Some(value),
            b"HTTP_IF_UNMODIFIED_SINCE" => request.if_unmodified_since = Some(value),
            b"HTTP_IF_RANGE" => request.if_range = Some(value),
            b"HTTP_RANGE" => request.range = Some(value),
            _ => {}
        }
    }
    request
}

/// The lines of one field.
#[derive(Clone, Copy, Default)]
struct Lines<'a> {
    first: Option<&'a [u8]>,
    count: usize,
    /// Of all values, joined.
    length: usize,
}

/// Sees every field line once.
#[derive(Clone, Copy, Default)]
struct Collector<'a> {
    lines: [Lines<'a>; N],
    /// Some field is on several lines.
    repeated: bool,
    has_body: bool,
}

impl<'a> Collector<'a> {
    /// A line, with `value` trimmed.
    fn line(&mut self, name: &[u8], value: &'a [u8]) {
        if let Some(i) = index_of(name) {
            let line = &mut self.lines[i];
            line.first.get_or_insert(value);
            line.length += value.len() + if line.count > 0 { 2 } else { 0 };
            self.repeated |= line.count > 0;
            line.count += 1;
        } else if is_name(name, b"Transfer-Encoding") {
            self.has_body = true;
        } else if is_name(name, b"Content-Length") {
            // Anything that is not plainly zero may be followed by content.
            self.has_body |= value.is_empty() || value.iter().any(|b| *b != b'0');
        }
    }

    /// What was collected. `fields` gives the same lines again, if some are to be joined.
    fn finish(
        self,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
        mut scratch: &'a mut [u8],
    ) -> Result<Fields<'a>, usize> {
        let repeated = self.lines.iter().filter(|line| line.count > 1);
        let needed: usize = if self.repeated { repeated.map(|line| line.length).sum() } else { 0 };
        if needed > scratch.len() {
            return Err(needed);
        }
        let mut values = self.lines.map(|line| line.first);
        if needed > 0 {
            for (i, line) in self.lines.iter().enumerate().filter(|(_, line)| line.count > 1) {
                let (joined, rest) = std::mem::take(&mut scratch).split_at_mut(line.length);
                scratch = rest;
                let (mut at, mut separator) = (0, &b""[..]);
                for (_, value) in fields.clone().filter(|(name, _)| index_of(name) == Some(i)) {
                    for piece in [separator, trim(value)] {
                        joined[at..at + piece.len()].copy_from_slice(piece);
                        at += piece.len();
                    }
                    separator = b", ";
                }
                values[i] = Some(&*joined);
            }
        }
        let [connection, if_match, if_none_match, if_modified_since, if_unmodified_since, if_range, range] = values;
        let request = Request {
            method: b"",
            http10: false,
            has_body: self.has_body,
            connection,
            if_match,
            if_none_match,
            if_modified_since,
            if_unmodified_since,
            if_range,
            range,
        };
        Ok(Fields { request, used: needed })
    }
}

/// Which of `NAMES` this is. Length and first letter tell most names apart, so that one comparison is enough.
fn index_of(name: &[u8]) -> Option<usize> {
    let candidate = match (name.len(), name.first()? | 0x20) {
        (10, b'c') => 0,
        (8, b'i') if name[3] | 0x20 == b'm' => 1,
        (13, b'i') => 2,
        (17, b'i') => 3,
        (19, b'i') => 4,
        (8, b'i') => 5,
        (5, b'r') => 6,
        _ => return None,
    };
    is_name(name, NAMES[candidate]).then_some(candidate)
}

/// Collects the fields that matter. One that is on several lines becomes one value, joined with ", "
/// (RFC 9110 5.3) in `scratch`; for Range and the dates that makes a value that is not valid, and so
/// ignored, as it must be. Err: how long `scratch` has to be.
pub fn from_fields<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    scratch: &'a mut [u8],
) -> Result<Fields<'a>, usize> {
    let mut collector = Collector::default();
    for (name, value) in fields.clone() {
        collector.line(name, trim(value));
    }
    collector.finish(fields, scratch)
}

/// A raw request head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// All of the request.
    pub request: Request<'a>,
    /// As received.
    pub target: &'a [u8],
    /// Where the head ends: content or the next request begin there.
    pub length: usize,
    /// Bytes of scratch used.
    pub used: usize,
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// No empty line yet.
    Incomplete,
    /// Not HTTP/1, or ambiguous: answer 400 and close.
    Malformed,
    /// `scratch` has to be that long.
    Scratch(usize),
}

/// The field lines of a head that was found to be valid.
#[derive(Clone)]
struct FieldLines<'a>(&'a [u8]);

impl<'a> Iterator for FieldLines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (line, rest) = split_line(self.0)?;
        self.0 = rest;
        let colon = find(b':', line)?;
        Some((&line[..colon], trim(&line[colon + 1..])))
    }
}

/// The first line, without its end, and what is behind it. RFC 9112 2.2: a recipient may take a lone
/// LF for the end of a line.
fn split_line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = find(b'\n', input)?;
    let line = &input[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &input[end + 1..]))
}

fn find(byte: u8, input: &[u8]) -> Option<usize> {
    input.iter().position(|b| *b == byte)
}

/// Parses a head of HTTP/1.0 or 1.x (RFC 9112 sections 2, 3 and 5).
pub fn from_head<'a>(input: &'a [u8], scratch: &'a mut [u8]) -> Result<Head<'a>, HeadError> {
    use HeadError::{Incomplete, Malformed};
    // RFC 9112 2.2: at least one empty line before the request line should be ignored.
    let mut start = input;
    while let [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] = start {
        start = rest;
    }
    let (request_line, mut rest) = split_line(start).ok_or(Incomplete)?;
    let (method, target, http10) = parse_request_line(request_line).ok_or(Malformed)?;
    let lines = rest;
    let mut collector = Collector::default();
    let (mut hosts, mut transfer_encoding, mut content_length) = (0, None, None);
    loop {
        match rest {
            [b'\r', b'\n', behind @ ..] | [b'\n', behind @ ..] => {
                rest = behind;
                break;
            }
            [] | [b'\r'] => return Err(Incomplete),
            _ => {}
        }
        // RFC 9112 5.1: no space before the colon; 5.2: no folding. Both make the name no token.
        let colon = token_length(rest);
        let (name, value) = (&rest[..colon], &rest[colon..]);
        match value {
            [] => return Err(Incomplete),
            [b':', ..] if colon > 0 => {}
            _ => return Err(Malformed),
        }
        let value = &value[1..];
        let end = line_end(value).ok_or(Incomplete)?;
        let (value, end) = (trim(&value[..end]), &value[end..]);
        rest = match end {
            [b'\r', b'\n', behind @ ..] | [b'\n', behind @ ..] => behind,
            [b'\r'] => return Err(Incomplete),
            // A bare CR, or NUL: RFC 9110 5.5.
            _ => return Err(Malformed),
        };
        match name.len() {
            // RFC 9112 3.2: a Host that is none is answered 400.
            4 if is_name(name, b"Host") && !is_host(value) => return Err(Malformed),
            4 if is_name(name, b"Host") => hosts += 1,
            14 if is_name(name, b"Content-Length") => {
                // RFC 9112 6.3: two lengths, or what is none, leave the end of the request unknown.
                let valid = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                if !valid || content_length.is_some_and(|known| known != value) {
                    return Err(Malformed);
                }
                content_length = Some(value);
            }
            17 if is_name(name, b"Transfer-Encoding") => transfer_encoding = Some(value),
            _ => {}
        }
        collector.line(name, value);
    }
    // RFC 9112 3.2: exactly one Host in HTTP/1.1. 6.1: both framings are an attack, and a transfer
    // coding in HTTP/1.0 is faulty framing.
    // 6.3: unless "chunked" is the last coding, nobody can tell where the content ends.
    let ambiguous = transfer_encoding.is_some_and(|value: &[u8]| {
        let last = value.rsplit(|b| *b == b',').next().map(trim).unwrap_or_default();
        content_length.is_some() || http10 || !last.eq_ignore_ascii_case(b"chunked")
    });
    if ambiguous || hosts > 1 || (hosts == 0 && !http10) {
        return Err(Malformed);
    }
    let lines = &lines[..lines.len() - rest.len()];
    let fields = collector.finish(FieldLines(lines), scratch).map_err(HeadError::Scratch)?;
    let request = Request { method, http10, ..fields.request };
    Ok(Head { request, target, length: input.len() - rest.len(), used: fields.used })
}

/// Whether there are only the bytes of `uri-host [ ":" port ]` (RFC 3986 3.2.2). Whether it is ours is the
/// server's business.
fn is_host(value: &[u8]) -> bool {
    const HOST: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 128 {
            let b = byte as u8;
            let mark = matches!(b, b'-' | b'.' | b'_' | b'~' | b':' | b'%' | b'[' | b']');
            table[byte] = b.is_ascii_alphanumeric() || mark || is_sub_delim(b);
            byte += 1;
        }
        table
    };
    value.iter().all(|b| HOST[usize::from(*b)])
}

/// RFC 3986 2.2.
const fn is_sub_delim(b: u8) -> bool {
    matches!(b, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

/// `GET /index.html HTTP/1.1`: method, target, and whether the version is 1.0.
fn parse_request_line(line: &[u8]) -> Option<(&[u8], &[u8], bool)> {
    let (method, rest) = line.split_at(token_length(line));
    // The version has a fixed length; between it and the method is the target.
    let (target, version) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
    let target = target.strip_prefix(b" ")?.strip_suffix(b" ")?;
    let valid_target = !target.is_empty() && !target.iter().fold(false, |bad, b| bad | (*b <= b' ') | (*b == 0x7f));
    let http10 = match version {
        b"HTTP/1.0" => true,
        // RFC 9110 2.5: a higher minor version is answered as the highest we know.
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => false,
        _ => return None,
    };
    (!method.is_empty() && valid_target).then_some((method, target, http10))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] =
        b"GET /a?b HTTP/1.1\r\nHost: x\r\nIF-NONE-MATCH: \"a\"\r\nRange:bytes=0-\r\nif-none-match:\t\"b\" \r\n\r\nGET";

    #[test]
    fn a_head_and_what_is_behind_it() {
        let mut scratch = [0; 64];
        let head = from_head(HEAD, &mut scratch).unwrap();
        assert_eq!(head.request.method, b"GET");
        assert_eq!(head.target, b"/a?b");
        assert_eq!(head.length, HEAD.len() - 3);
        assert_eq!(head.request.if_none_match, Some(&b"\"a\", \"b\""[..]));
        assert_eq!(head.request.range, Some(&b"bytes=0-"[..]));
        assert_eq!(head.request.if_match, None);
        assert!(!head.request.has_body && !head.request.http10);
    }

    #[test]
    fn cut_anywhere_it_is_incomplete() {
        for end in 0..HEAD.len() - 3 {
            let mut scratch = [0; 64];
            assert_eq!(from_head(&HEAD[..end], &mut scratch).unwrap_err(), HeadError::Incomplete, "{end}");
        }
    }

    #[test]
    fn scratch_says_what_it_needs() {
        let mut scratch = [0; 7];
        assert_eq!(from_head(HEAD, &mut scratch).unwrap_err(), HeadError::Scratch(8));
    }

    #[test]
    fn empty_lines_of_a_field_count() {
        let mut scratch = [0; 8];
        let fields = [(&b"If-Match"[..], &b""[..]), (b"if-match", b"")];
        let found = from_fields(fields.into_iter(), &mut scratch).unwrap();
        assert_eq!(found.request.if_match, Some(&b", "[..]));
        assert_eq!(found.used, 2);
    }

    #[test]
    fn malformed_heads() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.0 \r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / http/1.0\r\n\r\n",
            "G(T / HTTP/1.0\r\n\r\n",
            "GET /\t HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.0\r\nA : b\r\n\r\n",
            "GET / HTTP/1.0\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.0\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.0\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.0\r\nno colon\r\n\r\n",
            "GET / HTTP/1.0\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.0\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: me@a\r\n\r\n",
        ] {
            assert_eq!(from_head(head.as_bytes(), &mut []).unwrap_err(), HeadError::Malformed, "{head:?}");
        }
    }

    #[test]
    fn content_is_noticed() {
        for (field, has_body) in [
            ("Content-Length: 0", false),
            ("Content-Length: 00", false),
            ("Content-Length: 10", true),
            ("Transfer-Encoding: chunked", true),
            ("Transfer-Encoding: gzip , CHUNKED", true),
            ("Transfer-Encoding: gzip\nTransfer-Encoding: chunked", true),
            ("X: y", false),
        ] {
            let head = format!("\r\n\nPOST / HTTP/1.1\nHost: a\n{field}\n\n");
            let parsed = from_head(head.as_bytes(), &mut []).unwrap();
            assert_eq!(parsed.request.has_body, has_body, "{field}");
            assert_eq!(parsed.length, head.len());
        }
    }
}
