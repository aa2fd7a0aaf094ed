//! Bytes into a space of the caller's, and how many there would be.

use super::date;

/// Bytes written into a space that may be too small: then they are only counted.
#[derive(Debug)]
pub struct Buffer<'a> {
    space: &'a mut [u8],
    needed: usize,
}

impl<'a> Buffer<'a> {
    /// Writes into `space`.
    pub fn new(space: &'a mut [u8]) -> Self {
        Self { space, needed: 0 }
    }

    /// Only counts.
    pub fn counting() -> Self {
        Self { space: &mut [], needed: 0 }
    }

    /// Adds `bytes`, or, from the first that doesn't fit on, only their number.
    #[inline(always)] // Most of what is pushed is a literal: then its length is known, and the copy two moves.
    pub fn push(&mut self, bytes: &[u8]) {
        self.place(bytes.len(), |place| place.copy_from_slice(bytes));
    }

    /// How long all of it is, whether it fits or not.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// What was written: empty if it did not fit.
    pub fn written(&self) -> &[u8] {
        self.space.get(..self.needed).unwrap_or_default()
    }

    /// Adds room for `count` bytes and gives it to `fill`, or only counts them.
    #[inline(always)] // As `push`: most counts are known.
    fn place(&mut self, count: usize, fill: impl FnOnce(&mut [u8])) {
        let end = self.needed.saturating_add(count);
        if let Some(place) = self.space.get_mut(self.needed..end) {
            fill(place);
        } else {
            self.space = &mut [];
        }
        self.needed = end;
    }

    /// Four digits at a time: pieces of a known length are copied fast.
    pub(crate) fn decimal(&mut self, number: u64) {
        let pair = |number: u64| &date::TWO_DIGITS[number as usize % 100];
        match number {
            0..10 => self.push(&pair(number)[1..]),
            10..100 => self.push(pair(number)),
            100..1000 => {
                self.push(&pair(number / 100)[1..]);
                self.push(pair(number));
            }
            1000..10_000 => {
                self.push(pair(number / 100));
                self.push(pair(number));
            }
            _ => {
                self.decimal(number / 10_000);
                self.push(pair(number / 100));
                self.push(pair(number));
            }
        }
    }

    /// At least `width` digits.
    pub(crate) fn hexadecimal(&mut self, mut number: u64, width: usize) {
        let count = (64 - number.leading_zeros() as usize).div_ceil(4).max(width);
        let mut digits = [b'0'; 16];
        let mut pairs = digits.rchunks_exact_mut(2);
        while number > 0
            && let Some(pair) = pairs.next()
        {
            pair.copy_from_slice(&HEX_PAIRS[(number & 0xff) as usize]);
            number >>= 8;
        }
        self.push(&digits[digits.len() - count..]);
    }
}

/// "00" to "ff".
const HEX_PAIRS: [[u8; 2]; 256] = {
    let mut table = [[0; 2]; 256];
    let mut number = 0;
    while number < 256 {
        table[number] = [b"0123456789abcdef"[number >> 4], b"0123456789abcdef"[number & 15]];
        number += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Buffer<'_>)) -> String {
        let mut space = [0; 32];
        let mut out = Buffer::new(&mut space);
        write(&mut out);
        assert_eq!(out.needed(), out.written().len());
        String::from_utf8(out.written().to_vec()).unwrap()
    }

    #[test]
    fn numbers() {
        for power in 0..19 {
            let number = 10u64.pow(power);
            for n in [number - 1, number, number + 1, number / 5 * 9] {
                assert_eq!(written(|out| out.decimal(n)), n.to_string());
                assert_eq!(written(|out| out.hexadecimal(n, 1)), format!("{n:x}"));
                assert_eq!(written(|out| out.hexadecimal(n, 16)), format!("{n:016x}"));
            }
        }
        assert_eq!(written(|out| out.decimal(u64::MAX)), u64::MAX.to_string());
        assert_eq!(written(|out| out.hexadecimal(u64::MAX, 1)), "ffffffffffffffff");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut space = [0; 4];
        let mut out = Buffer::new(&mut space);
        out.push(b"abc");
        out.decimal(12);
        out.push(b"d");
        assert_eq!((out.needed(), out.written()), (6, &b""[..]));
    }
}
