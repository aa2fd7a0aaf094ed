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

    pub(super) fn decimal(&mut self, mut number: u64) {
        let count = number.checked_ilog10().unwrap_or(0) as usize + 1;
        self.place(count, |place| {
            let mut pairs = place.rchunks_exact_mut(2);
            for pair in &mut pairs {
                pair.copy_from_slice(&date::TWO_DIGITS[(number % 100) as usize]);
                number /= 100;
            }
            if let [first] = pairs.into_remainder() {
                *first = b'0' + number as u8;
            }
        });
    }

    /// At least `width` digits.
    pub(super) fn hexadecimal(&mut self, mut number: u64, width: usize) {
        let mut digits = [b'0'; 16];
        let mut pairs = digits.rchunks_exact_mut(2);
        while number > 0
            && let Some(pair) = pairs.next()
        {
            pair.copy_from_slice(&HEX_PAIRS[(number & 0xff) as usize]);
            number >>= 8;
        }
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        self.push(&digits[zeros.min(digits.len() - width)..]);
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
