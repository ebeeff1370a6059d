//! Times on a grid. What a node does at the same moment, it does with one wake-up, one frame to each peer and one fsync.

use std::time::Duration;

/// The first multiple of `period` that is not before `time`. Both count from where the grid begins.
pub(crate) fn line_from(period: Duration, time: Duration) -> Duration {
    let lines = time.as_nanos().div_ceil(period.as_nanos());
    period * u32::try_from(lines).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_moves_to_the_next_line_and_stays_if_it_is_on_one() {
        let ms = Duration::from_millis;
        for (time, line) in [(0, 0), (1, 100), (100, 100), (101, 200)] {
            assert_eq!(line_from(ms(100), ms(time)), ms(line));
        }
    }
}
