//! Means over the last seconds: long enough to be steady, short enough that what has passed is soon forgotten.

use std::time::Duration;

use tokio::time::Instant;

/// A mean covers one to two of these.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// A mean of what was added in the window that runs and in the one before.
#[derive(Debug)]
pub(crate) struct RecentMean {
    began: Instant,
    now: Window,
    before: Window,
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    count: u32,
    total: Duration,
}

impl Default for RecentMean {
    fn default() -> Self {
        Self { began: Instant::now(), now: Window::default(), before: Window::default() }
    }
}

impl RecentMean {
    pub(crate) fn add(&mut self, value: Duration) {
        self.turn();
        self.now.count += 1;
        self.now.total += value;
    }

    /// Zero if nothing was added.
    pub(crate) fn get(&mut self) -> Duration {
        self.turn();
        let total = self.now.total + self.before.total;
        total.checked_div(self.now.count + self.before.count).unwrap_or_default()
    }

    fn turn(&mut self) {
        let passed = self.began.elapsed();
        if passed >= WINDOW {
            let is_old = passed >= 2 * WINDOW;
            self.before = if is_old { Window::default() } else { self.now };
            (self.now, self.began) = (Window::default(), Instant::now());
        }
    }
}
