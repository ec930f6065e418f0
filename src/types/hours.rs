//! A part of the day, by the clock on the wall.

use std::fmt;
use std::str::FromStr;

/// A minute of the day, local time: 0 is midnight, 1439 one minute before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayMinute(u16);

const DAY: u16 = 24 * 60;

impl DayMinute {
    /// From a clock's hour and minute; `None`: there is no such time.
    #[must_use]
    pub fn new(hour: u16, minute: u16) -> Option<Self> {
        (hour < 24 && minute < 60).then_some(Self(hour * 60 + minute))
    }
}

impl fmt::Display for DayMinute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// Hours that come every day: from a minute on, until before another; over midnight where that is the earlier one.
///
/// Judged by the clock on the wall: on the day on which clocks are set, they are an hour longer or shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    from: DayMinute,
    until: DayMinute,
}

impl Hours {
    /// The whole day.
    pub const ALL: Self = Self { from: DayMinute(0), until: DayMinute(DAY) };

    /// Whether it is that time.
    #[must_use]
    pub fn contain(self, now: DayMinute) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&now)
        } else {
            now >= self.from || now < self.until
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.until)
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is not a part of the day; write for example \"01:00-06:00\", or \"22:00-06:00\" for a night"
            )
        };
        let (from, until) = text.split_once('-').ok_or_else(form)?;
        let from = minute(from).ok_or_else(form)?;
        // Midnight has two names.
        let until =
            if until == "24:00" { DayMinute(DAY) } else { minute(until).ok_or_else(form)? };
        if from == until {
            return Err(format!("{text:?} has no length; \"00:00-24:00\" is the whole day"));
        }
        Ok(Self { from, until })
    }
}

fn minute(text: &str) -> Option<DayMinute> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| {
        let two = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        two.then(|| digits.parse().ok()).flatten()
    };
    DayMinute::new(number(hour)?, number(minute)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DayMinute {
        minute(text).unwrap()
    }

    #[test]
    fn hours_of_the_day_and_of_the_night() {
        let day: Hours = "01:00-06:30".parse().unwrap();
        let night: Hours = "22:00-06:00".parse().unwrap();
        let late: Hours = "22:15-24:00".parse().unwrap();
        let always: Hours = "00:00-24:00".parse().unwrap();
        assert_eq!(always, Hours::ALL);
        for (now, inside) in [
            ("00:00", [false, true, false, true]),
            ("00:59", [false, true, false, true]),
            ("01:00", [true, true, false, true]),
            ("05:59", [true, true, false, true]),
            ("06:00", [true, false, false, true]),
            ("06:29", [true, false, false, true]),
            ("06:30", [false, false, false, true]),
            ("21:59", [false, false, false, true]),
            ("22:00", [false, true, false, true]),
            ("23:59", [false, true, true, true]),
        ] {
            let all = [day, night, late, always];
            assert_eq!(all.map(|hours| hours.contain(at(now))), inside, "{now}");
        }
        assert_eq!(
            (night.to_string(), late.to_string()),
            ("22:00-06:00".into(), "22:15-24:00".into())
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in [
            "",
            "-",
            "1:00-6:00",
            "01:00",
            "01:00 - 06:00",
            "25:00-06:00",
            "01:60-06:00",
            "24:00-06:00",
            "01:00-06:00-07:00",
            "+1:00-06:00",
            "01.00-06.00",
            "01:00-24:01",
            "٠١:00-06:00",
        ] {
            assert!(wrong.parse::<Hours>().unwrap_err().contains("is not a part"), "{wrong}");
        }
        assert!("06:00-06:00".parse::<Hours>().unwrap_err().contains("no length"));
        assert!(DayMinute::new(24, 0).is_none() && DayMinute::new(0, 60).is_none());
    }
}
