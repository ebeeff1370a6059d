//! Streams that outlive a connection: when the hub goes away, they are opened again where they were.
//!
//! Standard error says so, standard output holds nothing but messages. Only a stream that was open once is opened again:
//! a hub that cannot be reached at first is a failure at once.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

use super::Failure;
use super::output::printable;

/// The first wait before a stream is opened again; each further one is twice as long, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A hub that stays away for longer needs a person, who should hear of it.
const PATIENCE: Duration = Duration::from_mins(10);

/// Hands over the responses of one stream, and counts how many things may still come: until there are no more, or it ends.
pub(super) async fn follow<T>(
    limit: Option<u64>,
    open: impl AsyncFn() -> Result<Streaming<T>, Status>,
    mut take: impl FnMut(T, &mut u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let reopener = Reopener::default();
    let mut responses = open().await?;
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        match responses.message().await {
            Ok(Some(response)) => take(response, &mut left)?,
            Ok(None) => return Ok(()),
            Err(lost) => responses = reopener.open(lost, &open).await?,
        }
    }
    Ok(())
}

/// Opens the streams of one command again. Clones say each thing once together: a command may follow hundreds of shards.
#[derive(Debug, Clone, Default)]
pub(super) struct Reopener {
    is_away: Rc<Cell<bool>>,
}

impl Reopener {
    /// Repeats `open` until it succeeds. Fails with what `lost` says if that does not pass by itself, or with the last
    /// failure after [`PATIENCE`].
    pub(super) async fn open<T>(
        &self,
        lost: Status,
        open: impl AsyncFn() -> Result<T, Status>,
    ) -> Result<T, Status> {
        let since = Instant::now();
        let mut pause = PAUSE_MIN;
        // The right to a stream ends with its token; the next call brings a new one.
        let mut has_ended = lost.code() == Code::Unauthenticated;
        let mut lost = lost;
        while has_ended || (passes(&lost) && since.elapsed() < PATIENCE) {
            self.say_lost(&lost);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            has_ended = false;
            match open().await {
                Ok(opened) => {
                    self.say_found();
                    return Ok(opened);
                }
                Err(status) => lost = status,
            }
        }
        Err(lost)
    }

    fn say_lost(&self, lost: &Status) {
        if !self.is_away.replace(true) {
            eprintln!(
                "drover: the stream broke off ({}); it is opened again …",
                printable(lost.message())
            );
        }
    }

    fn say_found(&self) {
        if self.is_away.replace(false) {
            eprintln!("drover: … and goes on");
        }
    }
}

/// The hub cannot be reached, or says that it cannot serve for the moment. What the client found out itself has no
/// details; a connection that breaks in the middle of an answer is then an unknown or internal error.
fn passes(status: &Status) -> bool {
    let by_the_client = status.details().is_empty();
    status.code() == Code::Unavailable
        || by_the_client
            && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open_after(failures: u32, then: Status) -> (Result<u32, Code>, u32) {
        let tried = Cell::new(0);
        let open = async || {
            tried.set(tried.get() + 1);
            if tried.get() <= failures { Err(then.clone()) } else { Ok(tried.get()) }
        };
        let opened = Reopener::default().open(Status::unavailable("gone"), open).await;
        (opened.map_err(|status| status.code()), tried.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_opened_again_once_the_hub_is_back() {
        let (opened, _) = open_after(5, Status::unavailable("still gone")).await;
        assert_eq!(opened, Ok(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_stays_away_is_given_up_after_a_while() {
        let begun = Instant::now();
        let (opened, tried) = open_after(u32::MAX, Status::unknown("broken pipe")).await;
        assert_eq!(opened, Err(Code::Unknown));
        assert!(begun.elapsed() < PATIENCE + PAUSE_MAX * 2, "{:?}", begun.elapsed());
        assert!(tried < 100, "{tried} attempts");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_pass_by_itself_ends_the_stream() {
        let (opened, tried) = open_after(u32::MAX, Status::permission_denied("no")).await;
        assert_eq!((opened, tried), (Err(Code::PermissionDenied), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_token_is_replaced_once() {
        let refused = async || Err::<(), _>(Status::unauthenticated("the policy is gone"));
        let opened = Reopener::default().open(Status::unauthenticated("expired"), refused).await;
        assert_eq!(opened.map_err(|status| status.code()), Err(Code::Unauthenticated));
    }
}
