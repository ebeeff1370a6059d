//! The calls that are under way, so that a stop waits for them and for nothing else.
//!
//! The server itself waits until every connection is closed, which takes its client's help: one that is stopped, or that
//! has connected and never said a word (hyperium/hyper#4170), would hold up the stop of its node until the deadline.

use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;
use tower::{Layer, Service};

/// What the last answers have to leave in, and clients to close their connections.
const CLOSING: Duration = Duration::from_secs(1);

/// Counts calls from their beginning until their answer begins.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay(TaskTracker);

impl UnderWay {
    /// Completes some time after `stop`, when every call has been answered.
    pub(super) async fn answered_after(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        self.0.close();
        self.0.wait().await;
        tokio::time::sleep(CLOSING).await;
    }
}

#[derive(Debug, Clone)]
pub(super) struct CountLayer(pub(super) UnderWay);

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner, calls: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Count<S> {
    inner: S,
    calls: UnderWay,
}

impl<S, B, R> Service<Request<B>> for Count<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.calls.0.track_future(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;

    use tokio::sync::oneshot;
    use tokio::time::timeout;
    use tower::service_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_every_answer_and_not_for_ever_after() {
        let calls = UnderWay::default();
        let slow = service_fn(async |request: Request<oneshot::Receiver<&'static str>>| {
            let body = request.into_body().await.expect("an answer");
            Ok::<_, Infallible>(Response::new(body))
        });
        let mut service = CountLayer(calls.clone()).layer(slow);
        let stop = CancellationToken::new();
        let mut end = pin!(calls.answered_after(&stop));
        let day = Duration::from_hours(24);
        assert!(timeout(day, &mut end).await.is_err(), "nobody has asked to stop");

        let (answer, answered) = oneshot::channel();
        let call = service.call(Request::new(answered));
        stop.cancel();
        assert!(timeout(day, &mut end).await.is_err(), "a call is under way");
        answer.send("done").expect("somebody waits");
        let (response, ended) = tokio::join!(call, timeout(day, end));
        assert_eq!(response.expect("an answer").into_body(), "done");
        assert!(ended.is_ok());
    }
}
