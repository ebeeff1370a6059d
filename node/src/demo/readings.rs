//! 8,759 hourly temperatures of Seattle in 2010, from NOAA's climate data.

/// What the thermometer says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reading {
    /// As it stands in the data: `2010/01/01 00:00`, local time.
    pub(super) recorded: &'static str,
    pub(super) fahrenheit: f64,
}

const CSV: &str = include_str!("../../../tests/data/seattle-temps.csv");

pub(super) fn all() -> Vec<Reading> {
    CSV.lines().skip(1).filter_map(parse).collect()
}

fn parse(line: &'static str) -> Option<Reading> {
    let (recorded, fahrenheit) = line.split_once(',')?;
    Some(Reading { recorded, fahrenheit: fahrenheit.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_data_is_a_reading() {
        let readings = all();
        assert_eq!(readings.len(), 8_759);
        assert_eq!(readings[0], Reading { recorded: "2010/01/01 00:00", fahrenheit: 39.4 });
    }
}
