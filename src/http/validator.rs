//! Validators from a file's metadata (RFC 9110 section 8.8).

use super::{Buffer, Modified};

/// What goes into an entity tag.
#[derive(Clone, Copy, Debug)]
pub struct TagInputs {
    /// Time of modification.
    pub modified: Modified,
    /// In bytes.
    pub size: u64,
    /// Inode number, if wanted.
    pub inode: Option<u64>,
    /// Time of the last change of status, if wanted.
    pub changed: Option<Modified>,
}

/// Longest tag that `entity_tag` makes: quotes, four numbers of at most 24 characters, three dashes.
pub const ETAG_MAX: usize = 96;

/// Nanoseconds since 1970, whatever the file system can say: 128 bits hold any i64 of seconds.
fn nanoseconds(time: Modified) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

fn hex(out: &mut Buffer<'_>, number: i128) {
    if number < 0 {
        out.push(b"-");
    }
    let number = number.unsigned_abs();
    // In halves: nearly every number fits into the lower one, and 128-bit shifts are slow.
    let (high, low) = ((number >> 64) as u64, number as u64);
    if high > 0 {
        out.hexadecimal(high, 1);
        out.hexadecimal(low, 16);
    } else {
        out.hexadecimal(low, 1);
    }
}

/// `"<mtime_ns hex>-<size hex>"`, with `-<inode hex>` and `-<ctime_ns hex>` behind it if asked for.
/// The same on every server that has the same file with the same time, unless those two are in it.
pub fn entity_tag(inputs: &TagInputs, out: &mut Buffer<'_>) {
    out.push(b"\"");
    hex(out, nanoseconds(inputs.modified));
    out.push(b"-");
    hex(out, i128::from(inputs.size));
    if let Some(inode) = inputs.inode {
        out.push(b"-");
        hex(out, i128::from(inode));
    }
    if let Some(changed) = inputs.changed {
        out.push(b"-");
        hex(out, nanoseconds(changed));
    }
    out.push(b"\"");
}

/// Whether a file changed so recently that a second change might not show in its time of
/// modification: within one second, or two where the file system keeps no fraction (RFC 9110 8.8.1;
/// Apache's rule). `now` has whole seconds, so it may be up to a second early, which errs on
/// the safe side. A time in the future is never trusted.
pub(crate) fn is_fresh(modified: Modified, now: i64) -> bool {
    let limit = if modified.nanoseconds == 0 { 2_000_000_000 } else { 1_000_000_000 };
    i128::from(now) * 1_000_000_000 - nanoseconds(modified) < limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(seconds: i64, nanoseconds: u32, size: u64) -> String {
        let mut space = [0; ETAG_MAX];
        let mut out = Buffer::new(&mut space);
        entity_tag(
            &TagInputs { modified: Modified { seconds, nanoseconds }, size, inode: None, changed: None },
            &mut out,
        );
        String::from_utf8(out.written().to_vec()).unwrap()
    }

    #[test]
    fn tags() {
        assert_eq!(tag(784_111_777, 123_456_789, 1000), format!("\"{:x}-3e8\"", 784_111_777_123_456_789u64));
        assert_eq!(tag(0, 0, 0), "\"0-0\"");
        assert_eq!(tag(-1, 999_999_999, 1), "\"-1-1\"");
        assert_eq!(tag(0, 0, 0x1234_5678_9abc_def0), "\"0-123456789abcdef0\"");
        assert_eq!(tag(18_446_744_073, 709_551_616, 0), "\"10000000000000000-0\"");
        assert_eq!(tag(18_446_744_073, 709_551_615, 0), "\"ffffffffffffffff-0\"");
        assert_eq!(tag(i64::MAX, 0, u64::MAX).len(), 2 + 24 + 1 + 16);
    }

    #[test]
    fn the_longest_tag_fits() {
        let extreme = Modified { seconds: i64::MIN, nanoseconds: 0 };
        let inputs = TagInputs { modified: extreme, size: u64::MAX, inode: Some(u64::MAX), changed: Some(extreme) };
        let mut out = Buffer::counting();
        entity_tag(&inputs, &mut out);
        assert!(out.needed() <= ETAG_MAX, "{}", out.needed());
    }

    #[test]
    fn freshness() {
        let at = |seconds, nanoseconds| Modified { seconds, nanoseconds };
        assert!(is_fresh(at(100, 1), 100));
        assert!(is_fresh(at(99, 1), 100));
        assert!(!is_fresh(at(98, 999_999_999), 100));
        assert!(is_fresh(at(99, 0), 100));
        assert!(!is_fresh(at(98, 0), 100));
        assert!(is_fresh(at(200, 1), 100));
        assert!(!is_fresh(at(i64::MIN, 1), i64::MAX));
    }
}
