//! The runtime that openraft runs on: tokio, with randomness that a seed can decide.
//!
//! Election time-outs are the only thing that openraft draws. In the product they come from the system; inside
//! [`Runtime::seeded`] they, and those of every task that is spawned from there, follow from the seed, so that a
//! simulated run can be repeated.
//!
//! It also puts the ticks of a node's groups together, which openraft spreads in time: hundreds of idle groups then wake
//! the node ten times a second instead of thousands of times, and their heartbeats to a peer share a frame.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use openraft::async_runtime::Instant as _;
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioRuntime};
use rand_core::TryRng;

use super::grid::line_from;

tokio::task_local! {
    static SEED: Cell<u64>;
}

/// Ticks happen at multiples of this. Small beside the shortest election time-out, which it may delay by as much.
const TICK_GRID: Duration = Duration::from_millis(100);
/// What is nearer than this is no tick: openraft waits for a microsecond to gather completed writes, which the timers of
/// tokio would make a millisecond.
const TICK_MIN: Duration = Duration::from_millis(5);
/// Where the grid begins.
static ORIGIN: LazyLock<TokioInstant> = LazyLock::new(TokioInstant::now);

/// Tokio as openraft asks for it.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

impl Runtime {
    /// Runs a future in which, and in whose tasks, randomness follows from `seed`.
    pub async fn seeded<F: Future>(seed: u64, future: F) -> F::Output {
        SEED.scope(Cell::new(seed), future).await
    }

    /// The next number of the task's own sequence, or of the system where no seed was given.
    fn draw() -> u64 {
        SEED.try_with(|seed| {
            let mut sequence = SplitMix64(seed.get());
            let drawn = sequence.next();
            seed.set(sequence.0);
            drawn
        })
        .unwrap_or_else(|_| rand::random())
    }

    fn is_seeded() -> bool {
        SEED.try_with(|_| ()).is_ok()
    }
}

/// When to wake for a deadline, in time since the grid's origin: at the grid's next line, or at once for what is shorter
/// than timers can be.
fn wake_for(now: Duration, deadline: Duration) -> Duration {
    if deadline.saturating_sub(now) < TICK_MIN {
        return now;
    }
    line_from(TICK_GRID, deadline)
}

/// `SplitMix64` (Steele, Lea, Flood, 2014): small, and good enough to spread time-outs.
#[derive(Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl TryRng for SplitMix64 {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.next().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SplitMix64;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        if Self::is_seeded() {
            TokioRuntime::spawn(SEED.scope(Cell::new(Self::draw()), future))
        } else {
            TokioRuntime::spawn(future)
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    /// In a simulation deadlines are kept to the letter: the grid would depend on when the process began.
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        if Self::is_seeded() {
            return TokioRuntime::sleep_until(deadline);
        }
        let origin = *ORIGIN;
        let wake = wake_for(TokioInstant::now() - origin, deadline - origin);
        TokioRuntime::sleep_until(origin + wake)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> SplitMix64 {
        SplitMix64(Self::draw())
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn draws() -> (u64, u64, u64) {
        let spawned = Runtime::spawn(async { Runtime::draw() });
        let first = Runtime::draw();
        (first, Runtime::draw(), spawned.await.expect("the task does not panic"))
    }

    #[tokio::test]
    async fn a_seed_decides_what_a_task_and_its_children_draw() {
        let once = Runtime::seeded(7, draws()).await;
        let again = Runtime::seeded(7, draws()).await;
        let other = Runtime::seeded(8, draws()).await;
        assert_eq!(once, again);
        assert_ne!(once, other);
        assert!(once.0 != once.1 && once.1 != once.2, "{once:?}");
    }

    #[test]
    fn ticks_meet_on_the_grid_and_what_is_shorter_than_a_timer_does_not_wait() {
        let wake_for = |now, deadline| {
            wake_for(Duration::from_millis(now), Duration::from_millis(deadline)).as_millis()
        };
        assert_eq!(wake_for(0, 40), 100);
        assert_eq!(wake_for(60, 100), 100);
        assert_eq!(wake_for(60, 101), 200);
        assert_eq!(wake_for(60, 61), 60);
        assert_eq!(wake_for(60, 10), 60);
    }

    #[tokio::test]
    async fn without_a_seed_the_system_decides() {
        assert_ne!(draws().await, draws().await);
    }
}
