//! Sizes, times and listeners as an operator writes them: `"64MiB"`, `"10s"`, `"off"`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `4096`, `"256KiB"`, `"1GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Units of [`ByteSize`], the largest first, so that a size is shown in the largest that divides it.
const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl ByteSize {
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("{text:?} is not a size: write it as 4096, 256KiB, 64MiB or 1GiB");
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| text.strip_suffix(name).map(|digits| (digits, *unit)))
            .unwrap_or((text, 1));
        let count: u64 = digits.trim().parse().map_err(|_| problem())?;
        count.checked_mul(unit).map(Self).ok_or_else(problem)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => self.0.fmt(f),
        }
    }
}

/// A length of time in whole milliseconds: `"100ms"`, `"10s"`, `"7days"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

impl Span {
    pub const fn milliseconds(count: u64) -> Self {
        Self(count)
    }

    pub const fn seconds(count: u64) -> Self {
        Self(count * 1_000)
    }

    pub const fn days(count: u64) -> Self {
        Self::seconds(count * 24 * 60 * 60)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = |reason: &dyn fmt::Display| {
            format!("{text:?} is not a time ({reason}): write it as 100ms, 10s, 15min or 7days")
        };
        let duration = humantime::parse_duration(text).map_err(|reason| problem(&reason))?;
        u64::try_from(duration.as_millis()).map(Self).map_err(|reason| problem(&reason))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.as_duration()).fmt(f)
    }
}

/// Where a listener binds, or `"off"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

impl Listen {
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| {
            format!("{text:?} is not an address: write it as 0.0.0.0:8883, [::]:8883 or off")
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// Reads a text or a bare number (the environment and TOML both have those) through `FromStr`.
struct FromText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text with a unit")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

macro_rules! written_as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(FromText(std::marker::PhantomData))
            }
        }
    )*};
}

written_as_text!(ByteSize, Span, Listen);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back_as_it_was_shown() {
        for size in [0, 1, 1023, 1 << 10, 3 << 20, 1 << 40, u64::MAX] {
            assert_eq!(ByteSize(size).to_string().parse(), Ok(ByteSize(size)));
        }
    }

    #[test]
    fn a_size_that_does_not_fit_or_has_no_digits_is_refused() {
        for text in ["", "KiB", "1.5GiB", "-1", "99999999999TiB", "10 apples"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_needs_a_unit() {
        assert_eq!("1s 500ms".parse(), Ok(Span(1_500)));
        assert!("15".parse::<Span>().is_err());
    }

    #[test]
    fn a_listener_is_off_or_an_address() {
        assert_eq!("off".parse(), Ok(Listen::Off));
        assert!("[::]:8883".parse::<Listen>().is_ok());
        assert!("8883".parse::<Listen>().is_err());
    }
}
