//! HTTP dates: the three formats in, one out (RFC 9110 section 5.6.7).
//!
//! ```text
//! Sun, 06 Nov 1994 08:49:37 GMT    IMF-fixdate, the one we send
//! Sunday, 06-Nov-94 08:49:37 GMT   RFC 850: two digits of the year
//! Sun Nov  6 08:49:37 1994         asctime
//! ```
//!
//! A date is signed seconds since 1970, so that 1970 itself and times before it are dates like any other.

const DAYS: [&[u8; 3]; 7] = [b"Sun", b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat"];
const LONG_DAYS: [&[u8]; 7] = [b"Sunday", b"Monday", b"Tuesday", b"Wednesday", b"Thursday", b"Friday", b"Saturday"];
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// "00" to "99".
pub(super) const TWO_DIGITS: [[u8; 2]; 100] = {
    let mut table = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        table[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    table
};

const SECONDS_PER_DAY: i64 = 86_400;
/// 9999-12-31 23:59:59, the last second that four digits of a year can say.
const LAST: i64 = 253_402_300_799;
/// Fifty years of average length.
const FIFTY_YEARS: i64 = 1_577_847_600;

/// Length of an IMF-fixdate.
pub(crate) const LENGTH: usize = 29;

/// Days since 1970-01-01 of a day in the Gregorian calendar. Counts years from March, so that the
/// leap day is the last of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of `days_from_civil`, for days from 1970 to 9999: Neri and Schneider, "Euclidean affine
/// functions and their application to calendar algorithms" (2022), figure 12, with three divisions less
/// than the textbook's way.
fn civil_from_days(days: u32) -> (u32, u32, u32) {
    let quarters = 4 * (days + 719_468) + 3;
    let century = quarters / 146_097;
    let quarters_of_century = (quarters % 146_097) | 3;
    let product = 2_939_745 * u64::from(quarters_of_century);
    let year_of_century = (product >> 32) as u32;
    let day_of_year = (product & 0xffff_ffff) as u32 / 2_939_745 / 4;
    let month_and_day = 2_141 * day_of_year + 197_913;
    let (month, day) = (month_and_day >> 16, (month_and_day & 0xffff) / 2_141 + 1);
    // The year begins in March: its last two months are the next one's first.
    let next = u32::from(day_of_year >= 306);
    (100 * century + year_of_century + next, month - 12 * next, day)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Reads a date off its bytes from the left; every method fails on what its name does not say.
struct Scanner<'a>(&'a [u8]);

impl Scanner<'_> {
    fn literal(&mut self, text: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        head.iter().try_fold(0, |number, b| b.is_ascii_digit().then(|| number * 10 + i64::from(b - b'0')))
    }

    fn one_of<T: AsRef<[u8]>>(&mut self, names: &[T]) -> Option<i64> {
        let found = names.iter().position(|name| self.0.starts_with(name.as_ref()))?;
        self.0 = &self.0[names[found].as_ref().len()..];
        i64::try_from(found).ok()
    }

    /// `hour ":" minute ":" second`, in seconds. Second 60 is a leap second, which the grammar allows.
    fn time(&mut self) -> Option<i64> {
        let hour = self.digits(2)?;
        self.literal(b":")?;
        let minute = self.digits(2)?;
        self.literal(b":")?;
        let second = self.digits(2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
    }
}

fn seconds(year: i64, month: i64, day: i64, time: i64) -> Option<i64> {
    let valid = day >= 1 && day <= days_in_month(year, month);
    valid.then(|| days_from_civil(year, month, day) * SECONDS_PER_DAY + time)
}

/// The date in `value`, or None if it is not exactly one HTTP-date. The name of the weekday must be a
/// weekday's, but need not be the right one. `now` settles the century of an RFC 850 date.
pub(crate) fn parse(value: &[u8], now: i64) -> Option<i64> {
    let mut scan = Scanner(super::fields::trim(value));
    // "Sun" is a prefix of "Sunday", so the long names come first.
    if scan.one_of(&LONG_DAYS).is_some() {
        return parse_rfc850(scan, now);
    }
    scan.one_of(&DAYS)?;
    let (year, month, day, time);
    if scan.literal(b", ").is_some() {
        day = scan.digits(2)?;
        scan.literal(b" ")?;
        month = scan.one_of(&MONTHS)? + 1;
        scan.literal(b" ")?;
        year = scan.digits(4)?;
        scan.literal(b" ")?;
        time = scan.time()?;
        scan.literal(b" GMT")?;
    } else {
        scan.literal(b" ")?;
        month = scan.one_of(&MONTHS)? + 1;
        scan.literal(b" ")?;
        // RFC 9110 5.6.7: asctime's day is two digits, or a space and one.
        day = if scan.literal(b" ").is_some() { scan.digits(1)? } else { scan.digits(2)? };
        scan.literal(b" ")?;
        time = scan.time()?;
        scan.literal(b" ")?;
        year = scan.digits(4)?;
    }
    if scan.0.is_empty() { seconds(year, month, day, time) } else { None }
}

fn parse_rfc850(mut scan: Scanner<'_>, now: i64) -> Option<i64> {
    scan.literal(b", ")?;
    let day = scan.digits(2)?;
    scan.literal(b"-")?;
    let month = scan.one_of(&MONTHS)? + 1;
    scan.literal(b"-")?;
    let two_digits = scan.digits(2)?;
    scan.literal(b" ")?;
    let time = scan.time()?;
    scan.literal(b" GMT")?;
    if !scan.0.is_empty() {
        return None;
    }
    // RFC 9110 5.6.7: a date that seems more than 50 years in the future is the most recent past
    // year with the same two digits. So: the latest year that isn't. A 29 February that the year
    // doesn't have is no date in that year, and not one in another.
    let this_year = 1970 + now.div_euclid(31_556_952);
    let latest = this_year + 51;
    let mut year = latest - (latest - two_digits).rem_euclid(100);
    if days_from_civil(year, month, day) * SECONDS_PER_DAY + time > now.saturating_add(FIFTY_YEARS) {
        year -= 100;
    }
    seconds(year, month, day, time)
}

/// Whether `format` can say this date: from 1970 to 9999.
pub(crate) fn is_representable(date: i64) -> bool {
    (0..=LAST).contains(&date)
}

/// `date` as an IMF-fixdate; one outside of 1970 to 9999 becomes the nearest within.
pub(crate) fn format(date: i64) -> [u8; LENGTH] {
    let date = date.clamp(0, LAST) as u64; // Not negative after the clamp, and below 2^38.
    let days = (date / 86_400) as u32;
    let time = (date % 86_400) as u32;
    let (year, month, day) = civil_from_days(days);
    let mut out = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    out[0..3].copy_from_slice(DAYS[((days + 4) % 7) as usize]);
    two_digits(&mut out, 5, day);
    out[8..11].copy_from_slice(MONTHS[(month - 1) as usize]);
    two_digits(&mut out, 12, year / 100);
    two_digits(&mut out, 14, year % 100);
    two_digits(&mut out, 17, time / 3600);
    two_digits(&mut out, 20, time / 60 % 60);
    two_digits(&mut out, 23, time % 60);
    out
}

/// `number` is below 100.
#[inline(always)] // `at` is known then, and needs no check.
fn two_digits(out: &mut [u8; LENGTH], at: usize, number: u32) {
    out[at..at + 2].copy_from_slice(&TWO_DIGITS[number as usize % 100]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    const NOV_1994: i64 = 784_111_777;
    const NOW: i64 = 1_700_000_000;

    #[test]
    fn the_three_formats_of_rfc_9110() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(NOV_1994), "{text}");
        }
        assert_eq!(&format(NOV_1994), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn the_ends_of_time() {
        assert_eq!(parse(b"Thu, 01 Jan 1970 00:00:00 GMT", NOW), Some(0));
        assert_eq!(parse(b"Wed, 31 Dec 1969 23:59:59 GMT", NOW), Some(-1));
        assert_eq!(parse(b"Fri, 31 Dec 9999 23:59:59 GMT", NOW), Some(LAST));
        assert_eq!(parse(b"Sat, 01 Jan 0000 00:00:00 GMT", NOW), Some(-62_167_219_200));
        assert_eq!(&format(i64::MIN), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&format(i64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn days_that_do_not_exist_are_no_dates() {
        for (text, valid) in [
            ("Mon, 29 Feb 2016 00:00:00 GMT", true),
            ("Sun, 29 Feb 2015 00:00:00 GMT", false),
            ("Tue, 29 Feb 2000 00:00:00 GMT", true),
            ("Thu, 29 Feb 1900 00:00:00 GMT", false),
            ("Sun, 31 Apr 2016 00:00:00 GMT", false),
            ("Sun, 00 Apr 2016 00:00:00 GMT", false),
            ("Sun, 01 Apr 2016 24:00:00 GMT", false),
            ("Sun, 01 Apr 2016 23:60:00 GMT", false),
            ("Sun, 01 Apr 2016 23:59:60 GMT", true),
            ("Sun, 01 Apr 2016 23:59:61 GMT", false),
        ] {
            assert_eq!(parse(text.as_bytes(), NOW).is_some(), valid, "{text}");
        }
    }

    #[test]
    fn two_digit_years_slide() {
        // In 2023, 2073 is not more than 50 years away, and 2074 is.
        let date = |text: &str| parse(text.as_bytes(), NOW).map(|date| format(date)[12..16].to_vec());
        assert_eq!(date("Sunday, 06-Nov-73 08:49:37 GMT"), Some(b"2073".to_vec()));
        assert_eq!(date("Sunday, 31-Dec-73 08:49:37 GMT"), Some(b"1973".to_vec()));
        assert_eq!(date("Sunday, 06-Nov-74 08:49:37 GMT"), Some(b"1974".to_vec()));
        // In 2090, "10" is 2110.
        assert!(
            parse(b"Sunday, 06-Nov-10 08:49:37 GMT", 3_800_000_000)
                .is_some_and(|date| &format(date)[12..16] == b"2110")
        );
    }

    proptest! {
        #[test]
        fn agrees_with_httpdate(date in 0..=LAST) {
            let theirs = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(date.unsigned_abs()));
            prop_assert_eq!(&format(date)[..], theirs.as_bytes());
            prop_assert_eq!(parse(theirs.as_bytes(), NOW), Some(date));
        }

        /// Whatever httpdate takes, we take as the same date; the other way round not, because it
        /// refuses a wrong weekday, a leap second and years before 1970, and pins two-digit years to 1970.
        #[test]
        fn takes_what_httpdate_takes(
            text in "(Sun|Monday|Tue), ?(0[0-9]|[1-3][0-9])[ -](Jan|Feb|Apr|Dec)[ -](19|20)?[0-9]{2} [0-2][0-9]:[0-6][0-9]:[0-6][0-9] (GMT|UTC)",
        ) {
            if let Ok(theirs) = httpdate::parse_http_date(&text) {
                let theirs = theirs.duration_since(UNIX_EPOCH).map(|d| i64::try_from(d.as_secs()).unwrap());
                let ours = parse(text.as_bytes(), NOW).unwrap();
                // Both may differ by the century of a two-digit year.
                prop_assert!(theirs.is_ok_and(|t| t == ours || (t - ours).abs() == 3_155_760_000 || (t - ours).abs() == 3_155_673_600), "{} {}", text, ours);
            }
        }

        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..40), now in any::<i32>()) {
            let _ = parse(&text, i64::from(now));
        }
    }
}
