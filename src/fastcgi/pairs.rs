//! Name-value pairs (3.4): two lengths of 1 or 4 bytes each, the name, the value.

use super::parser::Malformed;

/// The pairs of a whole stream of parameters.
#[derive(Clone, Debug)]
pub(crate) struct Pairs<'a>(&'a [u8]);

impl<'a> Pairs<'a> {
    pub(crate) fn new(stream: &'a [u8]) -> Self {
        Self(stream)
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Malformed>;

    /// After a pair that leads past the end there is none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let stream = std::mem::take(&mut self.0);
        let Some((name, value, rest)) = split(stream) else { return Some(Err(Malformed)) };
        self.0 = rest;
        Some(Ok((name, value)))
    }
}

type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn split(stream: &[u8]) -> Option<Split<'_>> {
    let (name, stream) = length(stream)?;
    let (value, stream) = length(stream)?;
    // Each has 31 bits, so nothing here can wrap.
    let (name, stream) = stream.split_at_checked(name)?;
    let (value, rest) = stream.split_at_checked(value)?;
    Some((name, value, rest))
}

/// 1 byte below 128, or 4 with the highest bit set.
fn length(stream: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = stream.split_first()?;
    if *first < 0x80 {
        return Some((usize::from(*first), rest));
    }
    let (long, rest) = stream.split_first_chunk::<4>()?;
    let number = u32::from_be_bytes(*long) & 0x7fff_ffff;
    Some((usize::try_from(number).ok()?, rest))
}

/// How long a pair's lengths are, and the lengths. None: too long for the format.
pub(crate) fn lengths(name: usize, value: usize) -> Option<([u8; 8], usize)> {
    let mut out = [0; 8];
    let mut at = 0;
    for length in [name, value] {
        let number = u32::try_from(length).ok().filter(|number| *number < 0x8000_0000)?;
        let long = (number | 0x8000_0000).to_be_bytes();
        let bytes = if number < 0x80 { &long[3..] } else { &long[..] };
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    Some((out, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (name, value) in pairs {
            let (bytes, length) = lengths(name.len(), value.len()).unwrap();
            stream.extend(&bytes[..length]);
            stream.extend(name);
            stream.extend(value);
        }
        stream
    }

    #[test]
    fn lengths_take_one_byte_or_four() {
        for (number, bytes) in [
            (0, &[0][..]),
            (127, &[127]),
            (128, &[0x80, 0, 0, 128]),
            (65536, &[0x80, 1, 0, 0]),
            (0x7fff_ffff, &[0xff, 0xff, 0xff, 0xff]),
        ] {
            let (out, length) = lengths(number, 5).unwrap();
            assert_eq!(out[..length], [bytes, &[5]].concat());
            assert_eq!(super::length(bytes), Some((number, &[][..])));
        }
        assert_eq!(lengths(0x8000_0000, 0), None);
        // What is one byte may be told with four.
        assert_eq!(super::length(&[0x80, 0, 0, 3, 9]), Some((3, &[9][..])));
    }

    #[test]
    fn a_length_past_the_end_is_malformed_wherever_the_stream_is_cut() {
        let pairs = [(vec![b'n'; 3], vec![b'v'; 200]), (vec![b'm'; 130], Vec::new())];
        let stream = encode(&pairs);
        let first = 1 + 4 + 3 + 200;
        for cut in 0..stream.len() {
            let malformed = Pairs::new(&stream[..cut]).any(|pair| pair.is_err());
            assert_eq!(malformed, cut != 0 && cut != first, "{cut}");
        }
        // Lengths whose sum wraps around in 32 bits.
        let wraps = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, b'a'];
        assert_eq!(Pairs::new(&wraps).collect::<Vec<_>>(), [Err(Malformed)]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        ) {
            let stream = encode(&pairs);
            let decoded: Vec<_> = Pairs::new(&stream).map(|pair| pair.map(|(n, v)| (n.to_vec(), v.to_vec()))).collect();
            prop_assert_eq!(decoded, pairs.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn nothing_panics(stream in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Pairs::new(&stream).count();
        }
    }
}
