//! Times in tokens, as people write and read them.

use crate::config::parse_duration;

/// Durations beyond ten years are mistakes.
const LONGEST: u64 = 3650 * 86_400;

/// Reads `"90s"`, `"15m"`, `"1h"`, `"7d"` as whole seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    match parse_duration(text).map(|duration| duration.as_secs()) {
        Some(seconds) if seconds <= LONGEST => Ok(seconds),
        Some(_) => Err("is longer than ten years".to_owned()),
        None => Err("must be a duration such as 90s, 15m, 1h or 7d".to_owned()),
    }
}

/// Unix seconds as UTC, such as `2027-01-15 08:00:00 UTC`.
pub(super) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days counted from 0000-03-01, in eras of 400 years: leap days come last (Howard Hinnant, "chrono-Compatible
    // Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next) =
        if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    let year = era * 400 + year_of_era + next;
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

/// What a claim's time means now, such as `expires in 59 min`.
pub(super) fn relative(claim: &str, time: u64, now: u64) -> String {
    let span = span(time.abs_diff(now));
    let is_past = time <= now;
    match (claim, is_past) {
        ("exp", true) => format!("expired {span} ago"),
        ("exp", false) => format!("expires in {span}"),
        ("nbf", true) => format!("valid since {span}"),
        ("nbf", false) => format!("valid in {span}"),
        (_, true) => format!("{span} ago"),
        (_, false) => format!("in {span}"),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, expected) in [("90s", 90), ("15m", 900), ("1h", 3_600), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for bad in
            ["", "s", "1", "-1s", "1.5h", "1y", "1 h", "99999999999999999999s", "18446744073709551615d", "1é"]
        {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert!(seconds("4000d").is_err());
    }

    #[test]
    fn dates_come_out_right() {
        for (unix, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_800_000_000, "2027-01-15 08:00:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(unix), text);
        }
    }

    #[test]
    fn times_are_told_as_people_do() {
        assert_eq!(relative("exp", 1_000 + 59 * 60, 1_000), "expires in 59 min");
        assert_eq!(relative("exp", 1_000, 1_075), "expired 75 s ago");
        assert_eq!(relative("nbf", 10_000, 1_000), "valid in 2 h");
        assert_eq!(relative("iat", 1_000, 1_000_000), "11 d ago");
    }
}
